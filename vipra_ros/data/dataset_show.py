"""What is in a data set: a page for the terminal, and one of pictures and plots."""

from __future__ import annotations

import json as json_module
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from vipra_ros.data.dataset import Dataset

WIDTH = 80
#: Figures of the action's columns.
KEYS = ("min", "q01", "q50", "q99", "max", "std")
#: Of the picture: episodes drawn over one another, episodes shown in pictures, tasks, columns of curves, inches.
DRAWN, STRIP, TASKS, COLUMNS, WIDE = 40, 8, 16, 4, 14.0


def main(dataset: str, plot: str = "", json: bool = False) -> None:
    """The command `vipra dataset show`: print the summary; `plot`: file for a picture of it; `json`: as JSON."""
    d = Dataset(dataset)
    found = summary(d)
    if json:
        print(json_module.dumps(found, indent=1, ensure_ascii=False))
    else:
        _print(found)
    if plot:
        draw(d, Path(plot))
        print(f"plot: {plot}", file=sys.stderr if json else sys.stdout)


def summary(d: Dataset) -> dict[str, Any]:
    """What the command says, ready for JSON: lengths in s, tasks by their number of episodes, figures of the action."""
    lengths = np.array([e.length for e in d.episodes]) / d.fps
    groups: dict[str, list] = {}
    for e in d.episodes:
        groups.setdefault(e.task, []).append(e)
    tasks = []
    for task, members in sorted(groups.items(), key=lambda g: -len(g[1])):
        label = Counter(e.success for e in members)
        tasks.append({"task": task, "episodes": len(members), "success": label[True], "failed": label[False],
                      "seconds": sum(e.length for e in members) / d.fps})
    notes, stated = d.info.get("vipra_ros") or {}, d.statistics.get("action", {})
    action = [{"name": name, **{k: float(stated[k].reshape(-1)[i]) for k in KEYS if k in stated}}
              for i, name in enumerate(_names(d, "action"))] if "action" in d.features else []
    return {
        "dataset": str(d.path), "robot": d.info.get("robot_type"), "fps": d.fps,
        "episodes": len(d.episodes), "frames": len(d), "seconds": float(lengths.sum()),
        "bytes": sum(f.stat().st_size for f in d.path.rglob("*") if f.is_file()),
        "cameras": {c: list(d.picture(c)["shape"][1::-1]) for c in d.cameras},
        "episode_seconds": {"min": float(lengths.min()), "median": float(np.median(lengths)),
                            "max": float(lengths.max())},
        "notes": {k: notes[k] for k in ("action_space", "action_time", "gripper") if k in notes},
        "tasks": tasks, "action": action,
    }


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, lengths = Console(width=WIDTH, highlight=False), found["episode_seconds"]
    console.print(Text(f"{found['dataset']}: {found['robot']}, {found['episodes']} episodes, {found['frames']} frames"
                       f" at {found['fps']:g} Hz, {found['seconds'] / 60:.1f} min, {found['bytes'] / 1e6:.0f} MB"))
    cameras = [f"{name} {'x'.join(map(str, size))}" for name, size in found["cameras"].items()]
    console.print(Text(f"cameras: {', '.join(cameras) or 'none'}; episodes of {lengths['min']:.1f} to "
                       f"{lengths['max']:.1f} s, median {lengths['median']:.1f} s"))
    if found["notes"]:
        console.print(Text("; ".join(f"{k}: {v}" for k, v in found["notes"].items())))
    rows = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    rows.add_column("task", no_wrap=True, overflow="ellipsis", max_width=44)
    for name in ("episodes", "success", "failed", "min"):
        rows.add_column(name, justify="right")
    for t in found["tasks"][:20]:
        rows.add_row(Text(t["task"]), str(t["episodes"]), str(t["success"]), str(t["failed"]),
                     f"{t['seconds'] / 60:.1f}")
    console.print(rows)
    if len(found["tasks"]) > 20:
        console.print(f"and {len(found['tasks']) - 20} more tasks")
    if found["action"]:
        numbers = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
        numbers.add_column("action")
        for key in KEYS:
            numbers.add_column(key, justify="right")
        for column in found["action"]:
            numbers.add_row(column["name"], *(f"{column[k]:.3f}" if k in column else "" for k in KEYS))
        console.print(numbers)


def _names(d: Dataset, column: str) -> list[str]:
    feature = d.features[column]
    names = feature.get("names")
    if isinstance(names, dict):  # some writers nest them
        names = next(iter(names.values()))
    return list(names) if names else [str(i) for i in range(int(np.prod(feature["shape"])))]


def draw(d: Dataset, path: Path) -> None:
    """One page: first, middle and last frames of episodes, lengths, tasks, and the action's columns over time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = _names(d, "action") if "action" in d.features else []  # a data set made of videos has none
    cameras, tasks = d.cameras, Counter(e.task for e in d.episodes)
    chosen = np.unique(np.linspace(0, len(d.episodes) - 1, STRIP).round().astype(int))
    rows = -(-len(names) // COLUMNS)
    strips = [_strip(d, camera, chosen) for camera in cameras]
    top = tasks.most_common(TASKS)[::-1]
    heights = [WIDE * s.shape[0] / s.shape[1] + 0.3 for s in strips]
    heights += [max(2.2, 0.6 + 0.2 * len(top)), *[1.9] * rows]
    figure = plt.figure(figsize=(WIDE, sum(heights)), constrained_layout=True)
    parts = figure.subfigures(len(heights), 1, height_ratios=heights)
    parts = np.atleast_1d(parts)
    for part, camera, strip in zip(parts, cameras, strips):
        axes = part.subplots()
        axes.imshow(strip, aspect="auto")
        axes.set_title(f"{camera}: first, middle and last frame of the episodes", fontsize=10, loc="left")
        side = strip.shape[1] / len(chosen)
        axes.set_xticks([side * (k + 0.5) for k in range(len(chosen))], [f"episode {i}" for i in chosen])
        axes.set_yticks([])
        axes.tick_params(length=0)
        axes.set_frame_on(False)
    lengths, bars = parts[len(cameras)].subplots(1, 2, width_ratios=[1, 1.6])
    lengths.hist([e.length / d.fps for e in d.episodes], bins=30)
    lengths.set_xlabel("length of an episode, s")
    lengths.set_ylabel("episodes")
    lengths.yaxis.get_major_locator().set_params(integer=True)
    drawn = bars.barh([_cut(t) for t, _ in top], [n for _, n in top])
    bars.bar_label(drawn, padding=3, fontsize=8)
    bars.tick_params(axis="y", labelsize=8)
    bars.margins(x=0.1)
    bars.set_xlabel("episodes")
    more = f"the {len(top)} most frequent of {len(tasks)} tasks" if len(tasks) > len(top) else f"{len(tasks)} tasks"
    bars.set_title(more, fontsize=10, loc="left")
    if names:
        _curves(d, parts[len(cameras) + 1 :], names)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _strip(d: Dataset, camera: str, episodes: np.ndarray) -> np.ndarray:
    """A column of first, middle and last frame an episode, with thin lines between them."""
    columns = []
    for e in (d.episodes[i] for i in episodes):
        frames = [d.frame(camera, e.start + at) for at in (0, e.length // 2, e.length - 1)]
        columns.append(np.concatenate([np.pad(f, ((1, 1), (1, 1), (0, 0)), constant_values=255) for f in frames]))
    return np.concatenate(columns, axis=1)


def _cut(text: str) -> str:
    return text if len(text) <= 48 else text[:47] + "\u2026"


def _curves(d: Dataset, parts: np.ndarray, names: list[str]) -> None:
    """Every column of the action over time, a line an episode."""
    action = d.numeric("action")
    drawn = np.unique(np.linspace(0, len(d.episodes) - 1, DRAWN).round().astype(int))
    for r, part in enumerate(parts):
        for axes, c in zip(part.subplots(1, COLUMNS), range(r * COLUMNS, (r + 1) * COLUMNS)):
            if c >= len(names):
                axes.axis("off")
                continue
            for i in drawn:
                e = d.episodes[i]
                axes.plot(np.arange(e.length) / d.fps, action[e.start : e.start + e.length, c], lw=0.5, alpha=0.6)
            axes.set_title(f"action: {names[c]}", fontsize=9, loc="left")
            axes.tick_params(labelsize=8)
            if r == len(parts) - 1 or c + COLUMNS >= len(names):
                axes.set_xlabel("s", fontsize=8)
