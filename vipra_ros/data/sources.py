"""Messages of any type as tables of numbers: what a `TopicMap` points at, read in blocks.

A block of messages is parsed and thrown away, so that memory holds 8 bytes a number and not half a kilobyte a
message. sensor_msgs/JointState, by far the most frequent, is read as a table; everything else goes through the
typestore, with the definitions that the bag itself carries.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rosbags.interfaces import MessageDefinitionFormat
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore

from vipra_ros.data import messages
from vipra_ros.data.messages import MessageError
from vipra_ros.data.resample import EpisodeError

_BLOCK = 2048  # messages parsed at once
IMAGE = "sensor_msgs/msg/Image"
#: Raw pictures that OpenCV turns into RGB: encoding -> (bytes a pixel, name of the conversion).
ENCODINGS = {
    "rgb8": (3, None),
    "8UC3": (3, "COLOR_BGR2RGB"),
    "bgr8": (3, "COLOR_BGR2RGB"),
    "rgba8": (4, "COLOR_RGBA2RGB"),
    "bgra8": (4, "COLOR_BGRA2RGB"),
    "mono8": (1, "COLOR_GRAY2RGB"),
    "yuv422_yuy2": (2, "COLOR_YUV2RGB_YUY2"),
    "yuv422": (2, "COLOR_YUV2RGB_UYVY"),
    "bayer_rggb8": (1, "COLOR_BayerBG2RGB"),
    "bayer_bggr8": (1, "COLOR_BayerRG2RGB"),
    "bayer_gbrg8": (1, "COLOR_BayerGR2RGB"),
    "bayer_grbg8": (1, "COLOR_BayerGB2RGB"),
}


class Types:
    """Deserialises messages of one bag.

    Args:
        connections: of the bag; their embedded definitions are used for types that are not known here.
        definitions: folders of PACKAGE/msg/NAME.msg, for bags that embed none.
    """

    def __init__(self, connections, definitions: tuple[str, ...] = ()):
        self._store = messages.typestore()
        unknown = [c for c in connections if c.msgtype not in self._store.fielddefs]
        if not unknown and not definitions:
            return
        own = get_typestore(Stores.EMPTY)
        own.fielddefs.update(self._store.fielddefs)
        own.types.update(self._store.types)
        self._store, found = own, {}
        for folder in definitions:
            for path in sorted(Path(folder).rglob("msg/*.msg")):
                name = f"{path.parent.parent.name}/msg/{path.stem}"
                found |= get_types_from_msg(path.read_text(encoding="utf-8"), name)
        for c in unknown:
            if c.msgdef.format == MessageDefinitionFormat.MSG:
                found |= get_types_from_msg(c.msgdef.data, c.msgtype)
            elif c.msgdef.format == MessageDefinitionFormat.IDL:
                found |= get_types_from_idl(c.msgdef.data)
        own.register({k: v for k, v in found.items() if k not in own.fielddefs})

    def read(self, raw: bytes, msgtype: str) -> Any:
        """The message as an object.

        Raises:
            MessageError: the type is not known, or the bytes are not such a message.
        """
        if msgtype not in self._store.fielddefs:
            raise MessageError(
                f"{msgtype} is not known and the bag does not define it; give the folder of its .msg files "
                "as `definitions` in the topic map"
            )
        return messages.deserialize(raw, msgtype, self._store)

    def has_header(self, msgtype: str) -> bool:
        """Whether messages of this type begin with a std_msgs/Header."""
        fields = self._store.fielddefs.get(msgtype, ((), ()))[1]
        return bool(fields) and fields[0][1][1] == "std_msgs/msg/Header"


class Table:
    """Times and numbers of one topic, fed message by message.

    Args:
        topic: for the errors. msgtype: of its messages. types: of the bag.
        field: dotted path inside the message. names: joints wanted; messages without the first are passed over.
        headers: take the headers' stamps, where there are some.
    """

    def __init__(self, topic: str, msgtype: str, types: Types, field: str = "", names=(), headers: bool = True):
        self.topic, self.msgtype, self.count = topic, msgtype, 0
        self._types, self._field, self._wanted = types, field, tuple(names)
        self._fast = msgtype == messages.JOINT_STATE and not field
        self._headers = headers and types.has_header(msgtype)
        self._needle = self._wanted[0].encode() + b"\x00" if self._wanted and self._fast else b""
        self._raw: list[bytes] = []
        self._received: list[int] = []
        self._columns: tuple[str, ...] = ()
        self._blocks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, received: int, raw: bytes) -> None:
        """Take in one message. `received`: ns."""
        if self._needle and self._needle not in raw:
            return
        self._raw.append(raw)
        self._received.append(received)
        self.count += 1
        if len(self._raw) >= _BLOCK:
            self._parse()

    def result(self) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray]:
        """(names, stamps int64 (N,) ns, received int64 (N,) ns, values float64 (N, D)); stamps of headers or receipt.

        Raises:
            EpisodeError: no message holds the joints wanted.
        """
        if self._raw:
            self._parse()
        if not self._blocks:
            raise EpisodeError(f"{self.topic} has no message with joint {self._wanted[0]!r}; map the topic")
        stamps, received, values = (np.concatenate(part) for part in zip(*self._blocks, strict=True))
        if not stamps.any():  # no headers, or never filled in: the time of receipt is all there is
            stamps = received
        return self._columns, stamps, received, values

    def _parse(self) -> None:
        received = np.array(self._received, np.int64)
        if self._fast:
            names, stamps, values = messages.joint_table(self._raw)
            if not self._headers:
                stamps = np.zeros(len(received), np.int64)
        else:
            names, rows = (), []
            for raw in self._raw:
                found, row = numbers(self._types.read(raw, self.msgtype), self._field, self.topic)
                names = names or found or self._wanted or tuple(f"{self.topic}[{i}]" for i in range(len(row)))
                if found and found != names:
                    at = dict(zip(found, row, strict=True))
                    row = [at[n] for n in names] if set(names) <= set(at) else ()
                if len(row) != len(names):
                    raise MessageError(f"{self.topic}: {len(row)} numbers for {len(names)} joints {', '.join(names)}")
                rows.append(row)
            values = np.array(rows, np.float64).reshape(len(rows), -1)
            stamps = [messages.header_stamp(r) if self._headers else 0 for r in self._raw]
        if self._columns and names != self._columns:
            if not set(self._columns) <= set(names):
                raise MessageError(f"{self.topic}: joints change from {', '.join(self._columns)} to {', '.join(names)}")
            values = values[:, [names.index(n) for n in self._columns]]
        self._columns = self._columns or names
        self._blocks.append((np.asarray(stamps, np.int64), received, values))
        self._raw, self._received = [], []


def numbers(message: Any, field: str, topic: str) -> tuple[tuple[str, ...], list[float]]:
    """Names (may be none) and numbers of a message, or of what its dotted `field` leads to."""
    value = pick(message, field, topic)
    if hasattr(value, "points"):  # a trajectory: what is to be reached first
        value, names = (value.points[0] if value.points else None), tuple(value.joint_names)
        if value is None:
            raise MessageError(f"{topic}: a trajectory without points; leave the episode out")
        return names, [float(v) for v in value.positions]
    if hasattr(value, "position") and hasattr(value, "name"):
        return tuple(value.name), [float(v) for v in value.position]
    if not field and hasattr(value, "data"):
        value = value.data
    try:
        if isinstance(value, str):
            raise TypeError  # "0.1" is a text, whatever it says
        return (), [float(v) for v in np.atleast_1d(np.asarray(value, np.float64))]
    except (TypeError, ValueError):
        raise MessageError(
            f"{topic} is a {type(message).__name__}, which is no list of numbers; say which `field` is, it has "
            f"{', '.join(_fields(value))}"
        ) from None


def pick(message: Any, field: str, topic: str) -> Any:
    """What the dotted path `field` leads to; a part may be a number, for an element of a list."""
    value = message
    for part in filter(None, field.split(".")):
        try:
            value = value[int(part)] if part.isdigit() else getattr(value, part)
        except (AttributeError, IndexError, TypeError):
            raise MessageError(f"{topic}: no {part!r} in {field!r}; there is {', '.join(_fields(value))}") from None
    return value


def text(message: Any, topic: str) -> str:
    """The text of a std_msgs/String or of anything with one."""
    value = getattr(message, "data", message)
    if not isinstance(value, str):
        raise EpisodeError(f"{topic} is a {type(message).__name__}, a text was expected; map the topic")
    return value


def truth(message: Any, topic: str) -> bool:
    """What a truth value, a number or a text like "success" says."""
    value = getattr(message, "data", message)
    if isinstance(value, str):
        word = value.strip().lower()
        if word in ("true", "success", "succeeded", "yes", "1"):
            return True
        if word in ("false", "failure", "failed", "no", "0"):
            return False
    elif isinstance(value, (bool, int, float, np.bool_)):
        return bool(value)
    raise EpisodeError(f"{topic} = {value!r}: no label; a truth value, a number, success or failure were expected")


def _fields(value: Any) -> list[str]:
    return [f for f in getattr(value, "__dataclass_fields__", {}) if not f.startswith("__")] or [type(value).__name__]
