"""Videos with instructions to a data set of pictures alone, for pre-training: `import_videos(sources, out, ...)`.

Sources are files, folders of videos and LeRobot data sets; the numbers of a data set stay behind, so that videos of
people and of robots become one. Each video is cut to a square and sampled at true times into a small file under
`.OUT.partial/`, by processes; the data set is put together from those and renamed to OUT at the very end. An
interrupted run goes on where it was.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from vipra_ros.config import ConfigError, build, param
from vipra_ros.data import workers as processes
from vipra_ros.data.clips import Item, find_videos, grid_frames, square, upright
from vipra_ros.data.dataset import Dataset
from vipra_ros.data.lerobot import DatasetWriter
from vipra_ros.data.stage import clear, full, staged
from vipra_ros.data.statistics import ImageStatistics
from vipra_ros.data.video import Codec, VideoEncoder, VideoError
from vipra_ros.progress import bar
from vipra_ros.whole_file import write_whole

#: One frame in so many counts in the pixel statistics.
_STATISTICS_EVERY = 12


@dataclass(frozen=True)
class VideoSettings:
    """What the data set's pictures are."""

    fps: float = param(15.0, doc="frames per second of the data set", unit="Hz", low=0.1, high=240.0)
    every: int = param(1, doc="keep one of so many of them: slow videos move faster", low=1)
    size: int = param(128, doc="side of the squares; the middle is cut out", unit="px", low=8)
    camera: str = param("front", doc="name of the camera")


def import_videos(
    sources: Sequence[Path | str], out: Path | str, settings: VideoSettings, instructions: Path | str = "",
    instruction: str = "", workers: int = 1,
) -> Dataset:
    """Make the data set at `out`; returns it, opened.

    Args:
        instructions: CSV file with the columns `video` (path below its source) and `instruction`.
        instruction: of the videos that it does not name; a data set's episodes have their own.
        workers: processes; 1 works in this one.

    Raises:
        ConfigError: `out` exists, a video has no instruction, a line names no video, or no video can be read.
        ClipError, DatasetError: a source is missing or lacks the camera.
    """
    out = Path(out)
    if out.exists():
        raise ConfigError(f"{out} exists; choose another folder or delete it")
    listed = _instructed(sources, settings.camera, instructions, instruction)
    with staged(out) as stage:
        _make(listed, out, stage, settings, workers)
    return Dataset(out)


def _make(listed: list[tuple[Item, str]], out: Path, stage: Path, settings: VideoSettings, workers: int) -> None:
    note, said = stage / "settings.json", json.dumps(asdict(settings))
    if note.exists() and note.read_text() != said:
        clear(stage)
    shutil.rmtree(stage / "dataset", ignore_errors=True)
    (stage / "episodes").mkdir(exist_ok=True)
    note.write_text(said)
    writer = DatasetWriter(stage / "dataset", settings.fps, {}, {settings.camera: (settings.size, settings.size)},
                           "none", Codec(), {"codec": asdict(Codec())})
    used = 0
    jobs = [(item, stage / "episodes" / _name(item), settings) for item, _ in listed]
    try:
        with bar("cutting videos", len(jobs), show=True) as advance:
            for (item, task), (job, made) in zip(listed, processes.results(_cut, jobs, workers), strict=True):
                advance()
                if isinstance(made, processes.Lost | str):
                    print(f"[videos] {item.path} is left out: {made}", file=sys.stderr)
                    continue
                histogram = np.load(job[1].with_suffix(".npy"))
                writer.add({}, {settings.camera: job[1].with_suffix(".mp4")}, task, {settings.camera: histogram},
                           {"source": item.name, "meta": json.dumps({"every": settings.every})}, count=made)
                used += 1
        if not used:
            raise ConfigError(f"none of {len(jobs)} videos could be read; see the messages above")
        writer.close()
        os.rename(stage / "dataset", out)
    finally:
        writer.abort()
    shutil.rmtree(stage)


def _instructed(sources: Sequence[Path | str], camera: str, table: Path | str, default: str) -> list[tuple[Item, str]]:
    """Every video and its instruction."""
    named = _read(Path(table)) if table else {}
    found: list[tuple[Item, str]] = []
    used: dict[str, Path] = {}
    for source in map(Path, sources):
        if (source / "meta" / "info.json").exists():
            d = Dataset(source)
            found += zip(find_videos([source], (camera,)), (e.task for e in d.episodes), strict=True)
        else:
            for item in find_videos([source]):
                if item.name in named and used.setdefault(item.name, item.path) != item.path:
                    raise ConfigError(f"{table}: {item.name!r} is {used[item.name]} and {item.path}; give the folder "
                                      "above both, or import them apart and merge")
                found.append((item, named.get(item.name, default)))
    if strange := set(named) - set(used):
        raise ConfigError(f"{table}: there is no video {min(strange)!r}; name paths below the folder that is given")
    missing = [item.path for item, task in found if not task]
    if missing:
        raise ConfigError(f"{len(missing)} of {len(found)} videos have no instruction, the first is {missing[0]}; name "
                          "it in the CSV file, or say one for all the others (--instruction)")
    return found


def _read(path: Path) -> dict[str, str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"video", "instruction"} <= set(rows.fieldnames or ()):
                raise ConfigError(f"{path}: its first line must name the columns video and instruction, it says "
                                  f"{', '.join(rows.fieldnames or ()) or 'nothing'}")
            said: dict[str, str] = {}
            for row in rows:
                text = (row["instruction"] or "").strip()
                if said.setdefault(row["video"], text) != text:
                    raise ConfigError(f"{path}: {row['video']!r} has two instructions, {said[row['video']]!r} and "
                                      f"{text!r}; leave one")
            return said
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a CSV file with the columns video, instruction") \
            from None


def _name(item: Item) -> str:
    """Of the files of a video, the same in every run."""
    status = item.path.stat()
    key = f"{item.path.resolve()} {item.begin} {item.end} {status.st_size} {status.st_mtime_ns}"
    return hashlib.sha256(key.encode()).hexdigest()[:20]


def _cut(item: Item, path: Path, settings: VideoSettings) -> int | str:
    """Writes PATH.mp4, PATH.npy (histogram) and PATH.json, if they are not there; number of frames, or why none."""
    import av

    note = path.with_suffix(".json")
    if note.exists():
        return json.loads(note.read_text())
    statistics = ImageStatistics()
    encoder = VideoEncoder(path.with_suffix(".mp4"), settings.fps, Codec())
    try:
        for frame in itertools.islice(grid_frames(item, settings.fps), 0, None, settings.every):
            picture = square(upright(frame), settings.size)
            if encoder.frames % _STATISTICS_EVERY == 0:
                statistics.update(picture)
            encoder.add(picture)
    except (OSError, av.error.FFmpegError, IndexError) as error:
        if full(error):
            raise
        with contextlib.suppress(VideoError):  # it has no frame
            encoder.close()
        return " ".join(str(error).split())
    encoder.close()
    np.save(path.with_suffix(".npy"), statistics.histogram)
    write_whole(note, json.dumps(encoder.frames))
    return encoder.frames


def main(
    sources: Sequence[str], out: str, instructions: str, instruction: str, fps: float, every: int, size: int,
    camera: str, workers: int,
) -> None:
    """The command `vipra dataset import`."""
    settings = build(VideoSettings, {"fps": fps, "every": every, "size": size, "camera": camera}, "dataset import")
    made = import_videos(sources, out, settings, instructions, instruction, workers)
    print(f"{made.path}: {len(made.episodes)} episodes, {len(made)} frames, "
          f"{len({e.task for e in made.episodes})} instructions")
