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

from vipra_ros.config import ConfigError, build, param, read_yaml
from vipra_ros.control.chunk import ACTION_SPACES
from vipra_ros.control.profile import load_profile
from vipra_ros.data import measure
from vipra_ros.data.bags import EpisodeReader
from vipra_ros.data.checks import CODES, Flag, FrozenCheck, Limits, SkewCheck, check
from vipra_ros.data.episode import Episode, load_episode
from vipra_ros.data.looks import THUMBNAILS, look, thumbnail
from vipra_ros.data.mapping import TopicMap
from vipra_ros.data.resample import EpisodeError, Resampling
from vipra_ros.data.stage import full
from vipra_ros.data.statistics import STATISTICS_FRAMES, ImageStatistics
from vipra_ros.data.video import Codec, VideoEncoder
from vipra_ros.machine import peak_memory

_FORMAT = 2  # of the results of one bag; older ones are made again


@dataclass(frozen=True)
class ConvertSettings:
    """Everything the result depends on."""

    resampling: Resampling = field(default_factory=Resampling)
    codec: Codec = field(default_factory=Codec)
    limits: Limits = field(default_factory=Limits)
    topics: TopicMap = field(default_factory=TopicMap)
    action_space: str = param(
        "joint_position", doc="meaning of the action columns", choices=ACTION_SPACES
    )
    profile: str = param("fr3", doc="robot profile, for ee_delta")
    cameras: tuple[str, ...] = param((), doc="cameras to convert; when empty all, and every bag must have the same")
    namespace: str = param("", doc="ROS namespace the topics are in")
    keep_failed: bool = param(False, doc="also convert episodes labelled success = false")
    refuse: tuple[str, ...] = param((), doc="codes of findings that leave an episode out, e.g. frozen, jump")

    def __post_init__(self) -> None:
        unknown = sorted(set(self.refuse) - set(CODES))
        if unknown:
            raise ConfigError(f"refuse: no finding {unknown[0]!r}; there are {', '.join(CODES)}")

    def digest(self) -> str:
        """Changes with any setting: results made with others are not reused."""
        text = json.dumps([_FORMAT, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_settings(path: str | Path = "", **changes: Any) -> ConvertSettings:
    """Settings of the YAML file `path`, or the defaults, with changes.

    Raises:
        ConfigError: an unknown key or a value that cannot be used.
    """
    return build(ConvertSettings, {**(read_yaml(path) if path else {}), **changes}, str(path or "settings"))


def convert_episode(bag: Path, folder: Path, settings: ConvertSettings) -> dict[str, Any]:
    """Work on one bag: writes `folder` with data.npz, CAMERA.mp4 and result.json, and returns the latter.

    Never raises on what a bag contains: the result's `status` and `reason` tell. Results that are there
    already, made of the same bag with the same settings, are returned as they are.

    Raises:
        OSError: the disk of `folder` is full.
    """
    began = time.monotonic()
    key = {"settings": settings.digest(), "bag": signature(bag)}
    kept = folder / "result.json"
    if kept.exists():
        result = json.loads(kept.read_text(encoding="utf-8"))
        # What is broken may have been the disk: it is tried again.
        if result.get("key") == key and result["status"] != "broken":
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
                    reader,
                    settings.resampling,
                    settings.topics,
                    list(settings.cameras) or None,
                    settings.action_space,
                    load_profile(settings.profile) if settings.action_space == "ee_delta" else None,
                )
                result["meta"] = episode.meta
                if episode.meta.get("success") is False and not settings.keep_failed:  # as a mapped topic says
                    result |= {"status": "failed", "reason": "success is false"}
                else:
                    _write_results(episode, partial, settings, result)
    except Exception as error:  # whatever a damaged bag provokes in the libraries below: this bag is out, not the rest
        if full(error):
            raise
        named = type(error).__module__.startswith("vipra_ros")
        text = " ".join(str(error).split())  # parsers below answer in several lines
        result["reason"] = text if named else f"{type(error).__name__}: {text}"
    result["seconds"] = round(time.monotonic() - began, 4)
    result["rss_mb"] = round(peak_memory(), 1)  # of this process so far
    (partial / "result.json").write_text(json.dumps(result), encoding="utf-8")
    os.rename(partial, folder)
    return result


def _write_results(episode: Episode, folder: Path, settings: ConvertSettings, result: dict[str, Any]) -> None:
    flags = check(episode, settings.limits)
    seen = _write_videos(episode, folder, settings)
    flags += seen.flags
    columns = {"observation.state": episode.state, "action": episode.action, "stamp_ns": episode.stamp_ns}
    columns |= {f"stamp_ns.{c}": episode.image_ns[c][picks] for c, picks in episode.picks.items()}
    np.savez(folder / "data.npz", **columns, **{f"histogram.{c}": h for c, h in seen.histograms.items()})
    (folder / "look.json").write_text(json.dumps(look(episode, seen.thumbnails)), encoding="utf-8")
    refused = [f for f in flags if f.code in settings.refuse]
    result |= {
        "status": "refused" if refused else "converted",
        "reason": refused[0].text if refused else "",
        "flags": [asdict(f) for f in flags],
        "frames": len(episode),
        "video_seconds": seen.video_seconds,
        "encode_seconds": seen.encode_seconds,
        "figures": measure.figures(episode) | {"skew": seen.skew},
        "instruction": episode.instruction,
        "joints": list(episode.joint_names),
        "actions": list(episode.action_names),
        "sizes": seen.sizes,
    }


@dataclass
class _Seen:
    """What the pictures of an episode told."""

    histograms: dict[str, np.ndarray]
    flags: list[Flag] = field(default_factory=list)
    skew: dict[str, dict[str, float]] = field(default_factory=dict)
    sizes: dict[str, list[int]] = field(default_factory=dict)
    thumbnails: dict[str, list[str]] = field(default_factory=dict)
    video_seconds: float = 0.0
    encode_seconds: float = 0.0


def _write_videos(episode: Episode, folder: Path, settings: ConvertSettings) -> _Seen:
    """Decode, check and encode every picture once, streamed."""
    import cv2

    began, clock = time.process_time(), time.process_time
    cv2.setNumThreads(1)
    cameras, limits = list(episode.picks), settings.limits
    encoders = {c: VideoEncoder(folder / f"{c}.mp4", episode.fps, settings.codec) for c in cameras}
    pixels = {c: ImageStatistics() for c in cameras}
    seen = _Seen({c: s.histogram for c, s in pixels.items()}, thumbnails={c: [] for c in cameras})
    frozen = {c: FrozenCheck(c, episode.state, p, limits) for c, p in episode.picks.items()}
    skew = {c: SkewCheck(c, episode, limits) for c in cameras}
    every = max(1, len(episode) // STATISTICS_FRAMES)
    shown = set(np.linspace(0, len(episode) - 1, THUMBNAILS).astype(int).tolist())
    try:
        for camera, index, picture in episode.pictures():
            image = episode.decode(camera, index, picture)
            before = clock()
            encoders[camera].add(image)
            seen.encode_seconds += clock() - before
            frozen[camera].add(index, picture)
            skew[camera].add(index, image)
            if index % every == 0:
                pixels[camera].update(image)
            if index in shown:
                seen.thumbnails[camera].append(thumbnail(image))
        for camera, encoder in encoders.items():
            if encoder.frames != len(episode):
                raise EpisodeError(
                    f"camera {camera}: {encoder.frames} of {len(episode)} pictures could be read"
                )
    finally:
        for encoder in encoders.values():
            before = clock()
            with contextlib.suppress(Exception):  # the first error is the one to report
                encoder.close()
            seen.encode_seconds += clock() - before
    for camera in cameras:
        seen.flags += [*frozen[camera].flags(), *skew[camera].flags()]
        if skew[camera].found is not None:
            shift, r, _ = skew[camera].found
            seen.skew[camera] = {"s": round(shift, 4), "r": round(r, 3)}
        seen.sizes[camera] = list(encoders[camera].size)
    seen.video_seconds = clock() - began
    return seen


def blank(bag: Path) -> dict[str, Any]:
    """The result of a bag nothing is known of yet."""
    return {
        "bag": str(bag),
        "status": "broken",
        "reason": "",
        "flags": [],
        "frames": 0,
        "video_seconds": 0.0,
        "encode_seconds": 0.0,
        "figures": {},
        "meta": {},
    }


def signature(bag: Path) -> list:
    """Size and time of the bag's files: a bag that was recorded again is converted again."""
    files = [bag] if bag.is_file() else sorted(f for f in bag.iterdir() if f.is_file())
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]
