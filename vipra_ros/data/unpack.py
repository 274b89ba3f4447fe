"""Decompression that makes no more bytes than were announced, for us and for rosbags, which takes a file's word.

A kilobyte of zstd can announce a megabyte and become gigabytes. rosbags looks for its decompressors, and for the
reader of QoS texts, in names of its modules; `bound_rosbags` puts ours there.
"""

from __future__ import annotations

import os
import sys
from typing import Any, BinaryIO

from rosbags.rosbag2 import ReaderError, metadata, reader, storage_mcap, storage_sqlite3

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: Bytes of a chunk, or of a compressed message, that are believed: writers make chunks of one to some ten megabytes.
MOST_CHUNK = 1 << 28
#: Characters of a QoS text: a profile has 300, and a topic one for each of its publishers.
MOST_QOS = 1 << 16
#: Bytes that are read without a look at the size of the file.
SMALL = 1 << 16


def unzstd(data: bytes, most: int = MOST_CHUNK) -> bytes:
    """All frames of `data`, or as much as is there of a cut one; ReaderError beyond `most` bytes."""
    parts, left = [], most + 1
    while data and left > 0:
        one = zstd.ZstdDecompressor()
        parts.append(one.decompress(data, max_length=left))
        left -= len(parts[-1])
        data = one.unused_data if one.eof else b""
    return _within(b"".join(parts), most)


def unlz4(data: bytes, most: int = MOST_CHUNK) -> bytes:
    """The frame in `data`, or as much as is there of it; ReaderError beyond `most` bytes."""
    import lz4.frame
    return _within(lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=most + 1), most)


def announced(size: int) -> int:
    """`size` of a chunk; ReaderError when it is beyond belief."""
    if size > MOST_CHUNK:
        raise ReaderError(f"a chunk announces {size} bytes, {MOST_CHUNK} are believed")
    return size


def bound_rosbags() -> None:
    """Let rosbags use what is here; again is harmless."""
    storage_mcap.DECOMPRESSORS.update(
        zstd=lambda data, size: unzstd(data, announced(size)), lz4=lambda data, size: unlz4(data, announced(size)))
    storage_mcap.read_exact = _read_exact
    reader.zstd = _Zstd
    for module in (storage_mcap, storage_sqlite3, reader):
        module.parse_qos = parse_qos


class _Zstd:
    """What rosbags takes of the zstd module, for bags whose messages or files are compressed."""

    open = zstd.open
    decompress = staticmethod(unzstd)


def _read_exact(file: BinaryIO, size: int) -> bytes:
    """`size` bytes of a file; Python takes the memory before it looks how many there are."""
    at = file.tell()
    if size > SMALL:
        left = file.seek(0, os.SEEK_END) - at
        file.seek(at)
        if size > left:
            raise ReaderError(f"a record at {at} announces {size} bytes, there are {left}")
    data = file.read(size)
    if len(data) != size:
        raise ReaderError(f"a record at {at} announces {size} bytes, there are {len(data)}")
    return data


_parse_qos = metadata.parse_qos


def parse_qos(profiles: Any) -> list:
    """QoS from its text. Aliases and merge keys multiply, and no writer of bags uses them."""
    if isinstance(profiles, str) and (len(profiles) > MOST_QOS or "*" in profiles or "<<" in profiles):
        raise ReaderError(f"a QoS text of {len(profiles)} characters, or with aliases")
    return _parse_qos(profiles)


def _within(data: bytes, most: int) -> bytes:
    if len(data) > most:
        raise ReaderError(f"compressed data become more than the {most} bytes that were announced")
    return data
