"""Videos without labels as one stream of clips: folders of mp4, webm and avi, and LeRobot data sets.

A few files are open at a time, and which one gives the next clip is drawn by the seed: clips of many videos are
mixed, memory holds one window of frames a file, and the place in the stream is a few numbers. Frames are taken at
true times, nearest-before, whatever rate a video has. A file that cannot be read is named and left out.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vipra_ros.config import param
from vipra_ros.data.dataset import Dataset, DatasetError

ENDINGS = (".mp4", ".webm", ".avi", ".mkv", ".mov")
#: s; presentation times are rounded to a stream's time base, grid times are not.
_EPS = 1e-3


class ClipError(RuntimeError):
    """There is nothing to stream; the message says where was looked."""


@dataclass(frozen=True)
class ClipSettings:
    """What a clip is and in which order clips come."""

    size: int = param(128, doc="height and width; the shorter side is scaled, the middle is cut out", unit="px", low=8)
    fps: float = param(15.0, doc="rate at which videos are looked at", unit="Hz", low=0.1, high=240.0)
    frames: int = param(2, doc="frames of a clip", low=1, high=1000)
    stride: int = param(1, doc="steps of 1 / fps from frame to frame of a clip", low=1, high=1000)
    step: int = param(1, doc="steps of 1 / fps from the start of a clip to that of the next of its video", low=1)
    seed: int = param(0, doc="of the order of videos and clips", low=0)
    shuffle: bool = param(True, doc="false: video after video by name")
    open_files: int = param(8, doc="videos that are mixed at a time", low=1, high=256)
    shard: int = param(0, doc="part of the videos that this process streams", low=0)
    shards: int = param(1, doc="number of such parts", low=1)

    @property
    def span(self) -> int:
        """Steps from the first frame of a clip to the last, plus one."""
        return (self.frames - 1) * self.stride + 1


class Clip(NamedTuple):
    """Frames uint8 RGB (T, H, W, 3), the video they are of, and the time of the first one in it, s."""

    frames: np.ndarray
    source: str
    start: float


class Item(NamedTuple):
    """One video: a file, or an episode in one. `begin`, `end`: s in the file; `end` None is its end."""

    path: Path
    begin: float = 0.0
    end: float | None = None
    name: str = ""


def find_videos(sources: Sequence[Path | str], cameras: Sequence[str] = ()) -> list[Item]:
    """Every video below `sources` (files, folders of videos, LeRobot data sets), sorted.

    Args:
        cameras: of data sets; all when empty.

    Raises:
        ClipError: a source is missing, or there is no video at all.
        DatasetError: a data set lacks a camera.
    """
    found = []
    for source in map(Path, sources):
        if not source.exists():
            raise ClipError(f"{source}: no such file or folder; give videos, folders of them, or data sets")
        if (source / "meta" / "info.json").exists():
            found += _episodes(Dataset(source), cameras)
        elif source.is_file():
            found.append(Item(source, name=source.name))
        else:
            paths = sorted(p for p in source.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
            found += [Item(p, name=str(p.relative_to(source))) for p in paths]
    if not found:
        raise ClipError(f"no videos in {', '.join(map(str, sources))}; files end in {', '.join(ENDINGS)}")
    return found


def _episodes(d: Dataset, cameras: Sequence[str]) -> Iterator[Item]:
    for camera in cameras or d.cameras:
        if camera not in d.cameras:
            raise DatasetError(f"{d.path} has no camera {camera!r}; it has {', '.join(d.cameras) or 'none'}")
        for e in d.episodes:
            path, first = d.video_of(camera, e.index)
            name = f"{d.path.name}/{camera}/{e.index}"
            yield Item(path, first / d.fps, (first + e.length) / d.fps, name)


def grid_frames(item: Item, fps: float, first: int = 0) -> Iterator[Any]:
    """The frame (of PyAV) in force at `begin` + k / fps, for k = first, first + 1, ... to the end of `item`.

    Raises:
        OSError, av.error.FFmpegError, IndexError: the file cannot be read, or not to its end.
    """
    for seek in (True, False):  # a file without an index is read from its beginning
        with _opened(item.path) as (container, stream):
            start = float((stream.start_time or 0) * stream.time_base)
            wanted = item.begin + first / fps
            if seek and wanted > 0:
                container.seek(int((wanted + start) / stream.time_base), stream=stream, backward=True)
            source = container.decode(stream)
            before = next(source, None)
            if before is not None and seek and wanted > 0 and _time(before, start) > wanted + _EPS:
                continue
            k, period = first, 1.0 / float(stream.average_rate or fps)
            for frame in source:
                at = _time(frame, start)
                while item.begin + k / fps < at - _EPS:
                    if item.end is not None and item.begin + k / fps > item.end - _EPS:
                        return
                    yield before
                    k += 1
                period, before = max(1e-6, at - _time(before, start)), frame
            if before is None:
                raise IndexError("it holds no frame")
            last = _time(before, start) + period if item.end is None else item.end
            while item.begin + k / fps < last - _EPS:
                yield before
                k += 1
            return


def _time(frame: Any, start: float) -> float:
    """s from the beginning of the stream."""
    if frame.time is None:
        raise IndexError("its frames carry no times")
    return frame.time - start


class _opened:
    """A video file and its stream, closed at the end; one thread: streams are parallel over processes."""

    def __init__(self, path: Path):
        import av

        self._container = av.open(str(path))

    def __enter__(self):
        if not self._container.streams.video:
            raise IndexError("it holds no video")
        stream = self._container.streams.video[0]
        stream.thread_count = 1
        return self._container, stream

    def __exit__(self, *exc: object) -> None:
        self._container.close()


def upright(frame: Any) -> np.ndarray:
    """uint8 RGB (H, W, 3) of a decoded frame, turned as the file says: telephones film lying and note it."""
    picture = frame.to_ndarray(format="rgb24")
    return np.rot90(picture, round(frame.rotation / 90)) if frame.rotation else picture


def square(image: np.ndarray, size: int) -> np.ndarray:
    """The middle square of an image (H, W, 3), scaled to (size, size, 3)."""
    import cv2

    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    cut = image[top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(cut)
    return cv2.resize(cut, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)


def clips_of(item: Item, settings: ClipSettings, first: int = 0) -> Iterator[Clip]:
    """The clips of one video in order of time, from number `first` on; errors as in `grid_frames`."""
    s = settings
    window: deque[np.ndarray] = deque(maxlen=s.span)
    at, seen = first * s.step, 0
    for number, frame in enumerate(grid_frames(item, s.fps, at)):
        picture = square(upright(frame), s.size)
        window.append(picture)
        start = number - s.span + 1
        if start >= 0 and start % s.step == 0:
            frames = np.stack([window[k * s.stride] for k in range(s.frames)])
            yield Clip(frames, item.name, item.begin + (at + start) / s.fps)
        seen = number + 1
    if not first and seen < s.span:
        raise IndexError(f"it has {seen} frames at {s.fps:g} Hz, a clip needs {s.span}")


class ClipStream:
    """One pass over all clips of `items`; iterate it, ask `position`, go on from there another day.

    Args:
        epoch: number of the pass; every one has an order of its own.
        position: of an earlier stream of the same items and settings.
        warn: takes one line about a file that is left out.

    Raises:
        ClipError: `position` is of other videos or settings.
    """

    def __init__(
        self,
        items: Sequence[Item],
        settings: ClipSettings = ClipSettings(),
        epoch: int = 0,
        position: dict[str, Any] | None = None,
        warn: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
    ):
        self.settings, self._warn = settings, warn
        self._items = list(items)[settings.shard :: settings.shards]
        if not self._items:
            raise ClipError(f"shard {settings.shard} of {settings.shards}: {len(items)} videos are too few for it")
        s = settings
        self._identity = [len(self._items), s.size, s.fps, s.frames, s.stride, s.step, s.seed, s.shuffle, s.open_files]
        start = {"identity": self._identity, "epoch": epoch, "next": 0, "open": [], "given": 0, "left_out": 0}
        place = position or start
        if place["identity"] != self._identity:
            raise ClipError("the position is of other videos or settings; begin a new stream")
        self._epoch, self._next, self.given, self.left_out = (place[k] for k in ("epoch", "next", "given", "left_out"))
        self._rng = np.random.default_rng([s.seed, self._epoch])
        self._order = self._rng.permutation(len(self._items)) if s.shuffle else np.arange(len(self._items))
        if "rng" in place:
            self._rng.bit_generator.state = place["rng"]
        self._open: list[tuple[int, int]] = [tuple(o) for o in place["open"]]  # (place in the order, clips given)
        self._readers = [self._read(*o) for o in self._open]

    @property
    def position(self) -> dict[str, Any]:
        """Where the stream stands; JSON values."""
        return {
            "identity": self._identity,
            "epoch": self._epoch,
            "next": self._next,
            "open": [list(o) for o in self._open],
            "given": self.given,
            "left_out": self.left_out,
            "rng": self._rng.bit_generator.state,
        }

    def __iter__(self) -> Iterator[Clip]:
        width = self.settings.open_files if self.settings.shuffle else 1
        while True:
            while len(self._readers) < width and self._next < len(self._order):
                self._open.append((self._next, 0))
                self._readers.append(self._read(self._next, 0))
                self._next += 1
            if not self._readers:
                break
            i = int(self._rng.integers(len(self._readers))) if len(self._readers) > 1 else 0
            clip = next(self._readers[i], None)
            if clip is None:
                del self._readers[i], self._open[i]
                continue
            self._open[i] = (self._open[i][0], self._open[i][1] + 1)
            self.given += 1
            yield clip
        if not self.given:
            raise ClipError(f"none of {len(self._items)} videos gave a clip; the first is {self._items[0].path}")

    def _read(self, place: int, first: int) -> Iterator[Clip]:
        import av

        item = self._items[self._order[place]]
        try:
            yield from clips_of(item, self.settings, first)
        except (OSError, av.error.FFmpegError, IndexError, ValueError) as error:
            self.left_out += 1
            self._warn(f"{item.path} is left out{f' from clip {first} on' if first else ''}: {error}")
