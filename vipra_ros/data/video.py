"""H.264 in MP4: a file per episode while converting, then appended to longer ones without re-encoding.

Small pictures need full chroma: at 128 x 128 px a cube is a dozen pixels wide, and 4:2:0 halves its colour
resolution (37.6 dB against 45.8 dB at the same crf, and a bias of -0.6 levels). `ultrafast` at crf 14 costs
0.25 ms a frame and loses less (47 dB) than `veryfast` at crf 10 in half the time. No B-frames, so packets
come in display order; a key frame every second frame keeps random access at one or two decoded frames.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from vipra_ros.config import param

# RGB -> Y'CbCr of ITU-R BT.601, limited range (Y 16..235, C 16..240) as the stream says; rows Y, Cb, Cr.
# One matrix in OpenCV takes 0.04 ms for 128 x 128 px; the same through swscale takes 0.13 ms.
_KR, _KB = 0.299, 0.114
_LUMA = np.array([_KR, 1.0 - _KR - _KB, _KB])
_YCBCR = np.column_stack(
    [
        np.stack(
            [
                _LUMA * 219,
                (np.eye(3)[2] - _LUMA) / (2 * (1 - _KB)) * 224,
                (np.eye(3)[0] - _LUMA) / (2 * (1 - _KR)) * 224,
            ]
        )
        / 255.0,
        [16.0, 128.0, 128.0],
    ]
).astype(np.float32)


_HALF_CHROMA = 240  # px; cameras this large compress their pictures with half the chroma themselves


class VideoError(RuntimeError):
    """A video cannot be written or read; the message names the file."""


@dataclass(frozen=True)
class Codec:
    """How frames are compressed."""

    crf: int = param(14, doc="x264 quality, 0 lossless", low=0, high=51)
    preset: str = param(
        "ultrafast",
        doc="x264 effort",
        choices=("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"),
    )
    pixel_format: str = param(
        "auto",
        doc="chroma; auto: yuv420p from 240 px on (as in their JPEGs; browsers play it), yuv444p below",
        choices=("auto", "yuv444p", "yuv420p"),
    )
    keyframe_interval: int = param(2, doc="frames from key frame to key frame", low=1, high=300)

    def chroma(self, height: int, width: int) -> str:
        """The pixel format of videos of this size."""
        if self.pixel_format != "auto":
            return self.pixel_format
        return "yuv420p" if height >= _HALF_CHROMA and height % 2 == width % 2 == 0 else "yuv444p"


def rate(fps: float) -> Fraction:
    """Frame rate as a fraction (15.0 -> 15, 29.97 -> 2997/100)."""
    return Fraction(fps).limit_denominator(1001)


class VideoEncoder:
    """Encodes RGB frames of one size into one MP4 file."""

    def __init__(self, path: Path, fps: float, codec: Codec = Codec()):
        self.path, self.frames, self.size = Path(path), 0, None
        self._fps, self._codec = rate(fps), codec
        self._container = av.open(str(path), "w", format="mp4")
        self._stream = None

    def add(self, image: np.ndarray) -> None:
        """Append a uint8 RGB image (H, W, 3).

        Raises:
            VideoError: its size differs from the first one's.
        """
        if self._stream is None:
            self._open(image)
        if image.shape[:2] != self.size:
            raise VideoError(
                f"{self.path.name}: image {self.frames} is {image.shape[1]}x{image.shape[0]}, the first "
                f"was {self.size[1]}x{self.size[0]}; one size per camera"
            )
        if self._stream.pix_fmt == "yuv420p":  # OpenCV's is BT.601 in limited range, too
            planes = cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420)
        else:
            planes = np.stack(cv2.split(cv2.transform(image, _YCBCR)))
        frame = av.VideoFrame.from_ndarray(planes, format=self._stream.pix_fmt)
        frame.pts = self.frames
        self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def close(self) -> None:
        """Finish the file.

        Raises:
            VideoError: no frame was added.
        """
        if self._stream is None:
            self._container.close()
            raise VideoError(f"{self.path.name}: a video needs at least one frame")
        self._container.mux(self._stream.encode())
        self._container.close()

    def _open(self, image: np.ndarray) -> None:
        height, width = image.shape[:2]
        chroma = self._codec.chroma(height, width)
        if chroma == "yuv420p" and (height % 2 or width % 2):
            raise VideoError(
                f"{self.path.name}: {width}x{height} is odd; yuv420p needs even sizes, use yuv444p"
            )
        options = dict(
            crf=str(self._codec.crf), preset=self._codec.preset, g=str(self._codec.keyframe_interval), bf="0"
        )
        stream = self._container.add_stream("libx264", rate=self._fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, chroma
        stream.thread_count = 1  # conversion is parallel over episodes
        stream.codec_context.colorspace = Colorspace.SMPTE170M.value
        stream.codec_context.color_range = ColorRange.MPEG.value
        self._stream, self.size = stream, (height, width)


@dataclass(frozen=True)
class Span:
    """Where an episode lies: file number and seconds within that file."""

    file: int
    start: float
    stop: float


class VideoSeries:
    """Appends episode videos to numbered files, packet by packet, a new file when one is full.

    Args:
        path_of: file number -> path.
        fps: frames per second.
        limit_bytes: size at which the next episode opens a new file.
    """

    def __init__(self, path_of, fps: float, limit_bytes: int):
        self._path_of, self._fps, self._limit = path_of, rate(fps), limit_bytes
        self._file, self._container, self._stream = -1, None, None
        self._bytes = self._frames = 0
        self._header: bytes | None = None

    def append(self, path: Path, frames: int, first: int = 0) -> Span:
        """Append `frames` frames of the video at `path`, made with the same settings.

        Args:
            first: number of the first of them in the file; must be a key frame.

        Raises:
            VideoError: made with other settings, not enough frames, or `first` is no key frame.
        """
        with av.open(str(path)) as source:
            stream = source.streams.video[0]
            header = bytes(stream.codec_context.extradata or b"")
            if self._header not in (None, header):
                raise VideoError(
                    f"{path}: encoded with other settings or another size than the data set's first episode"
                )
            self._header = header
            if self._container is None or self._bytes >= self._limit:
                self._next(stream)
            start, whole = self._frames, first == 0 and stream.frames in (0, frames)
            if first:
                source.seek(int(first / self._fps / stream.time_base), stream=stream, backward=True)
            for packet in source.demux(stream):
                if packet.size == 0:  # the flushing packet at the end
                    continue
                number = round(packet.pts * stream.time_base * self._fps)
                if not whole and not first <= number < first + frames:
                    if number >= first + frames:
                        break
                    continue
                if self._frames == start and not packet.is_keyframe:
                    raise VideoError(f"{path}: frame {first} is no key frame; the episode must be encoded anew")
                self._bytes += packet.size
                packet.stream = self._stream
                packet.time_base = 1 / self._fps
                packet.pts = packet.dts = self._frames
                packet.duration = 1
                self._container.mux(packet)
                self._frames += 1
        if self._frames - start != frames:
            raise VideoError(
                f"{path}: holds {self._frames - start} frames, {frames} were announced; convert it again"
            )
        return Span(self._file, float(start / self._fps), float(self._frames / self._fps))

    def close(self) -> None:
        """Finish the last file."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def _next(self, template) -> None:
        self.close()
        self._file += 1
        path = Path(self._path_of(self._file))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(path), "w", format="mp4")
        self._stream = self._container.add_stream_from_template(template)
        self._stream.time_base = 1 / self._fps
        self._bytes = self._frames = 0


def _open(path: Path):
    try:
        container = av.open(str(path))
    except (OSError, av.error.FFmpegError) as error:
        raise VideoError(
            f"{path} cannot be read ({error}); it is missing or damaged: convert again"
        ) from error
    stream = container.streams.video[0]
    stream.thread_count = 1
    return container, stream


def stream_header(path: Path) -> tuple[str, bytes, bool]:
    """Codec, its header, and whether pictures are stored in another order than shown: what two files must share
    to be joined packet by packet (and the last be False)."""
    container, stream = _open(path)
    with container:
        codec = stream.codec_context
        return codec.name, bytes(codec.extradata or b""), bool(codec.has_b_frames)


def frame_count(path: Path) -> int:
    """Frames in a file, by its packets; nothing is decoded."""
    container, stream = _open(path)
    with container:
        return sum(packet.size > 0 for packet in container.demux(stream))


def read_frames(path: Path, fps: float, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
    """Decode frames [start, stop) of one file in order; each uint8 RGB (H, W, 3)."""
    container, stream = _open(path)
    with container:
        yield from _decode(container, stream, rate(fps), start, stop)


def _decode(container, stream, fps: Fraction, start: int, stop: int | None) -> Iterator[np.ndarray]:
    if start or stop is not None:  # an open file may stand anywhere
        container.seek(int(start / fps / stream.time_base), stream=stream, backward=True)
    for frame in container.decode(stream):
        number = round(frame.pts * stream.time_base * fps)
        if number < start:
            continue
        if stop is not None and number >= stop:
            return
        yield frame.to_ndarray(format="rgb24")


class FrameReader:
    """Random access to frames; keeps the `keep` files used last open."""

    def __init__(self, fps: float, keep: int = 4):
        self._fps, self._keep, self._open = rate(fps), keep, {}

    def frame(self, path: Path, number: int) -> np.ndarray:
        """Frame `number` of the file, uint8 RGB (H, W, 3)."""
        opened = self._open.pop(path, None) or _open(path)
        self._open[path] = opened
        if len(self._open) > self._keep:
            self._open.pop(next(iter(self._open)))[0].close()
        for image in _decode(*opened, self._fps, number, number + 1):
            return image
        raise VideoError(f"{path} has no frame {number}; the data set is cut: convert again")

    def close(self) -> None:
        """Close all files."""
        for container, _ in self._open.values():
            container.close()
        self._open.clear()


def encode_video(path: Path, frames: Iterable[np.ndarray], fps: float, codec: Codec = Codec()) -> int:
    """Encode `frames` (uint8 RGB) into `path`; returns how many there were."""
    encoder = VideoEncoder(path, fps, codec)
    for image in frames:
        encoder.add(image)
    encoder.close()
    return encoder.frames


def captioned(image: np.ndarray, text: str) -> np.ndarray:
    """The picture (H, W, 3) with `text` in a dark strip below it, broken into lines; both sides stay even."""
    lines = textwrap.wrap(text, max(8, image.shape[1] // 7)) or [""]
    strip = np.zeros((6 + 16 * len(lines), image.shape[1], 3), np.uint8)
    for i, line in enumerate(lines):
        cv2.putText(strip, line, (6, 15 + 16 * i), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate([image, strip])
