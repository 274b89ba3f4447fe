"""A bag written from raw records: any message type, known here or not, with its definition as it came.

What relabelling and repair have in common: the messages of one MCAP file are written into a new one, and the
new one takes its place in one step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from vipra_ros.data import messages
from vipra_ros.data.bag_writer import fsync
from vipra_ros.data.bags import CUSTOM_KEY, META_TOPIC

#: Stands for the hash of a type whose definition cannot be parsed; readers take it as "not known".
UNKNOWN_HASH = "RIHS01_" + "0" * 64


class RawBag:
    """A new rosbag2 MCAP folder at `path`; topics are resolved names.

    Args:
        compress: zstd chunks.
    """

    def __init__(self, path: Path, compress: bool = False):
        self.path, self._channels, self.last = path, {}, 0
        self._bag = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
        if compress:
            self._bag.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._bag.open()

    def write(
        self, topic: str, msgtype: str, stamp: int, raw: bytes, definition: str = "", qos: Sequence = ()
    ) -> None:
        """Append a message; `definition` (ros2msg) and `qos` count at the first message of a topic."""
        channel = self._channels.get((topic, msgtype))
        if channel is None:
            store = messages.typestore()
            keywords: dict[str, Any] = {"offered_qos_profiles": list(qos)}
            if msgtype in store.types:
                keywords["typestore"] = store
            else:
                keywords |= {"msgdef": definition, "rihs01": _type_hash(msgtype, definition)}
            channel = self._channels[topic, msgtype] = self._bag.add_connection(topic, msgtype, **keywords)
        self.last = max(self.last, stamp)
        self._bag.write(channel, stamp, raw)

    def close(self, meta: dict[str, Any] | None = None, prefix: str = "/") -> None:
        """Finish the bag and wait until it is on disk; `meta` becomes its description, in the namespace `prefix`."""
        if meta is not None:
            text = messages.string(json.dumps(meta, ensure_ascii=False))
            self.write(prefix + META_TOPIC, messages.STRING, self.last, text)
            self._bag.set_custom_data(CUSTOM_KEY, json.dumps(meta))
        self._bag.close()
        for file in (*self.path.iterdir(), self.path):
            fsync(file)

    def abort(self) -> None:
        """Close the file as it is."""
        self._bag.abort()


def take_place(new: Path, old: Path) -> None:
    """The files of the bag `new` become those of the bag `old`, one by one, each in one step.

    A kill in between leaves new messages under the old metadata.yaml: a bag that reads as before.
    """
    for name in (f"{old.name}.mcap", "metadata.yaml"):
        os.replace(new / name, old / name)
    fsync(old)


def _type_hash(msgtype: str, definition: str) -> str:
    try:
        store = get_typestore(Stores.EMPTY)
        store.register(get_types_from_msg(definition, msgtype))
        return store.hash_rihs01(msgtype)
    except Exception:  # rosbags raises what its parser stumbles over
        return UNKNOWN_HASH
