"""What of an episode is shown on the report: small pictures and thinned curves."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vipra_ros.data import messages
from vipra_ros.data.measure import at

THUMBNAILS = 6  # per camera
_HEIGHT = 84  # px
_POINTS = 160  # of a curve
#: Episodes shown in full: all with findings up to a number, and some without for comparison.
_FLAGGED, _CLEAN = 80, 12


def thumbnail(image: np.ndarray) -> str:
    """Base64 JPEG of an RGB picture, 84 px high."""
    import cv2

    height, width = image.shape[:2]
    size = (max(1, round(width * _HEIGHT / height)), _HEIGHT)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return base64.b64encode(data.tobytes()).decode()


def look(episode, thumbnails: dict[str, list[str]]) -> dict[str, Any]:
    """Curves of joints and gripper (times in s from the first frame), intervals of pictures, small pictures."""
    start = (episode.stamp_ns[0] - episode.zero_ns) / messages.NS
    times = start + np.linspace(0, len(episode) / episode.fps, min(_POINTS, 4 * len(episode)))
    rank = np.searchsorted(episode.gripper.time, times, side="right").clip(1) - 1
    intervals = {}
    for camera, stamps in episode.image_ns.items():
        steps = np.diff(stamps) / 1e6
        block = max(1, -(-len(steps) // _POINTS))  # the longest of each block, so that no gap is lost
        worst = [float(steps[k : k + block].max()) for k in range(0, len(steps), block)]
        when = (stamps[1:][::block][: len(worst)] - episode.stamp_ns[0]) / messages.NS
        intervals[camera] = [_thin(when, 2), _thin(worst, 1)]
    return {
        "joints": list(episode.joint_names),
        "t": _thin(times - start, 3),
        "measured": [_thin(c, 3) for c in at(episode.measured, times).T],
        "commanded": [_thin(c, 3) for c in at(episode.commanded, times).T],
        "opening": _thin(at(episode.opening, times)[:, 0], 2),
        "gripper": _thin(episode.gripper.value[rank, 0], 2),
        "intervals": intervals,
        "thumbnails": thumbnails,
    }


def _thin(values, digits: int) -> list[float]:
    return np.round(np.asarray(values, float), digits).tolist()


@dataclass
class Looks:
    """The episodes that the report shows in full; memory stays bounded however many there are."""

    shown: dict[int, dict[str, Any]] = field(default_factory=dict)
    left_out: int = 0
    _clean: int = 0

    def take(self, number: int, entry: dict[str, Any], folder: Path) -> None:
        """Keep what `folder` has to show of entry `number`, while there is room for its kind."""
        path = folder / "look.json"
        if not path.exists():
            return
        clean = not entry["flags"] and entry["status"] == "converted"
        room = self._clean < _CLEAN if clean else len(self.shown) - self._clean < _FLAGGED
        if not room:
            self.left_out += 1
            return
        self._clean += clean
        self.shown[number] = json.loads(path.read_text(encoding="utf-8"))
