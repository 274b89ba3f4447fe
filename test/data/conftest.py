"""Synthetic episodes with known contents, written by the real writer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from vipra_ros.data import messages as m
from vipra_ros.data.bag_writer import EpisodeWriter

ARM = [f"fr3_joint{i + 1}" for i in range(7)]
START = 1_000_000_000  # ns
SIZE = 64  # px


def joints(t: float) -> np.ndarray:
    """Measured joints at t s after the start; smooth, every joint moves."""
    return 0.4 * np.sin(1.3 * t + 0.3 * np.arange(7))


def command(t: float) -> np.ndarray:
    """Commanded joints: 40 ms ahead of the measured ones."""
    return joints(t + 0.04)


def picture(i: int, shift: int = 0) -> np.ndarray:
    """RGB picture number i: a gradient with a coloured square that moves, so that no two are alike."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    image = np.stack([x * 2, y * 2, np.full_like(x, 90)], axis=-1).astype(np.uint8)
    at = (3 * i + shift) % (SIZE - 12)
    image[20:32, at : at + 12] = (220, 40, 30)
    return image


def jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def default_meta() -> dict:
    return {
        "instruction": "push the green cube into the blue zone",
        "task": "push",
        "colour": "green",
        "seed": 7,
        "success": True,
        "robot": "fr3",
        "operator": "expert",
    }


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., Path]:
    """`record(name, **changes)` writes one episode into tmp_path/bags and returns its path.

    Changes: seconds, cameras, rate (Hz of the pictures), when (time of picture k), joint_rate, skip (topics),
    drop (function of topic and time: which messages are lost), polarity (-1: the hand moves against its
    command), frozen (pictures stay the same), picture (function of number and shift), q (measured joints
    of t), q_cmd, meta, offset_ns (header stamps against receipt), namespace, root.
    """

    def write(name: str, **changes) -> Path:
        seconds, rate = changes.get("seconds", 2.0), changes.get("rate", 30.0)
        cameras, skip = changes.get("cameras", ("front", "wrist")), changes.get("skip", ())
        drop, q = changes.get("drop", lambda topic, t: False), changes.get("q", joints)
        q_cmd, polarity = changes.get("q_cmd", command), changes.get("polarity", 1)
        offset = changes.get("offset_ns", 0)
        writer = EpisodeWriter(
            changes.get("root", tmp_path / "bags"), name, sync=False, namespace=changes.get("namespace", "")
        )

        def put(topic: str, msgtype: str, raw: bytes, t: float) -> None:
            if topic not in skip and not drop(topic, t):
                writer.write(topic, msgtype, raw, START + round(t * 1e9))

        close_at = seconds / 3
        events: list[tuple[float, Callable]] = []
        for k in range(int(seconds * changes.get("joint_rate", 100)) + 1):
            t = k / changes.get("joint_rate", 100)
            finger = 0.04 if polarity * (1 if t < close_at + 0.2 else -1) > 0 else 0.01  # m
            stamp = START + offset + round(t * 1e9)
            measured = m.joint_state(stamp, [*ARM, "fr3_finger_joint1"], [*q(t), finger], [0.0] * 8)
            commanded = m.joint_state(stamp, ARM, q_cmd(t), [0.0] * 7)
            for topic, raw in (("joint_states", measured), ("executor/joint_command", commanded)):
                events.append((t, lambda t=t, raw=raw, topic=topic: put(topic, m.JOINT_STATE, raw, t)))
        for k in range(int(seconds * rate) + 1):
            t = changes.get("when", lambda k: k / rate)(k)
            for shift, camera in enumerate(cameras):
                data = jpeg(changes.get("picture", picture)(0 if changes.get("frozen") else k, 7 * shift))
                raw = m.compressed_image(START + round(t * 1e9), camera, data)
                topic = f"camera/{camera}/image_raw/compressed"
                events.append((t, lambda t=t, raw=raw, topic=topic: put(topic, m.COMPRESSED_IMAGE, raw, t)))
        for t, value in ((0.0, 1.0), (close_at, -1.0)):
            raw = m.float32(value)
            events.append((t, lambda t=t, raw=raw: put("executor/gripper_command", m.FLOAT32, raw, t)))
        for _, event in sorted(events, key=lambda e: e[0]):
            event()
        return writer.close(changes.get("meta", default_meta()))

    return write
