"""Pictures inside messages: compressed ones decoded, raw ones of the usual encodings converted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vipra_ros.data import messages
from vipra_ros.data.resample import EpisodeError
from vipra_ros.data.sources import ENCODINGS, IMAGE, Types

TYPES = (messages.COMPRESSED_IMAGE, IMAGE)
_PNG = b"\x89PNG\r\n\x1a\n"  # bits per channel are byte 24


@dataclass(frozen=True)
class RawFormat:
    """How the bytes of a sensor_msgs/Image lie."""

    encoding: str
    height: int
    width: int
    step: int


def payload(raw: bytes, msgtype: str, types: Types) -> tuple[memoryview, RawFormat | None]:
    """The bytes of the picture in a message, and how they lie when it is a raw one."""
    if msgtype == messages.COMPRESSED_IMAGE:
        return messages.image_data(raw), None
    image = types.read(raw, msgtype)
    return memoryview(image.data), RawFormat(image.encoding, image.height, image.width, image.step)


def decode(data: memoryview | bytes, raw: RawFormat | None, what: str) -> np.ndarray:
    """uint8 RGB (H, W, 3).

    Raises:
        EpisodeError: it cannot be decoded; `what` says which picture it is.
    """
    import cv2

    flat = np.frombuffer(data, np.uint8)
    if raw is None:
        if bytes(flat[:8]) == _PNG and flat[24:25].tobytes() == b"\x10":
            raise EpisodeError(f"{what} is a PNG of 16 bits, a depth image; leave this camera out")
        rgb = getattr(cv2, "IMREAD_COLOR_RGB", None)  # straight from the decoder, since OpenCV 4.11
        image = cv2.imdecode(flat, cv2.IMREAD_COLOR if rgb is None else rgb) if len(flat) else None
        if image is None:
            raise EpisodeError(
                f"{what} ({len(flat)} bytes) cannot be decoded; it is cut or of a format OpenCV does not know"
            )
        return image if rgb is not None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    if raw.encoding not in ENCODINGS:
        raise EpisodeError(f"{what}: encoding {raw.encoding!r} is not read; record one of {', '.join(ENCODINGS)}")
    size, conversion = ENCODINGS[raw.encoding]
    if raw.step < raw.width * size or len(flat) < raw.step * raw.height or not raw.width * raw.height:
        raise EpisodeError(f"{what}: {len(flat)} bytes are no {raw.width}x{raw.height} {raw.encoding}; it is cut")
    rows = flat[: raw.step * raw.height].reshape(raw.height, raw.step)[:, : raw.width * size]
    image = np.ascontiguousarray(rows.reshape(raw.height, raw.width, size))
    return image if conversion is None else cv2.cvtColor(image, getattr(cv2, conversion))
