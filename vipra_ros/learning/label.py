"""Pseudo-labels: the latent actions that follow each frame of a video, in parquet shards. `label(source, latent, out)`.

For frame t: codes of the 14 transitions of t, t+1, .., t+14 and the index of frame t+14, both with the last frame
repeated at a video's end. Frames are decoded once and pass the image encoder once; only the spatio-temporal blocks see
a frame in every window it is part of. A shard is some videos, written beside and renamed: a killed run goes on at the
first missing one. Of n processes that a launcher starts (RANK, WORLD_SIZE) each takes every n-th shard; on a Ray
cluster a shard is a job.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from vipra_ros.config import ConfigError
from vipra_ros.data.clips import Item, find_videos, grid_frames, square, upright
from vipra_ros.data.dataset import Dataset
from vipra_ros.learning import precision
from vipra_ros.learning.footage import rate_of
from vipra_ros.learning.latent import load_latent, load_notes
from vipra_ros.learning.parallel import device as own_device
from vipra_ros.learning.tokenise import fingerprint
from vipra_ros.model.latent import LatentActions, to_frames
from vipra_ros.progress import Pace, bar, duration
from vipra_ros.whole_file import in_whole, write_whole

STEPS = 14


@torch.inference_mode()
def codes_of(
    model: LatentActions, frames: Iterator[np.ndarray], stride: int = 1, steps: int = STEPS, batch: int = 16,
    every: int = 1,
) -> np.ndarray:
    """Labels of one video: int8 (labelled frames, steps * N), row-major (step, code).

    Args:
        frames: T pictures uint8 (S, S, 3) in order, read as they are needed.
        stride: frames from one of a window to the next.
        every: label frames 0, every, 2 every, ... < T.
    """
    device = next(model.parameters()).device
    reach = steps * stride
    kept: list[torch.Tensor] = []  # features of frames first .. first + len - 1
    first = done = read = 0
    rows: list[np.ndarray] = []

    def flush(count: int) -> None:
        nonlocal done, first
        starts = torch.tensor(range(-(-done // every) * every, done + count, every), dtype=torch.long)
        at = starts[:, None] + torch.arange(0, reach + 1, stride)
        at = at.clamp(max=read - 1) - first
        windows = torch.stack(kept)[at]
        if len(at):
            rows.append(model.quantiser.nearest(model.inverse(windows)).flatten(1).to(torch.int8).cpu().numpy())
        done += count
        del kept[: done - first]
        first = done

    pictures: list[np.ndarray] = []

    def take() -> None:
        nonlocal read
        if pictures:
            kept.extend(model.inverse.features(to_frames(torch.from_numpy(np.stack(pictures))).to(device)))
            read += len(pictures)
            pictures.clear()

    for picture in frames:
        pictures.append(picture)
        if len(pictures) == batch:
            take()
            while read - done > reach + batch:
                flush(batch)
    take()
    while done < read:
        flush(min(batch, read - done))
    return np.concatenate(rows) if rows else np.zeros((0, steps * model.config.codes_per_step), np.int8)


def future(count: int, stride: int = 1, steps: int = STEPS, every: int = 1) -> np.ndarray:
    """Index of the frame that the codes of each labelled one of `count` frames lead to: int64 (labelled frames,)."""
    return np.minimum(np.arange(0, count, every) + steps * stride, count - 1)


@dataclass(frozen=True)
class _Work:
    """What a shard is made of; a process on another machine needs no more."""

    source: Path
    latent: Path
    out: Path
    camera: str
    stride: int
    every: int
    videos_per_shard: int
    #: Of the latent actions, `label` has seen them: another machine must not find others there.
    latent_hash: str

    def path(self, number: int) -> Path:
        """Of a shard."""
        return self.out / f"labels-{number:05d}.parquet"


def label(
    source: str | Path,
    latent: str | Path,
    out: str | Path,
    camera: str = "front",
    stride: int = 0,
    every: int = 1,
    videos_per_shard: int = 50,
    rank: int | None = None,
    world: int | None = None,
    ray: str = "",
) -> Path:
    """Label a data set or a folder of videos; returns `out` with labels-00000.parquet, ... and labels.json.

    Args:
        latent: folder of `vipra train latent`.
        camera: of a data set.
        every: label one frame in so many; pre-training then begins at those only.
        stride: frames between steps; 0 takes the step in time the latent actions were trained at.
        rank, world: this process and their number; default: as the launcher says (RANK, WORLD_SIZE), else 0 of 1.
        ray: address of a Ray cluster that does the work instead, a shard at a time, on its GPUs if it has any.

    Raises:
        ConfigError: every or stride is impossible, no latent actions there, `out` has labels of other ones or of
            another source, a video of a data set cannot be read, or a shard is lost.
    """
    if every < 1 or stride < 0:
        raise ConfigError(f"every = {every}, stride = {stride}: give every from 1 on and stride from 0 on (0: the "
                          "step in time of the latent actions)")
    source, latent, out = Path(source), Path(latent), Path(out)
    rank = int(os.environ.get("RANK", 0)) if rank is None else rank
    world = int(os.environ.get("WORLD_SIZE", 1)) if world is None else world
    shape, notes = load_notes(latent)
    is_set = (source / "meta" / "info.json").exists()
    items = find_videos([source], (camera,))
    head = {
        "steps": STEPS,
        "codes_per_step": shape.codes_per_step,
        "codebook": shape.codebook_size,
        "dataset": str(source),
        "data": fingerprint(Dataset(source)) if is_set else "",
        "camera": camera if is_set else "",
        "latent_hash": notes["hash"],
        "losses": {"flow_estimator": notes["losses"]["flow"], "perceptual_loss": notes["losses"]["perceptual"]},
        "stride": stride,
        "every": every,
        "videos": len(items),
        "videos_per_shard": videos_per_shard,
    }
    work = _Work(*(p.resolve() for p in (source, latent, out)), camera, stride, every, videos_per_shard, notes["hash"])
    _reader(work)  # before `out` is promised to these latent actions
    _announce(out, head)
    shards = -(-len(items) // videos_per_shard)
    todo = [n for n in range(shards)[rank::world] if not work.path(n).exists()]
    began, frames, videos, lost, pace = time.monotonic(), 0, 0, [], Pace()
    total = sum(min(videos_per_shard, len(items) - n * videos_per_shard) for n in todo)
    pace.left(began, 0.0)
    with bar("labelling videos", total, show=rank == 0) as advance:
        if ray:
            from vipra_ros.data import cluster

            made = cluster.results(_shard, ((work, n) for n in todo), ray, gpu=True)
        else:
            made = (((work, n), _shard(work, n, advance)) for n in todo)
        for (_, number), result in made:
            if isinstance(result, Exception):
                lost.append(f"shard {number + 1}: {result}")
                print(f"[label] {lost[-1]}", file=sys.stderr, flush=True)
                continue
            frames, videos = frames + result[0], videos + result[1]
            if ray:
                advance(result[1])
            speed = frames / max(1e-9, time.monotonic() - began)
            left = pace.left(time.monotonic(), videos / total)
            print(f"[label] shard {number + 1}/{shards}: {frames} frames, {speed:.0f}/s"
                  + (f", left {duration(left)}" if left else ""), file=sys.stderr, flush=True)
    print(f"labels: {frames} frames of {videos} videos labelled now -> {out}")
    if lost:
        raise ConfigError(f"{len(lost)} of {len(todo)} shards are missing, the first is {lost[0]}; run the same "
                          "command again, it goes on with them")
    return out


@lru_cache(1)
def _reader(work: _Work) -> tuple[LatentActions, dict, list[Item], float]:
    """What a process reads once: the model where it computes, its notes, the videos, their rate in a data set or 0.

    Raises:
        ConfigError: these are not the latent actions the work is about.
    """
    model, notes = load_latent(work.latent)
    if notes["hash"] != work.latent_hash:
        raise ConfigError(f"{work.latent} changed while it was used; delete {work.out} and label again")
    model.to(own_device())
    is_set = (work.source / "meta" / "info.json").exists()
    return model, notes, find_videos([work.source], (work.camera,)), Dataset(work.source).fps if is_set else 0.0


def _shard(work: _Work, number: int, advance: Callable[[], None] = lambda: None) -> tuple[int, int]:
    """Labels some videos and writes them; (labelled frames, videos). advance: called after each."""
    model, notes, items, rate = _reader(work)
    # As precise as in training; the choice of the nearest code is float32.
    reading = precision.autocast(own_device(), notes["training"]["loop"]["bf16"])
    start = number * work.videos_per_shard
    table = {"episode_index": [], "frame_index": [], "codes": [], "future_index": []}
    episodes = range(start, min(start + work.videos_per_shard, len(items)))
    for episode in episodes:
        with reading:
            codes, ahead = _video(items[episode], model, notes, rate, work.stride, work.every)
        table["episode_index"].append(np.full(len(codes), episode))
        table["frame_index"].append(np.arange(len(codes)) * work.every)
        table["codes"].append(codes)
        table["future_index"].append(ahead)
        advance()
    whole = {k: np.concatenate(v) for k, v in table.items()}
    _write_shard(work.path(number), whole)
    return len(whole["codes"]), len(episodes)


def _video(item: Item, model: LatentActions, notes: dict, rate: float, stride: int,
           every: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes of a video and where they lead to; a file that cannot be read is named and gives none.

    Raises:
        ConfigError: it is of a data set (`rate`), whose frames all need labels.
    """
    import av

    read = 0

    def pictures(fps: float) -> Iterator[np.ndarray]:
        nonlocal read
        for frame in grid_frames(item, fps):
            read += 1
            yield square(upright(frame), model.config.image_size)

    try:
        fps = rate or rate_of(item)
        # The codes mean motion over the time step they were learnt at, whatever the rate of this video.
        step = stride or (max(1, round(notes["stride"] * fps / notes["fps"])) if notes["fps"] else notes["stride"])
        codes = codes_of(model, pictures(fps), step, every=every)
        return codes, future(read, step, every=every)
    except (OSError, av.error.FFmpegError, IndexError) as error:
        if rate:
            raise ConfigError(f"{item.path} cannot be read: {error}; restore it, then run the same command again, it "
                              "goes on") from None
        print(f"[label] {item.path} is left out: {error}", file=sys.stderr)
        return np.zeros((0, STEPS * model.config.codes_per_step), np.int8), np.zeros(0, np.int64)


def _write_shard(path: Path, table: dict[str, np.ndarray]) -> None:
    """The labels of some videos, in whole or not at all: a shard that is there is not made again."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    codes = table["codes"]
    offsets = pa.array(np.arange(len(codes) + 1) * codes.shape[1], pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pa.array(codes.ravel(), pa.int8()))
    columns = {k: lists if k == "codes" else pa.array(v, pa.int64()) for k, v in table.items()}
    with in_whole(path) as beside:
        pq.write_table(pa.table(columns), beside, compression="zstd")


def _announce(out: Path, head: dict) -> None:
    out.mkdir(parents=True, exist_ok=True)
    note = out / "labels.json"
    if note.exists():
        known = json.loads(note.read_text())
        # Folders of earlier versions: without `every` all frames are labelled, without `data` nobody knows.
        other = [k for k in head if known.get(k, 1 if k == "every" else head[k]) != head[k]]
        if other:
            raise ConfigError(
                f"{out} has labels with {other[0]} = {known.get(other[0])!r}, not {head[other[0]]!r}; "
                "give another folder or delete it"
            )
        return
    write_whole(note, json.dumps(head, indent=1), shared=True)
