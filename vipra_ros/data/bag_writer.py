"""Writes one episode as a rosbag2 MCAP directory: beside, and renamed when it is finished.

`EpisodeWriter` takes CDR bytes as they come from a raw subscription or from `messages`. The bag grows in
`ROOT/.partial/...` and appears as `ROOT/NAME` only when it is complete and on disk, so what a reader finds
is always a finished episode. What a killed writer leaves in `.partial` is made whole by `repair.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import TypesysError

from vipra_ros.data import messages
from vipra_ros.data.bags import CUSTOM_KEY, META_TOPIC, NOTES, PARTIAL, BagError
from vipra_ros.data.topics import latched
from vipra_ros.whole_file import write_whole

#: ns of messages after which a chunk is closed and handed to the system: what a kill may cost.
FLUSH_EVERY = messages.NS
_serial = itertools.count()
_FOREVER = QosTime(2147483647, 4294967295)  # rmw's "infinite" as rosbag2 stores it
#: Stored with latched topics only: a player offers reliable for the rest, which suits every subscriber.
_LATCHED = Qos(
    QosHistory.KEEP_LAST,
    1,
    QosReliability.RELIABLE,
    QosDurability.TRANSIENT_LOCAL,
    _FOREVER,
    _FOREVER,
    QosLiveliness.AUTOMATIC,
    _FOREVER,
    False,
)


def _stage(partial: Path) -> Path:
    """A new folder of this writer's own below `partial`."""
    for attempt in itertools.count():
        stage = partial / f"{os.getpid()}-{next(_serial)}"
        try:
            stage.mkdir(parents=True)
            return stage
        except FileNotFoundError:  # a writer that finishes may remove the empty `.partial` under us
            if attempt == 100:
                raise
        except FileExistsError:  # of a writer that was killed, and had the same number
            if not stage.exists():
                raise


class EpisodeWriter:
    """Writes one episode.

    Args:
        root: folder of episodes, made when absent.
        name: name of the episode's directory; must not exist yet.
        namespace: ROS namespace the relative topics were resolved in, e.g. "left".
        compress: zstd chunks; JPEG does not shrink, joint states do.
        sync: wait until the disk has it before the episode appears (a power cut then leaves no empty bag).
    """

    def __init__(
        self, root: Path, name: str, *, namespace: str = "", compress: bool = False, sync: bool = True
    ):
        root = Path(root)
        if not name or "/" in name or name.startswith("."):
            raise BagError(f"episode name {name!r}: use a plain directory name")
        self.path = root / name
        if self.path.exists():
            raise BagError(f"{self.path} exists; choose another name or delete it")
        self._prefix = f"/{namespace.strip('/')}/" if namespace.strip("/") else "/"
        self._sync, self._channels, self._last, self._flushed = sync, {}, 0, 0
        self._stage = _stage(root / PARTIAL)
        self._bag = Writer(self._stage / name, version=9, storage_plugin=StoragePlugin.MCAP)
        if compress:
            self._bag.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._bag.open()
        with contextlib.suppress(OSError):  # some network disks have no locks
            fcntl.flock(self._bag.storage.bio, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with this process

    def write(self, topic: str, msgtype: str, message: bytes | Any, stamp_ns: int) -> None:
        """Append a message.

        Args:
            topic: relative name (`joint_states`) or a resolved one (`/joint_states`).
            message: CDR bytes, or a typestore message object.
            stamp_ns: ns, when it was received (in simulation: simulation time).
        """
        if self._bag is None:
            raise BagError(f"{self.path}: the episode is closed; nothing more can be written")
        channel = self._channels.get(topic)
        if channel is None:
            channel = self._channels[topic] = self._open_channel(topic, messages.full_type(msgtype))
        if not isinstance(message, (bytes, bytearray, memoryview)):
            message = messages.serialize(message, msgtype)
        self._last = max(self._last, stamp_ns)
        self._bag.write(channel, stamp_ns, message)
        self._flushed = self._flushed or stamp_ns
        if self._sync and abs(stamp_ns - self._flushed) > FLUSH_EVERY:
            self._flushed = stamp_ns
            self._bag.storage.close_chunk()
            self._bag.storage.bio.flush()

    def note(self, meta: dict[str, Any]) -> None:
        """Lay down what is known of the episode by now, in case `close` is never reached."""
        write_whole(self._stage / NOTES, json.dumps(meta, ensure_ascii=False))

    def close(self, meta: dict[str, Any]) -> Path:
        """Write the description, finish the bag, make it appear under its name; returns its path.

        Args:
            meta: JSON values; the converter uses `instruction`, `task`, `colour`, `seed`, `success`, `robot`
                and keeps the rest (`operator`, `cameras`, `version`, ...).

        Raises:
            BagError: already closed, or the name was taken meanwhile (the recording stays in `.partial`).
        """
        self.write(
            META_TOPIC, messages.STRING, messages.string(json.dumps(meta, ensure_ascii=False)), self._last
        )
        bag, self._bag = self._bag, None
        bag.set_custom_data(CUSTOM_KEY, json.dumps(meta))
        try:
            bag.close()
        except BaseException:
            with contextlib.suppress(OSError):
                bag.abort()
            raise
        staged = self._stage / self.path.name
        if self._sync:
            for file in (*staged.iterdir(), staged):
                fsync(file)
        try:
            os.rename(staged, self.path)  # refuses a directory that is not empty: never overwrites an episode
        except OSError as error:
            raise BagError(
                f"{self.path} could not be made ({error.strerror}); the recording is in {staged}"
            ) from None
        if self._sync:
            fsync(self.path.parent)
        self._clean()
        return self.path

    def discard(self) -> None:
        """Throw the recording away; harmless after `close`."""
        if self._bag is not None:
            self.abandon()
            shutil.rmtree(self._stage, ignore_errors=True)
            self._clean()

    def erase(self) -> None:
        """As :meth:`discard`, and also what a failed `close` has left for a repair."""
        self.abandon()
        shutil.rmtree(self._stage, ignore_errors=True)
        self._clean()

    def abandon(self) -> None:
        """Write nothing more and leave what is on disk to a repair; harmless after `close`."""
        bag, self._bag = self._bag, None
        if bag is not None:
            with contextlib.suppress(OSError):  # a full disk refuses the last buffer, too
                bag.abort()

    def _open_channel(self, topic: str, msgtype: str):
        resolved = topic if topic.startswith("/") else self._prefix + topic
        relative = resolved.removeprefix(self._prefix)
        for known, channel in self._channels.items():
            if channel.topic == resolved:  # the same topic by its other spelling
                return self._channels[known]
        try:
            return self._bag.add_connection(
                resolved,
                msgtype,
                typestore=messages.typestore(),
                offered_qos_profiles=[_LATCHED] if latched(relative) else [],
            )
        except (KeyError, TypesysError):
            raise BagError(f"{topic}: message type {msgtype!r} is not known; add its .msg to msg/") from None

    def _clean(self) -> None:
        (self._stage / NOTES).unlink(missing_ok=True)
        for folder in (self._stage, self._stage.parent):
            try:
                folder.rmdir()
            except OSError:  # another episode is being written, or it is gone already
                pass


def fsync(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
