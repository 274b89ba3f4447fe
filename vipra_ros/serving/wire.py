"""Messages between robot and policy: MessagePack with arrays, as openpi's client and server write them.

An array is a map of four byte-string keys: {b"__ndarray__": true, b"data", b"dtype", b"shape"}; a NumPy scalar is
{b"__npgeneric__": true, b"data", b"dtype"} (Physical-Intelligence/openpi, packages/openpi-client, msgpack_numpy).
What is read comes from a network: no pickles, no objects, numeric dtypes only, sizes compared with the bytes that
are there, and few containers, since an empty map costs one byte on the wire and sixty in memory.
"""

from __future__ import annotations

import math

import msgpack
import numpy as np

#: The whole list of what an array may hold.
DTYPES = frozenset(
    ("|b1", "|u1", "|i1", "<u2", "<u4", "<u8", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8")
)  # fmt: skip
#: Bytes of one message: two cameras, two frames of 640 x 480 RGB each and change.
MOST_BYTES = 8 << 20
#: Maps and lists of one message; elements of a list; entries of a map; characters of a text; axes of an array.
MOST_CONTAINERS, MOST_ELEMENTS, MOST_KEYS, MOST_TEXT, MOST_AXES = 256, 1024, 128, 1 << 16, 6


#: In an answer that says what went wrong, and not with the question: asking again may help.
IN_THE_POLICY = "in the policy:"


class WireError(ValueError):
    """Bytes that are no message, or one beyond the limits."""


def encode(message: dict) -> bytes:
    """A message of texts, numbers, bytes, lists, maps and numeric arrays as bytes."""
    return msgpack.packb(message, default=_pack)


def decode(data: bytes, most_bytes: int = MOST_BYTES) -> dict:
    """The message in `data`; its arrays are read-only views of it.

    Raises:
        WireError: it is damaged, no map, too large, or holds what has no place in a message.
    """
    if len(data) > most_bytes:
        raise WireError(f"a message of {len(data)} bytes; at most {most_bytes} are taken: send smaller images")
    seen = 0

    def count(value):
        nonlocal seen
        seen += 1
        if seen > MOST_CONTAINERS:
            raise WireError(f"more than {MOST_CONTAINERS} maps and lists in one message")
        return value

    try:
        message = msgpack.unpackb(
            data,
            object_hook=lambda found: _unpack(count(found)),
            list_hook=count,
            ext_hook=_refuse_extension,
            max_str_len=MOST_TEXT,
            max_array_len=MOST_ELEMENTS,
            max_map_len=MOST_KEYS,
            max_ext_len=0,
        )
    except WireError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        text = " ".join(str(error).split())[:120] or type(error).__name__
        raise WireError(f"no message: {text}; speak MessagePack as openpi-client does") from None
    if not isinstance(message, dict):
        raise WireError(f"a message is a map, not {type(message).__name__}")
    return message


def _pack(value: object) -> dict:
    if isinstance(value, (np.ndarray, np.generic)):
        little = np.asarray(value).astype(np.asarray(value).dtype.newbyteorder("<"), copy=False)
        if little.dtype.str in DTYPES:
            if isinstance(value, np.generic):
                return {b"__npgeneric__": True, b"data": value.item(), b"dtype": little.dtype.str}
            return {b"__ndarray__": True, b"data": little.tobytes(), b"dtype": little.dtype.str, b"shape": value.shape}
        raise WireError(f"an array of {value.dtype} has no place in a message; send numbers")
    raise WireError(f"{type(value).__name__} has no place in a message")


def _unpack(found: dict) -> object:
    if b"__ndarray__" in found:
        dtype, shape, data = _dtype(found), found.get(b"shape"), found.get(b"data")
        if not isinstance(shape, list) or len(shape) > MOST_AXES:
            raise WireError(f"an array of shape {str(shape)[:60]}; at most {MOST_AXES} axes")
        if not all(type(n) is int and n >= 0 for n in shape) or not isinstance(data, bytes):
            raise WireError("an array without a shape of whole numbers, or without bytes")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise WireError(f"an array of shape {shape} and {dtype} does not have {len(data)} bytes")
        return np.frombuffer(data, dtype).reshape(shape)
    if b"__npgeneric__" in found:
        value = found.get(b"data")
        if not isinstance(value, (bool, int, float)):
            raise WireError(f"a number that is {type(value).__name__}")
        return _dtype(found).type(value)
    return found


def _dtype(found: dict) -> np.dtype:
    name = found.get(b"dtype")
    if not isinstance(name, str) or name not in DTYPES:
        raise WireError(f"an array of dtype {str(name)[:40]!r}; only numbers are taken: {', '.join(sorted(DTYPES))}")
    return np.dtype(name)


def _refuse_extension(code: int, data: bytes) -> None:
    raise WireError(f"extension type {code} has no place in a message")
