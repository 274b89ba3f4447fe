"""Frames of a data set -> VQ codes on disk, once.

Training reads codes, never pictures: 64 int16 a frame instead of a video decode. Pictures of another size than the
quantiser's are cut and scaled as the policy does it with those of its cameras. The file grows in order and a JSON
beside it says how far it is, so a killed run goes on where it stopped. Versions of the pictures (`augment.py`) are
coded in the same way, into files of their own.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from vipra_ros.config import ConfigError
from vipra_ros.learning.augment import Augmentation, change
from vipra_ros.learning.parallel import device
from vipra_ros.lock import held
from vipra_ros.model.vq import VQ
from vipra_ros.policy.pictures import resize
from vipra_ros.whole_file import write_whole

BATCH = 64


def tokenise(dataset, vq: VQ, out: Path, cameras: tuple[str, ...], identity: str, version: int = 0,
             augmentation: Augmentation = Augmentation()) -> np.ndarray:  # noqa: B008 - frozen
    """Codes int16 (n, cameras, codes per frame) of every frame, memory-mapped from folder `out`.

    Args:
        dataset: an opened data set (vipra_ros.data.dataset.Dataset).
        identity: hash of the quantiser's weights; codes of another one are refused.
        version: of the pictures, made as `augmentation` says; 0 are the pictures as they are.
    """
    out.mkdir(parents=True, exist_ok=True)
    columns = [_camera(dataset, vq, out, camera, identity, version, replace(augmentation, versions=0))
               for camera in cameras]
    return columns[0][:, None] if len(columns) == 1 else np.stack(columns, axis=1)


def fingerprint(dataset) -> str:
    """16 hex digits that change with a data set: its episodes, lengths, tasks, and statistics.

    The statistics tell a conversion of other bags, or of the same ones in another way, from one with as many rows. Not
    the files' bytes: a video that was damaged and is restored is the same data.
    """
    digest = hashlib.sha256(json.dumps([(e.index, e.task, e.length, e.start) for e in dataset.episodes]).encode())
    statistics = dataset.path / "meta" / "stats.json"
    if statistics.exists():  # data sets of others may come without
        digest.update(statistics.read_bytes())
    return digest.hexdigest()[:16]


def quantiser_hash(vq: VQ) -> str:
    """16 hex digits over all weights and the codebook."""
    digest = hashlib.sha256()
    for name, value in sorted(vq.state_dict().items()):
        digest.update(name.encode() + value.contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def _camera(dataset, vq: VQ, out: Path, camera: str, identity: str, version: int, how: Augmentation) -> np.ndarray:
    total = len(dataset)
    wanted = dict(
        camera=camera, vq=identity, dataset=fingerprint(dataset), frames=total, codes=vq.config.codes_per_frame
    )
    name = camera
    if version:
        wanted |= {"version": version, "augmentation": asdict(how)}
        name = f"{camera}-{version}-{hashlib.sha256(json.dumps(asdict(how)).encode()).hexdigest()[:8]}"
    with held(out / f"{name}.lock", wait=True):  # of runs that share the folder one codes, the others read
        _code(dataset, vq, out / name, camera, wanted, version, how)
    return np.load(out / f"{name}.npy", mmap_mode="r")


def _code(dataset, vq: VQ, stem: Path, camera: str, wanted: dict, version: int, how: Augmentation) -> None:
    """What is missing of the codes in `stem`.npy; `stem`.json says how far they are."""
    total, name, out = wanted["frames"], stem.name, stem.parent
    path, note, done = out / f"{name}.npy", out / f"{name}.json", 0
    if note.exists() and path.exists():
        known = json.loads(note.read_text())
        done = known.pop("done")
        if known != wanted:
            raise ConfigError(f"{out}: codes of another data set or quantiser; delete the folder to make them again")
    mode = "w+" if not done else "r+" if done < total else "r"
    shape = None if done else (total, vq.config.codes_per_frame)
    codes = np.lib.format.open_memmap(path, mode, None if done else np.int16, shape)
    # LWM's quantiser takes seconds a frame on a few cores.
    where = device() if done < total else "cpu"
    vq.eval().to(where)
    began, first, shown = time.monotonic(), done, 0.0
    batch: list[np.ndarray] = []

    def flush() -> None:
        nonlocal done, shown
        codes[done : done + len(batch)] = vq.encode(torch.from_numpy(np.stack(batch)).to(where)).cpu().numpy()
        done += len(batch)
        batch.clear()
        if time.monotonic() - shown > 10.0 or done == total:
            shown = time.monotonic()
            codes.flush()
            write_whole(note, json.dumps(wanted | {"done": done}))
            rate = (done - first) / max(time.monotonic() - began, 1e-9)
            print(f"[tokenise] {name} {done}/{total} frames  {rate:.0f}/s", file=sys.stderr, flush=True)

    if done < total:
        pictures = dataset.frames(camera, done)
        for image in _changed(dataset, pictures, camera, vq.config.image_size, version, how):
            batch.append(image)
            if len(batch) == BATCH:
                flush()
        if batch:
            flush()
    vq.to("cpu")  # where hashes and checkpoints are made of it
    if done != total:
        raise ConfigError(f"{dataset.path}: camera {camera} has {done} frames, the table {total} rows; convert again")


def _changed(dataset, frames: Iterable[tuple[int, np.ndarray]], camera: str, size: int, version: int,
             how: Augmentation) -> Iterator[np.ndarray]:
    """The pictures in the quantiser's size, each episode's changed in its own way."""
    episodes = sorted(dataset.episodes, key=lambda e: e.start)
    starts, last, apply = [e.start for e in episodes], -1, None
    for number, image in frames:
        image = resize(image, size)
        if version:
            here = bisect_right(starts, number) - 1
            if here != last:
                last, apply = here, change(how, version, episodes[here].index, dataset.cameras.index(camera))
            image = apply(image)
        yield image
