"""From one bag to the results of one episode: numbers, a video per camera, findings.

This is the unit of work of a conversion: it needs the bag, a folder and the settings, nothing else, so it
runs in any process on any machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vipra_ros.config import param
from vipra_ros.data.bags import EpisodeReader
from vipra_ros.data.checks import Flag, FrozenCheck, Limits, check
from vipra_ros.data.episode import Episode, load_episode
from vipra_ros.data.resample import EpisodeError, Resampling
from vipra_ros.data.topics import Topics
from vipra_ros.data.video import Codec, VideoEncoder

_FORMAT = 1  # of the results of one bag; older ones are made again
_STATISTICS_FRAMES = 12  # pictures of an episode that its pixel statistics are made of


@dataclass(frozen=True)
class ConvertSettings:
    """Everything the result depends on."""

    resampling: Resampling = field(default_factory=Resampling)
    codec: Codec = field(default_factory=Codec)
    limits: Limits = field(default_factory=Limits)
    topics: Topics = field(default_factory=Topics)
    cameras: tuple[str, ...] = param((), doc="cameras to convert; all of the first bag when empty")
    namespace: str = param("", doc="ROS namespace the topics are in")
    keep_failed: bool = param(False, doc="also convert episodes labelled success = false")
    refuse: tuple[str, ...] = param((), doc="codes of findings that leave an episode out, e.g. frozen, jump")

    def digest(self) -> str:
        """Changes with any setting: results made with others are not reused."""
        text = json.dumps([_FORMAT, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def convert_episode(bag: Path, folder: Path, settings: ConvertSettings) -> dict[str, Any]:
    """Work on one bag: writes `folder` with data.npz, CAMERA.mp4 and result.json, and returns the latter.

    Never raises on what a bag contains: the result's `status` and `reason` tell. Results that are there
    already, made of the same bag with the same settings, are returned as they are.
    """
    key = {"settings": settings.digest(), "bag": _signature(bag)}
    kept = folder / "result.json"
    if kept.exists():
        result = json.loads(kept.read_text(encoding="utf-8"))
        if result.get("key") == key:
            return result
    shutil.rmtree(folder, ignore_errors=True)
    partial = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    result: dict[str, Any] = {"key": key} | blank(bag)
    try:
        with EpisodeReader(bag, namespace=settings.namespace) as reader:
            meta = reader.meta()
            result["meta"] = meta
            if meta.get("success") is False and not settings.keep_failed:
                result |= {"status": "failed", "reason": "success is false"}
            else:
                episode = load_episode(
                    reader, settings.resampling, settings.topics, list(settings.cameras) or None
                )
                _write_results(episode, partial, settings, result)
    except (
        Exception
    ) as error:  # whatever a damaged bag provokes in the libraries below: this bag is out, not the rest
        named = type(error).__module__.startswith("vipra_ros")
        result["reason"] = str(error) if named else f"{type(error).__name__}: {error}"
    (partial / "result.json").write_text(json.dumps(result), encoding="utf-8")
    os.rename(partial, folder)
    return result


def _write_results(episode: Episode, folder: Path, settings: ConvertSettings, result: dict[str, Any]) -> None:
    flags = check(episode, settings.limits)
    histograms, sizes, frozen, seconds = _write_videos(episode, folder, settings)
    flags += frozen
    columns = {"observation.state": episode.state, "action": episode.action, "stamp_ns": episode.stamp_ns}
    columns |= {f"stamp_ns.{c}": episode.image_ns[c][picks] for c, picks in episode.picks.items()}
    np.savez(folder / "data.npz", **columns, **{f"histogram.{c}": h for c, h in histograms.items()})
    refused = [f for f in flags if f.code in settings.refuse]
    result |= {
        "status": "refused" if refused else "converted",
        "reason": refused[0].text if refused else "",
        "flags": [asdict(f) for f in flags],
        "frames": len(episode),
        "video_seconds": seconds,
        "instruction": episode.instruction,
        "joints": list(episode.joint_names),
        "sizes": sizes,
        "duration": len(episode) / episode.fps,
    }


def _write_videos(episode: Episode, folder: Path, settings: ConvertSettings):
    """Decode, check and encode every picture once, streamed."""
    import cv2

    began = time.process_time()
    cv2.setNumThreads(1)
    encoders = {c: VideoEncoder(folder / f"{c}.mp4", episode.fps, settings.codec) for c in episode.picks}
    histograms = {c: np.zeros((3, 256), np.int64) for c in episode.picks}
    checks = {c: FrozenCheck(c, episode.state, p, settings.limits) for c, p in episode.picks.items()}
    every = max(1, len(episode) // _STATISTICS_FRAMES)
    try:
        for camera, index, picture in episode.pictures():
            bgr = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
            if bgr is None:
                raise EpisodeError(
                    f"camera {camera}: picture of frame {index} ({len(picture)} bytes) cannot be decoded; "
                    "it is cut or of a format OpenCV does not know"
                )
            image = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
            encoders[camera].add(image)
            checks[camera].add(index, picture)
            if index % every == 0:
                for channel in range(3):
                    histograms[camera][channel] += np.bincount(image[:, :, channel].ravel(), minlength=256)
        for camera, encoder in encoders.items():
            if encoder.frames != len(episode):
                raise EpisodeError(
                    f"camera {camera}: {encoder.frames} of {len(episode)} pictures could be read"
                )
    finally:
        for encoder in encoders.values():
            with contextlib.suppress(Exception):  # the first error is the one to report
                encoder.close()
    frozen: list[Flag] = [f for c in checks.values() for f in c.flags()]
    return histograms, {c: list(e.size) for c, e in encoders.items()}, frozen, time.process_time() - began


def blank(bag: Path) -> dict[str, Any]:
    """The result of a bag nothing is known of yet."""
    return {
        "bag": str(bag),
        "status": "broken",
        "reason": "",
        "flags": [],
        "frames": 0,
        "video_seconds": 0.0,
        "meta": {},
    }


def _signature(bag: Path) -> list:
    """Size and time of the bag's files: a bag that was recorded again is converted again."""
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in sorted(bag.iterdir()) if f.is_file()]
