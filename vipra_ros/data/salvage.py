"""What can still be read of an MCAP file that was cut: no footer, no index, half a record at the end.

An MCAP file is a magic, then records (one byte of kind, eight of length); chunks hold records in turn, as they
are or compressed. Reading goes on to the first byte that makes no sense; inside a chunk that was cut, to the last
message that is whole.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vipra_ros.data.unpack import announced, parse_qos, unlz4, unzstd

MAGIC = b"\x89MCAP0\r\n"
#: Kinds of records.
HEADER, FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, DATA_END = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x0F
#: Bytes of a record that is believed; our chunks have about one megabyte, an image a few.
LARGEST = 2**31


class Channel(NamedTuple):
    """A topic: its resolved name, type, definition (ros2msg) and QoS."""

    topic: str
    msgtype: str
    definition: str
    qos: list


@dataclass
class Salvage:
    """What was found in a file; filled while `messages` runs.

    Attributes:
        complete: the file ended as it should. reason: why reading stopped, when not.
        read, size: bytes understood, of how many.
    """

    path: Path
    complete: bool = False
    reason: str = ""
    read: int = 0
    size: int = 0
    _schemas: dict[int, tuple[str, str]] = field(default_factory=dict)
    _channels: dict[int, Channel] = field(default_factory=dict)

    def messages(self) -> Iterator[tuple[Channel, int, bytes]]:
        """Stream (channel, stamp in ns, bytes) in the order of the file; never raises on what the file holds."""
        self.size = self.path.stat().st_size
        with self.path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                self.reason = "it does not begin like an MCAP file"
                return
            self.read = file.tell()
            while True:
                kind, length = self._head(file)
                if kind is None:
                    return
                if kind in (FOOTER, DATA_END):
                    self.complete, self.read = True, self.size
                    return
                data = file.read(min(length, self.size))  # a length that is nonsense would be memory at once
                if kind == CHUNK:
                    yield from self._chunk(data)
                elif kind in (SCHEMA, CHANNEL, MESSAGE) and len(data) == length:
                    yield from self._record(kind, data)
                if len(data) < length:
                    self.reason = f"the last record has {len(data)} of {length} bytes"
                if self.reason:
                    return
                self.read = file.tell()

    def _head(self, file: BinaryIO) -> tuple[int | None, int]:
        head = file.read(9)
        if len(head) < 9:
            self.reason = "it ends without a footer"
            return None, 0
        kind, length = struct.unpack("<BQ", head)
        if not HEADER <= kind <= DATA_END or length > LARGEST:
            self.reason = f"no record at byte {file.tell() - 9}"
            return None, 0
        return kind, length

    def _chunk(self, data: bytes) -> Iterator[tuple[Channel, int, bytes]]:
        """The records of a chunk, which may be cut."""
        if len(data) < 32:
            return
        (name_length,) = struct.unpack_from("<I", data, 28)
        name, start = data[32 : 32 + name_length], 40 + name_length
        if len(data) < start or name_length > 8:
            return
        (size,) = struct.unpack_from("<Q", data, 16)
        inner = _unpack(name.decode("ascii", "replace"), data[start:], size)
        offset = 0
        while offset + 9 <= len(inner):
            kind, length = struct.unpack_from("<BQ", inner, offset)
            offset += 9
            if offset + length > len(inner):
                return
            yield from self._record(kind, inner[offset : offset + length])
            offset += length

    def _record(self, kind: int, data: bytes) -> Iterator[tuple[Channel, int, bytes]]:
        try:
            if kind == SCHEMA:
                number, (name, _, text) = *struct.unpack_from("<H", data), _texts(data, 2, 3)
                self._schemas[number] = (name, text)
            elif kind == CHANNEL:
                number, schema = struct.unpack_from("<HH", data)
                topic, _ = _texts(data, 4, 2)
                at = 4 + sum(4 + len(t.encode()) for t in _texts(data, 4, 2))
                msgtype, definition = self._schemas[schema]
                self._channels[number] = Channel(topic, msgtype, definition, _qos(data[at + 4 :]))
            elif kind == MESSAGE:
                number, _, stamp, _ = struct.unpack_from("<HIQQ", data)
                yield self._channels[number], stamp, data[22:]
        except (struct.error, LookupError, UnicodeDecodeError) as error:
            self.reason = f"a record makes no sense ({type(error).__name__}: {error})"


def _texts(data: bytes, offset: int, count: int) -> list[str]:
    """`count` strings, each after its length."""
    found = []
    for _ in range(count):
        (length,) = struct.unpack_from("<I", data, offset)
        if offset + 4 + length > len(data):
            raise struct.error("a text is longer than its record")
        found.append(data[offset + 4 : offset + 4 + length].decode())
        offset += 4 + length
    return found


def _qos(metadata: bytes) -> list:
    """The QoS that publishers offered, from a channel's map of texts; none when they make no sense."""
    offset = 0
    while offset + 8 <= len(metadata):
        key, value = _texts(metadata, offset, 2)
        if key == "offered_qos_profiles":
            try:
                return parse_qos(value)
            except Exception:  # rosbags raises what its parser stumbles over; the messages are worth more
                return []
        offset += 8 + len(key.encode()) + len(value.encode())
    return []


def _unpack(compression: str, data: bytes, size: int) -> bytes:
    """What can be decompressed of `data`, which may be cut, to `size` bytes at most."""
    if not compression:
        return data
    try:
        return {"zstd": unzstd, "lz4": unlz4}[compression](data, announced(size))
    except Exception:  # each library has errors of its own; what cannot be unpacked is lost
        return b""
