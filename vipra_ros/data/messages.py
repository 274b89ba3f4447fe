"""ROS messages as bytes, without ROS: our types in a rosbags typestore, and fast CDR for the busy ones.

Images and joint states make up nearly all messages of an episode. Their CDR layout is written here by hand
(XCDR1, little endian: a 4-byte encapsulation, then every value aligned to its size counted from behind the
encapsulation); a test holds these bytes equal to the typestore's. Everything else goes through the
typestore.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from vipra_ros.config import share

COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
JOINT_STATE = "sensor_msgs/msg/JointState"
FLOAT32 = "std_msgs/msg/Float32"
STRING = "std_msgs/msg/String"
ACTION_CHUNK = "vipra_ros/msg/ActionChunk"
EXECUTOR_STATUS = "vipra_ros/msg/ExecutorStatus"
POLICY_STATUS = "vipra_ros/msg/PolicyStatus"

_LITTLE = b"\x00\x01\x00\x00"  # encapsulation: CDR, little endian, no options
# Fast DDS reserves the alignment of every sequence's elements, also of empty ones, and leaves it at the end.
_TRAILING = 64
NS = 1_000_000_000


class MessageError(ValueError):
    """Bytes that are not the message they are said to be; the message says what was expected."""


@lru_cache(maxsize=1)
def typestore():
    """The ROS 2 types plus those of this package's msg folder (source tree or install)."""
    store = get_typestore(Stores.ROS2_KILTED)
    for path in sorted(share("msg").glob("*.msg")):
        store.register(get_types_from_msg(path.read_text(encoding="utf-8"), f"vipra_ros/msg/{path.stem}"))
    return store


def full_type(msgtype: str) -> str:
    """`sensor_msgs/JointState` and `sensor_msgs/msg/JointState` both name the latter."""
    parts = msgtype.split("/")
    return f"{parts[0]}/msg/{parts[1]}" if len(parts) == 2 else msgtype


@lru_cache(maxsize=256)
def has_header(msgtype: str) -> bool:
    """Whether messages of a registered type begin with a std_msgs/Header, so that `header_stamp` reads them."""
    fields = typestore().fielddefs[full_type(msgtype)][1]
    return bool(fields) and fields[0][1][1] == "std_msgs/msg/Header"


def serialize(message: Any, msgtype: str) -> bytes:
    """CDR of a typestore message object (any of the registered types)."""
    return bytes(typestore().serialize_cdr(message, full_type(msgtype)))


def deserialize(raw: bytes, msgtype: str, store: Any = None) -> Any:
    """Typestore object from CDR; `store` knows types that are not ours.

    Raises:
        MessageError: the bytes do not hold such a message.
    """
    little = _order(raw) == "<"
    store = store or typestore()
    try:
        definition = store.get_msgdef(full_type(msgtype))
        read = definition.deserialize_cdr_le if little else definition.deserialize_cdr_be
        message, end = read(raw[4:], 0, definition.cls, store)
    except Exception as error:  # rosbags raises struct, index, unicode and key errors alike
        raise MessageError(
            f"{len(raw)} bytes are not a {msgtype} ({type(error).__name__}: {error})"
        ) from error
    if len(raw) - 4 - end > _TRAILING:
        raise MessageError(f"{len(raw)} bytes are not a {msgtype}, which ends after {end + 4}")
    return message


# ------------------------------------------------------------------------------------------- writing


def _text(out: bytearray, text: str) -> None:
    """Append a string: uint32 length with the NUL, UTF-8, NUL; `out` starts behind the encapsulation."""
    data = text.encode() + b"\x00"
    out += b"\x00" * (-len(out) % 4) + struct.pack("<I", len(data)) + data


def _stamp(stamp_ns: int) -> bytes:
    return struct.pack("<iI", stamp_ns // NS, stamp_ns % NS)


@lru_cache(maxsize=64)
def _image_prefix(frame_id: str, fmt: str) -> bytes:
    out = bytearray(8)
    _text(out, frame_id)
    _text(out, fmt)
    return bytes(out[8:] + b"\x00" * (-len(out) % 4))


def compressed_image(stamp_ns: int, frame_id: str, jpeg: bytes, fmt: str = "jpeg") -> bytes:
    """CDR of a sensor_msgs/CompressedImage. `stamp_ns`: ns, when the image was exposed."""
    return b"".join(
        (_LITTLE, _stamp(stamp_ns), _image_prefix(frame_id, fmt), struct.pack("<I", len(jpeg)), jpeg)
    )


@lru_cache(maxsize=64)
def _joint_layout(
    names: tuple[str, ...], frame_id: str, sizes: tuple[int, ...]
) -> tuple[bytes, struct.Struct, tuple]:
    """Bytes between the stamp and the numbers, the struct of the numbers, and the counts in it."""
    out = bytearray(8)
    _text(out, frame_id)
    out += b"\x00" * (-len(out) % 4) + struct.pack("<I", len(names))
    for name in names:
        _text(out, name)
    out += b"\x00" * (-len(out) % 4)
    offset, layout = len(out), "<"
    for size in sizes:
        layout, offset = layout + "I", offset + 4
        if size:
            pad = -offset % 8
            layout, offset = f"{layout}{pad}x{size}d", offset + pad + 8 * size
    return bytes(out[8:]), struct.Struct(layout), sizes


def joint_state(
    stamp_ns: int,
    names: Sequence[str],
    position: Sequence[float],
    velocity: Sequence[float] | None = None,
    effort: Sequence[float] | None = None,
    frame_id: str = "",
) -> bytes:
    """CDR of a sensor_msgs/JointState; rad (fingers: m), rad/s, Nm."""
    groups = [() if g is None else tuple(g) for g in (position, velocity, effort)]
    names = tuple(names)
    if len(groups[0]) != len(names):
        raise MessageError(
            f"joint_state: {len(names)} names but {len(groups[0])} positions; give one per joint"
        )
    prefix, numbers, sizes = _joint_layout(names, frame_id, tuple(len(g) for g in groups))
    values: list = []
    for size, group in zip(sizes, groups, strict=True):
        values.append(size)
        values.extend(group)
    return b"".join((_LITTLE, _stamp(stamp_ns), prefix, numbers.pack(*values)))


def float32(value: float) -> bytes:
    """CDR of a std_msgs/Float32."""
    return _LITTLE + struct.pack("<f", value)


def string(text: str) -> bytes:
    """CDR of a std_msgs/String."""
    out = bytearray()
    _text(out, text)
    return _LITTLE + bytes(out)


def camera_info(
    stamp_ns: int,
    frame_id: str,
    width: int,
    height: int,
    k: Sequence[float],
    d: Sequence[float] = (),
    distortion_model: str = "plumb_bob",
) -> bytes:
    """CDR of a sensor_msgs/CameraInfo of an unrectified pinhole camera.

    Args:
        k: 9 values, row-major 3x3 intrinsic matrix in pixels.
        d: distortion coefficients of `distortion_model`; none means an ideal lens (five zeros).
    """
    types = typestore().types
    k = np.asarray(k, dtype=np.float64).reshape(9)
    d = np.asarray(d, dtype=np.float64) if len(d) else np.zeros(5)
    p = np.array([k[0], k[1], k[2], 0, k[3], k[4], k[5], 0, k[6], k[7], k[8], 0])
    header = types["std_msgs/msg/Header"](
        types["builtin_interfaces/msg/Time"](stamp_ns // NS, stamp_ns % NS), frame_id
    )
    roi = types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    return serialize(
        types[CAMERA_INFO](header, height, width, distortion_model, d, k, np.eye(3).reshape(9), p, 0, 0, roi),
        CAMERA_INFO,
    )


# ------------------------------------------------------------------------------------------- reading


def _order(raw: bytes) -> str:
    """Byte order of a CDR message, from its encapsulation."""
    if len(raw) < 4 or raw[0] != 0 or raw[1] > 1:
        raise MessageError(
            f"{bytes(raw[:4])!r} is no CDR encapsulation; the message is cut or of another format"
        )
    return "<" if raw[1] else ">"


def header_stamp(raw: bytes) -> int:
    """ns, stamp of a message that begins with a std_msgs/Header."""
    if len(raw) < 12:
        raise MessageError(f"{len(raw)} bytes hold no header; the message is cut")
    sec, nanosec = struct.unpack_from(_order(raw) + "iI", raw, 4)
    return sec * NS + nanosec


def image_data(raw: bytes) -> memoryview:
    """The encoded picture (JPEG, PNG) inside a sensor_msgs/CompressedImage, not copied."""
    order, offset = _order(raw), 12
    try:
        for _ in ("frame_id", "format"):
            offset += -offset % 4
            offset += 4 + struct.unpack_from(order + "I", raw, offset)[0]
        offset += -offset % 4
        (size,) = struct.unpack_from(order + "I", raw, offset)
    except struct.error:
        raise MessageError(f"{len(raw)} bytes are not a {COMPRESSED_IMAGE}; the message is cut") from None
    if offset + 4 + size > len(raw):
        raise MessageError(
            f"{COMPRESSED_IMAGE} announces {size} bytes of picture but holds "
            f"{max(0, len(raw) - offset - 4)}; the message is cut"
        )
    return memoryview(raw)[offset + 4 : offset + 4 + size]


def read_float32(raw: bytes) -> float:
    """Value of a std_msgs/Float32."""
    if len(raw) < 8:
        raise MessageError(f"{len(raw)} bytes are not a {FLOAT32}; the message is cut")
    return struct.unpack_from(_order(raw) + "f", raw, 4)[0]


def read_string(raw: bytes) -> str:
    """Text of a std_msgs/String."""
    return deserialize(raw, STRING).data


def json_object(text: str) -> dict[str, Any]:
    """The mapping in a JSON text.

    Raises:
        MessageError: it is no JSON, or another value.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise MessageError(f"not JSON ({str(error)[:200] or type(error).__name__})") from None
    if not isinstance(found, dict):
        raise MessageError(f"a JSON {type(found).__name__}, expected a mapping")
    return found


def read_json(raw: bytes) -> dict[str, Any]:
    """The mapping in a std_msgs/String of JSON; MessageError as of `json_object`."""
    return json_object(read_string(raw))


def joint_table(raws: Sequence[bytes]) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Many sensor_msgs/JointState at once: names, stamps int64 (N,) ns, position float64 (N, J).

    Messages of one publisher share their layout, so the first is parsed and the others are read as a table; a
    message that differs (other names, other lengths) is parsed alone.

    Raises:
        MessageError: a joint of the first message is absent from another, or bytes are not a JointState.
    """
    if not raws:
        return (), np.zeros(0, np.int64), np.zeros((0, 0))
    first = deserialize(raws[0], JOINT_STATE)
    names, count, size = tuple(first.name), len(first.position), len(raws[0])
    if len(names) != count:
        raise MessageError(f"JointState names {len(names)} joints but has {count} positions")
    fixed, start = _joint_columns(first)
    stamps, positions = np.zeros(len(raws), np.int64), np.zeros((len(raws), count))
    same = [i for i, r in enumerate(raws) if len(r) == size and r[:2] == _LITTLE[:2]]
    if same:
        table = np.frombuffer(b"".join(raws[i] for i in same), np.uint8).reshape(len(same), size)
        alike = (table[:, fixed] == np.frombuffer(raws[0], np.uint8)[fixed]).all(axis=1)
        table, same = table[alike], [i for i, a in zip(same, alike, strict=True) if a]
        when = np.ascontiguousarray(table[:, 4:12])
        stamps[same] = when.view("<i4")[:, 0].astype(np.int64) * NS + when.view("<u4")[:, 1]
        positions[same] = np.ascontiguousarray(table[:, start : start + 8 * count]).view("<f8")
    for i in set(range(len(raws))) - set(same):
        message = deserialize(raws[i], JOINT_STATE)
        at = dict(zip(message.name, message.position, strict=False))
        missing = [n for n in names if n not in at]
        if missing:
            raise MessageError(
                f"JointState {i} has no joint {missing[0]!r}; it has {', '.join(message.name)}"
            )
        stamps[i] = header_stamp(raws[i])
        positions[i] = [at[n] for n in names]
    return names, stamps, positions


def _joint_columns(first: Any) -> tuple[np.ndarray, int]:
    """Bytes that two JointStates of one layout share, and where positions start.

    That is all but stamp, numbers and padding, in which a middleware may leave anything.
    """
    offset, fixed = 8, []
    for text in (first.header.frame_id, None, *first.name):
        offset += -offset % 4
        size = 4 if text is None else 4 + len(text.encode()) + 1  # None: the count of names
        fixed += range(offset, offset + size)
        offset += size
    offset += -offset % 4
    fixed += range(offset, offset + 4)  # the count of positions
    offset += 4
    offset += -offset % 8 if len(first.position) else 0
    return np.array(fixed) + 4, offset + 4
