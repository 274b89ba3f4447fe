"""Read a JAX parameter stream (LWM, EasyLM) without loading it.

The file is a row of msgpack pairs (key, value): the key an array of names, the value a binary string that is itself
msgpack, as flax.serialization writes it: an array is the extension 1 around (shape, dtype name, raw bytes), and one
above 1 GiB is a map of flat chunks. Facts from the public EasyLM/LWM checkpointers and flax/serialization.py.

The file is mapped, not read: `scan` walks the headers only, and `Stored.flat` copies the elements asked for. A 13 GB
stream is indexed in milliseconds, and a stacked tensor is taken one layer at a time.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vipra_ros.config import ConfigError

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "int32": torch.int32,
    "int64": torch.int64,
}
#: Nothing in these files nests deeper than a map of chunks; a hostile one must not exhaust the stack.
DEEPEST = 8


@dataclass(frozen=True)
class Span:
    """Bytes [start, stop) of the file."""

    start: int
    stop: int


@dataclass(frozen=True)
class Ext:
    """A msgpack extension: its type and where its payload stands."""

    code: int
    span: Span


class _Cursor:
    """A position in the mapped file that reads msgpack values; large ones stay where they are, as `Span`."""

    def __init__(self, data: mmap.mmap, start: int, stop: int, name: str):
        self.data, self.at, self.stop, self.name = data, start, stop, name

    def _take(self, count: int) -> Span:
        if self.at + count > self.stop:
            raise ConfigError(
                f"{self.name}: ends at byte {self.stop} inside a value of {count} bytes that begins at {self.at}; "
                "the file is truncated: copy it again"
            )
        self.at += count
        return Span(self.at - count, self.at)

    def _number(self, form: str) -> Any:
        span = self._take(struct.calcsize(form))
        return struct.unpack(form, self.data[span.start : span.stop])[0]

    def value(self, depth: int = 0) -> Any:
        """The next value: int, float, bool, None, str, list, dict, `Span` (binary) or `Ext`."""
        if depth > DEEPEST:
            raise self.bad(f"values nested deeper than {DEEPEST}")
        tag = self._number(">B")
        if tag < 0x80 or tag >= 0xE0:
            return tag if tag < 0x80 else tag - 0x100
        if tag < 0x90:
            return self._map(tag & 0x0F, depth)
        if tag < 0xA0:
            return [self.value(depth + 1) for _ in range(tag & 0x0F)]
        if tag < 0xC0:
            return self._text(tag & 0x1F)
        if tag in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[tag]
        if 0xC4 <= tag <= 0xC6:
            return self._take(self._number((">B", ">H", ">I")[tag - 0xC4]))
        if 0xC7 <= tag <= 0xC9:
            count = self._number((">B", ">H", ">I")[tag - 0xC7])
            return Ext(self._number(">b"), self._take(count))
        if 0xCA <= tag <= 0xD3:
            return self._number((">f", ">d", ">B", ">H", ">I", ">Q", ">b", ">h", ">i", ">q")[tag - 0xCA])
        if 0xD4 <= tag <= 0xD8:
            return Ext(self._number(">b"), self._take(1 << (tag - 0xD4)))
        if 0xD9 <= tag <= 0xDB:
            return self._text(self._number((">B", ">H", ">I")[tag - 0xD9]))
        if tag in (0xDC, 0xDD):
            return [self.value(depth + 1) for _ in range(self._count(">H" if tag == 0xDC else ">I"))]
        if tag in (0xDE, 0xDF):
            return self._map(self._count(">H" if tag == 0xDE else ">I"), depth)
        raise self.bad(f"byte 0x{tag:02x} begins no msgpack value")

    def _count(self, form: str) -> int:
        count = self._number(form)
        if count > self.stop - self.at:  # every element takes a byte at least
            raise self.bad(f"{count} elements cannot stand in the {self.stop - self.at} bytes that are left")
        return count

    def _text(self, count: int) -> str:
        span = self._take(count)
        try:
            return self.data[span.start : span.stop].decode()
        except UnicodeDecodeError:
            raise self.bad("a name is not UTF-8") from None

    def _map(self, count: int, depth: int) -> dict:
        result = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if not isinstance(key, str | int):
                raise self.bad("a map has a key that is no name")
            result[key] = self.value(depth + 1)
        return result

    def bad(self, why: str) -> ConfigError:
        """The error for a file that is no such stream."""
        return ConfigError(
            f"{self.name}: {why} (byte {self.at - 1}); give the streaming msgpack file of LWM, or copy it again"
        )


@dataclass(frozen=True)
class Stored:
    """A tensor inside the file: its shape, dtype, and the byte spans of its flat chunks in order."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[Span, ...]
    data: mmap.mmap

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    def flat(self, first: int, last: int) -> torch.Tensor:
        """Copy of the elements [first, last) in C order."""
        width = self.dtype.itemsize
        raw, begin = bytearray(), 0
        for span in self.chunks:
            length = span.stop - span.start
            low, high = max(first * width - begin, 0), min(last * width - begin, length)
            if low < high:
                raw += self.data[span.start + low : span.start + high]
            begin += length
        return torch.frombuffer(raw, dtype=self.dtype) if raw else torch.empty(0, dtype=self.dtype)

    def all(self) -> torch.Tensor:
        """The whole tensor."""
        return self.flat(0, self.size).reshape(self.shape)

    def row(self, index: int) -> torch.Tensor:
        """Entry `index` of axis 0: one layer of a stack."""
        count = self.size // self.shape[0]
        return self.flat(index * count, (index + 1) * count).reshape(self.shape[1:])


def scan(path: str | Path) -> dict[str, Stored]:
    """Index a parameter stream: {"transformer/wte/embedding": Stored, ...}.

    Both forms are understood: parameters alone, and a train state whose `params` are taken and whose optimizer
    state and counters are left out.

    Raises:
        ConfigError: missing, truncated or foreign file; a dtype or size that does not fit.
    """
    path = Path(path)
    if not path.is_file() or path.stat().st_size == 0:
        raise ConfigError(f"{path}: no such file or empty; give the parameter stream, as params::FILE or FILE")
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    cursor = _Cursor(data, 0, len(data), path.name)
    found: dict[str, Stored] = {}
    while cursor.at < len(data):
        start = cursor.at
        pair = cursor.value()
        if isinstance(pair, dict):
            raise ConfigError(
                f"{path.name}: one msgpack map, not a stream; write it again with the streaming checkpointer"
            )
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not isinstance(pair[0], list)
            or not all(isinstance(k, str) for k in pair[0])
            or not isinstance(pair[1], Span)
        ):
            raise ConfigError(f"{path.name}: byte {start} begins no (key, bytes) pair; this is no parameter stream")
        names = list(pair[0])
        trained = names[:1] == ["params"]
        while names[:1] == ["params"]:
            names.pop(0)
        if not trained and names[:1] and names[0] in ("opt_state", "step"):
            continue
        key = "/".join(names)
        stored = _array(cursor, pair[1], key)
        if stored is not None:
            if key in found:
                raise ConfigError(f"{path.name}: {key} stands twice; the file was joined from two")
            found[key] = stored
    return found


def _array(outer: _Cursor, span: Span, key: str) -> Stored | None:
    name = f"{outer.name}: {key}"
    value = _Cursor(outer.data, span.start, span.stop, name).value()
    if isinstance(value, dict) and value.get("__msgpack_chunked_array__"):
        shape, parts = (_in_order(value.get(k), name) for k in ("shape", "chunks"))
        chunks = [_plain(outer, part, name) for part in parts]
        dtypes = {dtype for _, dtype, _ in chunks}
        if len(dtypes) != 1:
            raise ConfigError(f"{name}: its chunks have different types; copy the file again")
        dtype, spans = dtypes.pop(), tuple(span for _, _, span in chunks)
    elif isinstance(value, Ext):
        shape, dtype, one = _plain(outer, value, name)
        spans = (one,)
    else:
        return None  # an empty node or a bare number: nothing a network has
    held, need = sum(s.stop - s.start for s in spans), math.prod(shape) * dtype.itemsize
    if held != need:
        raise ConfigError(f"{name}: shape {tuple(shape)} needs {need} bytes, {held} stand there; copy the file again")
    return Stored(tuple(shape), dtype, spans, outer.data)


def _plain(outer: _Cursor, value: Any, name: str) -> tuple[list[int], torch.dtype, Span]:
    if not isinstance(value, Ext) or value.code != 1:
        raise ConfigError(f"{name}: is no array (flax extension 1); copy the file again")
    parts = _Cursor(outer.data, value.span.start, value.span.stop, name).value()
    if not isinstance(parts, list) or len(parts) != 3 or not isinstance(parts[2], Span):
        raise ConfigError(f"{name}: is no (shape, dtype, bytes); copy the file again")
    shape, kind, span = parts
    if not isinstance(shape, list) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ConfigError(f"{name}: shape {shape} is no list of sizes; copy the file again")
    if not isinstance(kind, str) or kind not in DTYPES:
        raise ConfigError(f"{name}: dtype {kind!r} is none of {', '.join(DTYPES)}; convert it first")
    return shape, DTYPES[kind], span


def _in_order(table: Any, name: str) -> list:
    if not isinstance(table, dict) or set(table) != {str(i) for i in range(len(table))}:
        raise ConfigError(f"{name}: a chunked array without its chunks in order; copy the file again")
    return [table[str(i)] for i in range(len(table))]
