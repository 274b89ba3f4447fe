"""What is in a data set: a page for the terminal, and one of pictures and plots."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from vipra_ros.data.dataset import Dataset

WIDTH = 80
#: Episodes drawn over one another, and frames of a film strip.
DRAWN, STRIP = 40, 6


def main(dataset: str, plot: str = "") -> None:
    """The command `vipra dataset show`: print the summary; `plot`: file for a picture of it."""
    d = Dataset(dataset)
    _print(d)
    if plot:
        draw(d, Path(plot))
        print(f"plot: {plot}")


def _print(d: Dataset) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=WIDTH, highlight=False)
    lengths = np.array([e.length for e in d.episodes]) / d.fps
    size = sum(f.stat().st_size for f in d.path.rglob("*") if f.is_file()) / 1e6
    console.print(Text(f"{d.path}: {d.info.get('robot_type')}, {len(d.episodes)} episodes, {len(d)} frames"
                       f" at {d.fps:g} Hz, {lengths.sum() / 60:.1f} min, {size:.0f} MB"))
    cameras = [f"{c} {'x'.join(map(str, d.features['observation.images.' + c]['shape'][1::-1]))}" for c in d.cameras]
    console.print(Text(f"cameras: {', '.join(cameras) or 'none'}; episodes of {lengths.min():.1f} to "
                       f"{lengths.max():.1f} s, median {np.median(lengths):.1f} s"))
    notes = d.info.get("vipra_ros") or {}
    said = [f"{k}: {notes[k]}" for k in ("action_space", "action_time", "gripper") if k in notes]
    if said:
        console.print(Text("; ".join(said)))
    rows = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    rows.add_column("task", no_wrap=True, overflow="ellipsis", max_width=44)
    for name in ("episodes", "success", "failed", "min"):
        rows.add_column(name, justify="right")
    groups: dict[str, list] = {}
    for e in d.episodes:
        groups.setdefault(e.task, []).append(e)
    ordered = sorted(groups.items(), key=lambda g: -len(g[1]))
    for task, members in ordered[:20]:
        label = Counter(e.success for e in members)
        minutes = sum(e.length for e in members) / d.fps / 60
        rows.add_row(Text(task), str(len(members)), str(label[True]), str(label[False]), f"{minutes:.1f}")
    console.print(rows)
    if len(ordered) > 20:
        console.print(f"and {len(ordered) - 20} more tasks")
    if "action" in d.features:
        console.print(_numbers(d))


def _numbers(d: Dataset):
    """Quantiles of the action, column by column."""
    from rich.table import Table

    rows = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    rows.add_column("action")
    keys = ("min", "q01", "q50", "q99", "max", "std")
    for name in keys:
        rows.add_column(name, justify="right")
    stated = d.statistics.get("action", {})
    for i, name in enumerate(_names(d, "action")):
        rows.add_row(name, *(f"{stated[k].reshape(-1)[i]:.3f}" if k in stated else "" for k in keys))
    return rows


def _names(d: Dataset, column: str) -> list[str]:
    feature = d.features[column]
    names = feature.get("names")
    if isinstance(names, dict):  # some writers nest them
        names = next(iter(names.values()))
    return list(names) if names else [str(i) for i in range(int(np.prod(feature["shape"])))]


def draw(d: Dataset, path: Path) -> None:
    """One page: film strips of episodes, lengths, and the action's columns over time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cameras, names = d.cameras, _names(d, "action")
    action = d.numeric("action")
    columns = 4
    rows = -(-len(names) // columns)
    figure = plt.figure(figsize=(14, 2.4 * (1 + len(cameras) + rows)), constrained_layout=True)
    grid = figure.add_gridspec(1 + len(cameras) + rows, columns)
    chosen = np.unique(np.linspace(0, len(d.episodes) - 1, STRIP).round().astype(int))
    for r, camera in enumerate(cameras):
        strip = []
        for i in chosen:
            e = d.episodes[i]
            strip += [d.frame(camera, e.start + e.length // 2), d.frame(camera, e.start + e.length - 1)]
        axes = figure.add_subplot(grid[r, :])
        axes.imshow(np.concatenate(strip, axis=1))
        axes.set_title(f"{camera}: middle and end of episodes {', '.join(map(str, chosen))}", fontsize=9)
        axes.axis("off")
    lengths = figure.add_subplot(grid[len(cameras), :2])
    lengths.hist([e.length / d.fps for e in d.episodes], bins=30)
    lengths.set_xlabel("length of an episode, s")
    tasks = figure.add_subplot(grid[len(cameras), 2:])
    top = Counter(e.task for e in d.episodes).most_common(8)[::-1]
    tasks.barh([t[:40] for t, _ in top], [n for _, n in top])
    tasks.tick_params(labelsize=7)
    drawn = np.unique(np.linspace(0, len(d.episodes) - 1, DRAWN).round().astype(int))
    for c, name in enumerate(names):
        axes = figure.add_subplot(grid[1 + len(cameras) + c // columns, c % columns])
        for i in drawn:
            e = d.episodes[i]
            axes.plot(np.arange(e.length) / d.fps, action[e.start : e.start + e.length, c], lw=0.5, alpha=0.6)
        axes.set_title(f"action: {name}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
