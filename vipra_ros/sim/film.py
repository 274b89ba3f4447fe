"""Frames of a film of an episode: both cameras side by side, the plan drawn over the fixed one."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from vipra_ros.control import kinematics
from vipra_ros.control.profile import RobotProfile

from .projection import Pinhole

#: Side of one picture in the film, px.
SIDE = 384
EXECUTED, AHEAD, WHITE = (255, 210, 0), (170, 170, 255), (255, 255, 255)


def draw_plan(image: np.ndarray, camera: Pinhole, profile: RobotProfile, rows: np.ndarray, execute: int) -> None:
    """Draw where the rows (H, A) of joint positions take the tool onto `image`, in place.

    The rows to execute in yellow with a dot each, the rest in lilac. `camera` is that of `image`.
    """
    points = camera.pixels(kinematics.forward(profile, rows[:, :7])[:, :3, 3])
    if not np.isfinite(points).all():
        return
    pixels = np.round(points).astype(int)
    for k in range(len(pixels) - 1, 0, -1):
        colour = EXECUTED if k < execute else AHEAD
        cv2.line(image, pixels[k - 1].tolist(), pixels[k].tolist(), colour, 2, cv2.LINE_AA)
    for pixel in pixels[:execute]:
        cv2.circle(image, pixel.tolist(), 3, EXECUTED, -1, cv2.LINE_AA)


def enlarged(image: np.ndarray) -> np.ndarray:
    """The picture at `SIDE` x `SIDE`, its pixels kept visible."""
    return cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)


def side_by_side(left: np.ndarray, right: np.ndarray | None, captions: Sequence[str]) -> np.ndarray:
    """One frame (SIDE, 2 SIDE, 3) of two enlarged pictures, with lines of text below."""
    right = np.zeros_like(left) if right is None else right
    frame = np.concatenate([left, right], axis=1)
    top = SIDE - 20 * len(captions) - 6
    frame[top:] //= 3  # a dark strip keeps the text readable over any scene
    for i, text in enumerate(captions):
        cv2.putText(frame, text, (8, top + 18 + 20 * i), cv2.FONT_HERSHEY_SIMPLEX, 0.45, WHITE, 1, cv2.LINE_AA)
    return frame
