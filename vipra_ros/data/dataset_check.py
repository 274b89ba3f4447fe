"""Is a data set what it says: tables, videos, indices, times and statistics against each other."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from vipra_ros.data.dataset import IMAGE_PREFIX, Dataset, DatasetError
from vipra_ros.data.lerobot import INDEX_COLUMNS
from vipra_ros.data.statistics import NumericStatistics
from vipra_ros.data.video import VideoError, frame_count, read_frames

#: s between a timestamp and frame_index / fps; float32 holds an hour to a quarter of a millisecond.
TIME_TOLERANCE = 1e-3
#: Relative to the spread of a column; statistics are kept in decimal text or float32.
STATISTICS_TOLERANCE = 1e-4
#: Problems of one kind that are listed one by one.
LISTED = 3


def check(path: Path, deep: bool = False) -> list[str]:
    """What is wrong with a data set, one line each; empty when nothing is.

    Args:
        deep: decode every frame; otherwise the first and the last of every file.

    Raises:
        DatasetError: it cannot be opened at all.
    """
    dataset = Dataset(path)
    problems = list(_episodes(dataset))
    for part in (_tables, _statistics, lambda d: _videos(d, deep)):
        try:
            problems += part(dataset)
        except (DatasetError, VideoError, OSError, KeyError, ValueError) as error:
            problems.append(str(error))
    return problems


def _episodes(d: Dataset) -> Iterator[str]:
    """meta/episodes against info.json."""
    info, at = d.info, 0
    if [e.index for e in d.episodes] != list(range(len(d.episodes))):
        yield "meta/episodes: episode_index does not count from 0 without gaps"
    if len(d.episodes) != info["total_episodes"]:
        yield f"meta/episodes has {len(d.episodes)} episodes, info.json says {info['total_episodes']}"
    for e in d.episodes:
        stop = d.row(e.index).get("dataset_to_index", e.start + e.length)
        if e.start != at or stop - e.start != e.length or e.length <= 0:
            yield f"episode {e.index}: frames {e.start} to {stop}, length {e.length}; {at} was the next frame"
        at = stop
    if at != info["total_frames"]:
        yield f"meta/episodes ends at frame {at}, info.json says {info['total_frames']}"
    if len(d.tasks) != info["total_tasks"]:
        yield f"meta/tasks has {len(d.tasks)} tasks, info.json says {info['total_tasks']}"


def _tables(d: Dataset) -> Iterator[str]:
    """The parquet files row by row."""
    columns = {c: d.numeric(c)[:, 0] for c in INDEX_COLUMNS}
    episode = np.repeat([e.index for e in d.episodes], [e.length for e in d.episodes])
    frame = np.concatenate([np.arange(e.length) for e in d.episodes])
    wanted = {"index": np.arange(len(d)), "episode_index": episode, "frame_index": frame}
    for name, values in wanted.items():
        if len(columns[name]) != len(values):
            yield f"{name} has {len(columns[name])} rows, meta/episodes has {len(values)}"
            return
        wrong = np.flatnonzero(columns[name] != values)
        if len(wrong):
            i = wrong[0]
            yield f"{name} is {columns[name][i]} in row {i}, {values[i]} is expected ({len(wrong)} rows are wrong)"
    off = np.abs(columns["timestamp"].astype(np.float64) - frame / d.fps)
    if off.max() > TIME_TOLERANCE:
        i = int(off.argmax())
        yield f"timestamp is {columns['timestamp'][i]:.4f} s in row {i}, {frame[i] / d.fps:.4f} s is expected"
    for e in d.episodes:
        tasks = np.unique(columns["task_index"][e.start : e.start + e.length])
        known = [d.tasks[t] if 0 <= t < len(d.tasks) else f"task {t}" for t in tasks]
        if e.task not in known:
            yield f"episode {e.index}: task {e.task!r} in meta/episodes, {known[0]!r} in its rows"
    for name, feature in d.features.items():
        if feature["dtype"] == "video" or name in INDEX_COLUMNS or feature["dtype"] in ("string", "image"):
            continue
        bad = np.argwhere(~np.isfinite(d.numeric(name).astype(np.float64)))
        if len(bad):
            yield f"{name} is not finite in row {bad[0][0]} ({len(bad)} values)"


def _statistics(d: Dataset) -> Iterator[str]:
    """stats.json and the episodes' statistics against the rows."""
    stated = d.statistics
    rows = _episode_statistics(d.path)
    for name, feature in d.features.items():
        if name not in stated and name not in INDEX_COLUMNS and feature["dtype"] not in ("string", "image"):
            yield f"stats.json lacks {name}"
        if name not in stated or feature["dtype"] in ("video", "string", "image"):
            continue
        values = d.numeric(name).astype(np.float64)
        yield from _compare(f"stats.json: {name}", values, stated[name])
        found = 0
        for e in d.episodes:
            if e.index in rows and f"stats/{name}/mean" in rows[e.index]:
                own = {k: rows[e.index][f"stats/{name}/{k}"] for k in ("mean", "std", "min", "max")}
                part = values[e.start : e.start + e.length]
                for text in _compare(f"episode {e.index}: statistics of {name}", part, own):
                    found += 1
                    if found <= LISTED:
                        yield text
        if found > LISTED:
            yield f"statistics of {name}: {found - LISTED} more episodes differ"


def _episode_statistics(path: Path) -> dict[int, dict]:
    rows: dict[int, dict] = {}
    for file in sorted((path / "meta" / "episodes").glob("*/*.parquet")):
        table = pq.ParquetFile(file)
        names = [c for c in table.schema_arrow.names if c == "episode_index" or c.startswith("stats/")
                 and IMAGE_PREFIX not in c and c.rsplit("/", 1)[1] in ("mean", "std", "min", "max")]
        for row in table.read(columns=names).to_pylist():
            rows[row["episode_index"]] = row
    return rows


def _compare(what: str, values: np.ndarray, stated: dict) -> Iterator[str]:
    statistics = NumericStatistics(values.shape[1], sample=1)
    statistics.update(values)
    found = statistics.result()
    spread = np.maximum(found["std"], 1e-6) + 1e-6 * np.abs(found["mean"])
    for key in ("mean", "std", "min", "max"):
        if key not in stated:
            continue
        off = np.abs(np.asarray(stated[key], np.float64).reshape(-1) - found[key]) / spread
        if not (off <= STATISTICS_TOLERANCE).all():
            i = int(np.nanargmax(off))
            got = np.asarray(stated[key]).reshape(-1)[i]
            yield f"{what}[{i}]: {key} is {got:.6g}, the rows give {found[key][i]:.6g}"
            return


def _videos(d: Dataset, deep: bool) -> Iterator[str]:
    """Every video file against the episodes that lie in it."""
    for camera in d.cameras:
        height, width = d.picture(camera)["shape"][:2]
        files: dict[Path, list[tuple[int, int, int]]] = {}
        for e in d.episodes:
            path, first = d.video_of(camera, e.index)
            files.setdefault(path, []).append((first, e.length, e.index))
        for path, spans in files.items():
            name, at = path.relative_to(d.path), 0
            for first, length, episode in sorted(spans):
                if first != at:
                    yield f"episode {episode}: begins at frame {first} of {name}, {at} was the next"
                at = first + length
            if not path.exists():
                yield f"{name} is missing"
                continue
            count = frame_count(path)
            if count != at:
                yield f"{name} has {count} frames, its episodes {at}"
            ends = [(0, 1), (max(0, at - 1), at)]
            for first, last in [(0, at)] if deep else ends:
                shapes = [image.shape[:2] for image in read_frames(path, d.fps, first, last)]
                if len(shapes) != last - first:
                    yield f"{name}: {len(shapes)} of the frames {first} to {last} can be decoded"
                if any(s != (height, width) for s in shapes):
                    yield f"{name} is {shapes[0][1]}x{shapes[0][0]}, info.json says {width}x{height}"


def main(dataset: str, deep: bool = False, json: bool = False) -> int:
    """The command `vipra dataset check`; 1 when something is wrong."""
    try:
        problems = check(Path(dataset), deep)
    except (json_module.JSONDecodeError, KeyError) as error:
        problems = [f"meta cannot be read ({type(error).__name__}: {error})"]
    if json:
        print(json_module.dumps({"dataset": dataset, "good": not problems, "problems": problems}, indent=1,
                                ensure_ascii=False))
        return int(bool(problems))
    for text in problems:
        print(f"{dataset}: {text}")
    if not problems:
        d = Dataset(dataset)
        print(f"{dataset}: good; {len(d.episodes)} episodes, {len(d)} frames, {len(d.cameras)} cameras")
    return int(bool(problems))
