"""Data sets made of episodes of other data sets: merged, split.

Numbers are copied as they are, pictures packet by packet where all sources were encoded alike (ours are; each
episode begins with a key frame), else decoded and encoded anew. Statistics are made again from what is copied, those
of numbers from every row, those of pictures from the sample of decoded frames that a conversion takes.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vipra_ros.config import ConfigError, build
from vipra_ros.data.dataset import Dataset, DatasetError
from vipra_ros.data.lerobot import EXTRA_COLUMNS, INDEX_COLUMNS, DatasetWriter
from vipra_ros.data.stage import clear, staged
from vipra_ros.data.statistics import STATISTICS_FRAMES, ImageStatistics
from vipra_ros.data.video import Codec, VideoError, encode_video, stream_header

#: Entries of info.json's "vipra_ros" that may differ between data sets that are merged.
_MAY_DIFFER = ("resampling", "codec", "topics")  # what topics mean is in the columns by now


def merge(sources: Sequence[Path], out: Path) -> Path:
    """One data set of all episodes of `sources`, in their order.

    Raises:
        DatasetError: they do not fit together, or `out` exists.
    """
    sets = [Dataset(p) for p in sources]
    if len(sets) < 2:
        raise DatasetError("merge needs at least two data sets")
    return _copy([(d, e.index) for d in sets for e in d.episodes], out)


def split(
    source: Path, first: Path, second: Path, share: float | None = None, episodes: str = "", seed: int = 0
) -> tuple[list[int], list[int]]:
    """Two data sets: of the chosen episodes, and of the others; returns their numbers in `source`.

    Args:
        share: of the episodes for `first`, drawn by `seed`, of every instruction alike.
        episodes: instead, their numbers: "0-9,12".

    Raises:
        DatasetError: nothing would be left for one of them, or a folder exists.
    """
    dataset = Dataset(source)
    count = len(dataset.episodes)
    if (share is None) == (not episodes):
        raise DatasetError("say either a share or the episodes of the first data set")
    chosen = numbers(episodes, count) if episodes else draw([e.task for e in dataset.episodes], share, seed)
    others = sorted(set(range(count)) - set(chosen))
    if not chosen or not others:
        raise DatasetError(f"{len(chosen)} and {len(others)} episodes of {count}; each data set needs at least one")
    for path in (first, second):
        if Path(path).exists():
            raise DatasetError(f"{path} exists; choose another folder or delete it")
    _copy([(dataset, i) for i in chosen], first)
    _copy([(dataset, i) for i in others], second)
    return chosen, others


def draw(tasks: Sequence[str], share: float, seed: int) -> list[int]:
    """Numbers of a random `share` of the episodes, of every task its share, the same for the same seed."""
    if not 0.0 < share < 1.0:
        raise DatasetError(f"share = {share:g}: must be between 0 and 1")
    rng, groups = np.random.default_rng(seed), {}
    for i, task in enumerate(tasks):
        groups.setdefault(task, []).append(i)
    order = [i for task in sorted(groups) for i in _spread(rng.permutation(groups[task]), rng)]
    ranked = sorted(order, key=lambda pair: pair[0])
    return sorted(int(i) for _, i in ranked[: round(share * len(tasks))])


def _spread(members: np.ndarray, rng) -> Iterable[tuple[float, int]]:
    """(place in [0, 1), member): the first k of a merged ranking take of every group its share."""
    return [((k + rng.random()) / len(members), i) for k, i in enumerate(members)]


def numbers(text: str, count: int) -> list[int]:
    """The numbers below `count` that a text like "0-9,12" means."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if not match:
            raise DatasetError(f"episodes {part!r}: write numbers and ranges, as in 0-9,12")
        first, last = int(match[1]), int(match[2] or match[1])
        if last >= count or last < first:
            raise DatasetError(f"episodes {part!r}: the data set has episodes 0 to {count - 1}")
        found.update(range(first, last + 1))
    return sorted(found)


def _copy(wanted: Sequence[tuple[Dataset, int]], out: Path) -> Path:
    out = Path(out)
    if out.exists():
        raise DatasetError(f"{out} exists; choose another folder or delete it")
    sets = list({id(d): d for d, _ in wanted}.values())
    names = _numeric(sets[0])
    for other in sets[1:]:
        _fits(sets[0], other)
    sizes = {c: tuple(sets[0].picture(c)["shape"][:2]) for c in sets[0].cameras}
    codec, alike = _codec(sets[0]), _encoded_alike(sets)
    columns = {id(d): {n: d.numeric(n) for n in names} for d in sets}
    features = {n: sets[0].features[n] for n in names}
    notes = dict(sets[0].info.get("vipra_ros", {}))
    robot = sets[0].info.get("robot_type") or "unknown"
    with staged(out) as stage:
        clear(stage)
        writer = DatasetWriter(stage / "dataset", sets[0].fps, features, sizes, robot, codec, notes)
        try:
            with tempfile.TemporaryDirectory(dir=stage) as scratch:
                for dataset, number in wanted:
                    _add(writer, dataset, number, columns[id(dataset)], alike, Path(scratch), codec)
            writer.close()
            os.rename(stage / "dataset", out)
        finally:
            writer.abort()
            shutil.rmtree(stage, ignore_errors=True)
    return out


def _add(writer: DatasetWriter, d: Dataset, number: int, columns, alike: bool, scratch: Path, codec: Codec) -> None:
    episode = d.episodes[number]
    rows = slice(episode.start, episode.start + episode.length)
    videos: dict[str, Any] = {}
    histograms = {}
    for camera in d.cameras:
        statistics, every = ImageStatistics(), max(1, episode.length // STATISTICS_FRAMES)
        for i in range(rows.start, rows.stop, every):
            statistics.update(d.frame(camera, i))
        histograms[camera] = statistics.histogram
        if alike:
            videos[camera] = d.video_of(camera, number)
        else:
            videos[camera] = scratch / f"{camera}.mp4"
            encode_video(videos[camera], (f for _, f in d.frames(camera, rows.start, rows.stop)), d.fps, codec)
    row = d.row(number)
    if len(row["tasks"]) > 1:
        raise DatasetError(f"{d.path}: episode {number} has {len(row['tasks'])} tasks; episodes of one can be copied")
    extra = {k: row.get(k) for k in EXTRA_COLUMNS}
    extra["source"] = extra["source"] or f"{d.path.name}/{number}"
    writer.add({n: v[rows] for n, v in columns.items()}, videos, episode.task, histograms, extra, episode.length)


def _numeric(d: Dataset) -> list[str]:
    names = [n for n, f in d.features.items() if f["dtype"] != "video" and n not in INDEX_COLUMNS]
    for name in names:
        feature = d.features[name]
        if feature["dtype"] in ("image", "string") or len(feature["shape"]) != 1:
            raise DatasetError(
                f"{d.path}: {name} is {feature['dtype']} of shape {feature['shape']}; vectors and videos can be copied"
            )
    return names


def _fits(a: Dataset, b: Dataset) -> None:
    """DatasetError that names the first difference which makes one data set of the two impossible."""
    pairs: list[tuple[str, Any, Any]] = [("fps", a.fps, b.fps)]
    pairs += [("robot_type", a.info.get("robot_type"), b.info.get("robot_type"))]
    for name in sorted(set(a.features) | set(b.features)):
        keys = ("dtype", "shape", "names")
        pairs += [
            (f"{name} {k}", (a.features.get(name) or {}).get(k), (b.features.get(name) or {}).get(k)) for k in keys
        ]
    notes = [{k: v for k, v in (d.info.get("vipra_ros") or {}).items() if k not in _MAY_DIFFER} for d in (a, b)]
    pairs += [(k, notes[0].get(k), notes[1].get(k)) for k in sorted(set(notes[0]) | set(notes[1]))]
    for what, one, other in pairs:
        if one != other:
            one, other = (textwrap.shorten(str(value), 200) for value in (one, other))
            raise DatasetError(f"{a.path} has {what} {one}, {b.path} {other}; they cannot be one data set")


def _codec(d: Dataset) -> Codec:
    try:
        return build(Codec, (d.info.get("vipra_ros") or {}).get("codec", {}))
    except ConfigError:  # of a later version
        return Codec()


def _encoded_alike(sets: Sequence[Dataset]) -> bool:
    """Whether packets of all sources can follow one another in one file."""
    for camera in sets[0].cameras:
        headers = set()
        for d in sets:
            for path in sorted({d.video_of(camera, e.index)[0] for e in d.episodes}):
                try:
                    headers.add(stream_header(path))
                except VideoError as error:
                    raise DatasetError(str(error)) from None
        if len(headers) > 1 or any(codec != "h264" for codec, _, _ in headers):
            return False
        if any(reordered for _, _, reordered in headers):
            return False
    return True


def merge_main(sources: Sequence[str], out: str) -> None:
    """The command `vipra dataset merge`."""
    made = Dataset(merge([Path(s) for s in sources], Path(out)))
    print(f"{made.path}: {len(made.episodes)} episodes, {len(made)} frames")


def split_main(dataset: str, first: str, second: str, share: float | None, episodes: str, seed: int) -> None:
    """The command `vipra dataset split`."""
    for path, chosen in zip((first, second), split(Path(dataset), Path(first), Path(second), share, episodes, seed)):
        print(f"{path}: {len(chosen)} episodes")
