"""Pictures as the policy takes them; free of torch, so that a robot's computer can prepare them for a server."""

from __future__ import annotations

import cv2
import numpy as np


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 (H, W, 3) -> (size, size, 3): the centre square, by area averaging."""
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)


def to_jpeg(image: np.ndarray, quality: int) -> bytes:
    """uint8 RGB (H, W, 3) as JPEG; quality 1 .. 100."""
    return cv2.imencode(".jpg", image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, quality))[1].tobytes()


def from_jpeg(data: bytes, most_pixels: int = 1 << 62) -> np.ndarray:
    """JPEG or PNG bytes as uint8 RGB (H, W, 3).

    most_pixels: larger pictures are refused. The header alone says the size, before memory is taken for it.

    Raises:
        ValueError: the bytes are no image, or one that is too large.
    """
    if most_pixels < 1 << 62 and pixels(data) > most_pixels:
        raise ValueError(f"a picture of {pixels(data)} pixels; at most {most_pixels} are taken: resize before sending")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        raise ValueError(f"{len(data)} bytes are no image; publish JPEG or PNG")
    return image[..., ::-1]


def pixels(data: bytes) -> int:
    """Width times height by the header of a JPEG or PNG; ValueError when it is neither.

    JPEG: ISO/IEC 10918-1, B.2.2, the frame header's segment SOF0 .. SOF15 (not DHT, JPG, DAC). PNG: IHDR.
    """
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        return int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big")
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    while at + 9 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if kind == 0xFF:  # fill byte
            at += 1
        elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 5 : at + 7], "big") * int.from_bytes(data[at + 7 : at + 9], "big")
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise ValueError(f"{len(data)} bytes are no image; publish JPEG or PNG")


def from_raw(data: bytes, encoding: str, height: int, width: int, step: int) -> np.ndarray:
    """Pixels of a raw image of ROS, uint8 RGB (H, W, 3); `step` in bytes a row.

    Raises:
        ValueError: an encoding that is not supported.
    """
    channels = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}.get(encoding)
    if channels is None:
        raise ValueError(f"image encoding {encoding!r} is not supported; publish rgb8 or bgr8")
    if not (height and width):
        raise ValueError("an image without pixels; look at the camera's driver")
    rows = np.frombuffer(data, np.uint8).reshape(height, step)
    image = rows[:, : channels * width].reshape(height, width, channels)
    if channels == 1:
        return np.repeat(image, 3, axis=2)
    return image[..., 2::-1] if encoding.startswith("bgr") else image[..., :3]
