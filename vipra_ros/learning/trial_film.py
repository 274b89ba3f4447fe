"""The video of a trial, from the pictures of one camera. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

#: px; smaller pictures are enlarged.
WIDE = 320


def film(path: Path, pictures: Sequence[tuple[float, bytes]], text: str) -> None:
    """Write `pictures`, (stamp in s, JPEG), as an MP4 that browsers play, with `text` below; no file after an error.

    Raises:
        ValueError: less than two pictures, or bytes that are none.
        OSError: the disk does not take them.
    """
    if len(pictures) < 2 or pictures[-1][0] <= pictures[0][0]:
        raise ValueError(f"{len(pictures)} pictures, a film takes two of different stamps")
    import cv2

    from vipra_ros.data.video import Codec, captioned, encode_video
    from vipra_ros.policy.pictures import from_jpeg

    path.parent.mkdir(parents=True, exist_ok=True)
    first = from_jpeg(pictures[0][1])
    scale = max(1.0, WIDE / first.shape[1])
    size = tuple(2 * round(scale * n / 2) for n in first.shape[1::-1])  # 4:2:0 wants even sides
    frames = (captioned(cv2.resize(from_jpeg(p), size, interpolation=cv2.INTER_NEAREST), text) for _, p in pictures)
    fps = (len(pictures) - 1) / (pictures[-1][0] - pictures[0][0])
    codec = Codec(crf=23, preset="veryfast", pixel_format="yuv420p", keyframe_interval=30)
    try:
        encode_video(path, frames, fps, codec)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
