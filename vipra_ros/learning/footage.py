"""Frames of videos and data sets, decoded once into one file and drawn at random as clips.

Training on video would decode every frame hundreds of times; a square picture of 64 px is 12 kB, so it is kept
instead. `frames.u8` holds all pictures behind one another, `frames.json` says which video lies where; the file
grows video by video, and a killed run goes on behind the last complete one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vipra_ros.config import ConfigError
from vipra_ros.data.clips import Item, find_videos, grid_frames, square, upright
from vipra_ros.data.dataset import Dataset
from vipra_ros.learning.tokenise import fingerprint
from vipra_ros.whole_file import write_whole

_STATE = "observation.state"


@dataclass(frozen=True)
class Shot:
    """One video: where it lies among the frames, and the episode it is, if any."""

    name: str
    first: int
    count: int
    fps: float
    group: str


@dataclass
class Footage:
    """All frames. images uint8 (n, S, S, 3), memory-mapped; joints float32 (n, J) where every video has some."""

    images: np.ndarray
    shots: list[Shot]
    joints: np.ndarray | None
    identity: str
    held: frozenset[str] = field(default_factory=frozenset)

    def starts(self, held: bool, span: int) -> np.ndarray:
        """Frames at which a clip of `span` frames may begin, of the held-out videos or of the others."""
        ranges = [
            np.arange(s.first, s.first + s.count - span + 1)
            for s in self.shots
            if (s.group in self.held) == held and s.count >= span
        ]
        return np.concatenate(ranges) if ranges else np.zeros(0, np.int64)

    def clips(self, starts: np.ndarray, frames: int, stride: int) -> Tensor:
        """uint8 (b, frames, S, S, 3)."""
        rows = np.asarray(starts)[:, None] + np.arange(frames) * stride
        return torch.from_numpy(self.images[rows])


def rate_of(item: Item) -> float:
    """Hz, the rate a video says it has."""
    import av

    with av.open(str(item.path)) as container:
        return float(container.streams.video[0].average_rate or 15.0)


def open_footage(
    sources: Sequence[Path | str],
    folder: Path,
    size: int,
    fps: float = 0.0,
    cameras: Sequence[str] = (),
    most: int = 0,
    holdout: float = 0.05,
    seed: int = 0,
) -> Footage:
    """Decode what `folder` does not hold yet, and open it.

    Args:
        size: px, side of the square pictures.
        fps: Hz at which videos are looked at; 0 takes each one's own rate.
        cameras: of data sets; all when empty.
        most: frames at which decoding stops, videos in random order; 0 takes all.
        holdout: share of the videos kept for evaluation; an episode's cameras stay together.

    Raises:
        ClipError, DatasetError: nothing to read. ConfigError: the folder holds frames of something else.
    """
    listed = [entry for number, source in enumerate(map(Path, sources))
              for entry in _items(source, cameras, f"{number}:" * (len(sources) > 1))]
    order = np.random.default_rng(seed).permutation(len(listed)) if most else np.arange(len(listed))
    about = [size, fps, most, seed if most else 0, [i.name for i, _, _ in listed]]
    folder.mkdir(parents=True, exist_ok=True)
    # Folders of earlier versions say names alone.
    identities = [json.dumps([*about, _data(listed)]), json.dumps(about)]
    shots, identity = _decode([listed[i] for i in order], folder, size, fps, most, identities)
    if not shots:
        raise ConfigError(f"{', '.join(map(str, sources))}: no video could be read; see the messages above")
    total = shots[-1].first + shots[-1].count
    images = np.memmap(folder / "frames.u8", np.uint8, "r", shape=(total, size, size, 3))
    groups = sorted({s.group for s in shots})
    if len(groups) == 1:
        print("one video only: it is trained on and evaluated on", file=sys.stderr)
    # At random: episodes lie task by task.
    drawn = np.random.default_rng(seed).permutation(len(groups))[: max(1, round(holdout * len(groups)))]
    held = [groups[i] for i in drawn] if len(groups) > 1 else []
    return Footage(images, shots, _joints(listed, shots, total), identity, frozenset(held))


def _items(source: Path, cameras: Sequence[str], before: str):
    """(video, name shared by the cameras of an episode, data set or None); `before` tells names of sources apart."""
    d = Dataset(source) if (source / "meta" / "info.json").exists() else None
    for item in find_videos([source], cameras):
        group = f"{source.name}/{item.name.rsplit('/', 1)[-1]:0>8}" if d else f"{source}/{item.name}"
        yield item._replace(name=before + item.name), before + group, d


def _data(listed) -> list:
    """What changes when data sets or files of the same names are others."""
    sets = {id(d): d for _, _, d in listed if d is not None}
    files = [item.path.stat() for item, _, d in listed if d is None]
    return [*map(fingerprint, sets.values()), *([f.st_size, f.st_mtime_ns] for f in files)]


def _decode(listed, folder: Path, size: int, fps: float, most: int, identities: list[str]) -> tuple[list[Shot], str]:
    """All videos, and which of the `identities` the folder has; a new one gets the first."""
    import av

    data, note = folder / "frames.u8", folder / "frames.json"
    known = {"identity": identities[0], "shots": []}
    if note.exists() and data.exists():
        known = json.loads(note.read_text())
    if known["identity"] not in identities:
        raise ConfigError(f"{folder} holds frames of other videos or another size; delete it to make them again")
    shots = [Shot(*s) for s in known["shots"]]
    if before := known.get("left_out"):
        print(f"[footage] left out before: {', '.join(before[:5])}{' ...' if len(before) > 5 else ''} ({len(before)}); "
              f"to try again, delete {folder}", file=sys.stderr)
    done = set(known.get("left_out", [])) | {s.name for s in shots}
    total, noted = sum(s.count for s in shots), len(done)
    with data.open("r+b" if data.exists() else "w+b") as file:
        file.truncate(total * size * size * 3)
        file.seek(0, os.SEEK_END)
        for item, group, _ in listed:
            if item.name in done:
                continue
            if most and total >= most:
                print(f"[footage] {most} frames are reached; the other videos are left out", file=sys.stderr)
                break
            count, rate = 0, fps
            try:
                rate = fps or rate_of(item)
                for frame in grid_frames(item, rate):
                    file.write(square(upright(frame), size).tobytes())
                    count += 1
            except (OSError, av.error.FFmpegError, IndexError) as error:
                print(f"[footage] {item.path} is left out: {error}", file=sys.stderr)
                file.seek(total * size * size * 3)
                file.truncate()
                known.setdefault("left_out", []).append(item.name)
                continue
            shots.append(Shot(item.name, total, count, rate, group))
            total += count
            if len(shots) % 50 == 0:
                _note(file, note, known, shots)
        # Where there is none, the next run tries all of them again. What stands already is not written again: processes
        # that open it side by side would write one file.
        if shots and len(shots) + len(known.get("left_out", [])) > noted:
            _note(file, note, known, shots)
    return shots, known["identity"]


def _note(file, note: Path, known: dict, shots: list[Shot]) -> None:
    file.flush()
    write_whole(note, json.dumps(known | {"shots": [list(vars(s).values()) for s in shots]}))


def _joints(listed, shots: list[Shot], total: int) -> np.ndarray | None:
    """Measured joints of every frame, nearest before; None unless all videos have them."""
    sets = {id(d): d for _, _, d in listed}
    if any(d is None or _STATE not in d.features for d in sets.values()):
        return None
    states = {key: d.numeric(_STATE) for key, d in sets.items()}
    if len({s.shape[1] for s in states.values()}) > 1:
        return None
    of = {item.name: d for item, _, d in listed}
    joints = np.zeros((total, next(iter(states.values())).shape[1]), np.float32)
    for s in shots:
        d = of[s.name]
        episode = d.episodes[int(s.name.rsplit("/", 1)[-1])]
        rows = np.floor(np.arange(s.count) / s.fps * d.fps + 1e-6).astype(int).clip(0, episode.length - 1)
        joints[s.first : s.first + s.count] = states[id(d)][episode.start + rows]
    return joints
