"""One episode, one rosbag2 MCAP directory: written beside, renamed when finished; read as a stream.

`EpisodeWriter` takes CDR bytes as they come from a raw subscription or from `messages`. The bag grows in
`ROOT/.partial/...` and appears as `ROOT/NAME` only when it is complete and on disk, so what a reader finds
is always a finished episode. The description of the episode (instruction, seed, success, ...) is the
latched topic `episode/meta` (JSON) and, for a reader in a hurry, `custom_data` of metadata.yaml.
What a killed writer leaves in `.partial` is made whole by `repair.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer
from rosbags.typesys import TypesysError

from vipra_ros.data import messages
from vipra_ros.data.messages import MessageError
from vipra_ros.data.topics import latched
from vipra_ros.data.unpack import bound_rosbags

PARTIAL = ".partial"
CUSTOM_KEY = "vipra_ros"
META_TOPIC = "episode/meta"
#: Beside the unfinished bag: what is known of the episode so far, for a repair.
NOTES = "notes.json"
#: ns of messages after which a chunk is closed and handed to the system: what a kill may cost.
FLUSH_EVERY = messages.NS
_serial = itertools.count()
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: Characters of a metadata.yaml: a bag of a thousand files has a quarter of a million.
MOST_METADATA = 4 << 20
bound_rosbags()


class BagError(RuntimeError):
    """A bag cannot be written or read; the message names the bag and the remedy."""


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
        self._stage = root / PARTIAL / f"{os.getpid()}-{next(_serial)}"
        self._prefix = f"/{namespace.strip('/')}/" if namespace.strip("/") else "/"
        self._sync, self._channels, self._last, self._flushed = sync, {}, 0, 0
        for _ in range(3):  # a writer that finishes may remove the empty `.partial` under us
            try:
                self._stage.mkdir(parents=True)
                break
            except FileNotFoundError:
                continue
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
        new = self._stage / f"{NOTES}.new"
        new.write_text(json.dumps(meta, ensure_ascii=False), encoding="utf-8")
        os.replace(new, self._stage / NOTES)

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


class EpisodeReader:
    """Reads one bag: ours, or any rosbag2 (MCAP or sqlite3).

    Args:
        path: the bag's directory, or a single .mcap or .db3 file.
        namespace: ROS namespace to read; its prefix is taken off the topic names.

    Attributes:
        topics: relative topic name -> message type. connections: rosbags' own, with embedded definitions.
        counts: relative topic name -> messages.
    """

    def __init__(self, path: Path, *, namespace: str = ""):
        self.path = Path(path)
        self._prefix = f"/{namespace.strip('/')}/" if namespace.strip("/") else "/"
        try:
            storage, self._custom = _storage(self.path)
            for file in storage.glob("*.db3") if storage.is_dir() else [storage]:
                _check_tables(file)
            self._bag = Reader(storage)
            self._bag.open()
            self._check_types()
        except Exception as error:  # rosbags raises a dozen kinds on damaged files
            with contextlib.suppress(Exception):
                self.close()
            raise BagError(
                f"{self.path} cannot be read as a rosbag2 ({error}); "
                f"it was cut or is no bag: try `vipra bags repair {self.path}`, or leave it out"
            ) from error
        self.connections = list(self._bag.connections)
        self._connections: dict[str, list] = {}  # several where publishers differ in their QoS
        for c in self.connections:
            if c.topic.startswith(self._prefix) or not c.topic.startswith("/"):
                self._connections.setdefault(c.topic.removeprefix(self._prefix), []).append(c)
        self.topics = {name: messages.full_type(c[0].msgtype) for name, c in self._connections.items()}
        self.counts = {name: sum(one.msgcount for one in c) for name, c in self._connections.items()}

    @property
    def start_ns(self) -> int:
        """ns, earliest message."""
        return self._bag.start_time

    @property
    def duration(self) -> float:
        """s between the first and the last message."""
        return max(0, self._bag.duration - 1) / messages.NS

    def meta(self) -> dict[str, Any]:
        """Description of the episode, {} when the bag has none."""
        text = self._custom.get(CUSTOM_KEY)
        if not isinstance(text, str) and META_TOPIC in self._connections:
            texts = [messages.read_string(raw) for _, _, _, raw in self.messages([META_TOPIC])]
            text = texts[-1] if texts else None
        try:
            return messages.json_object(text) if text else {}
        except MessageError as error:
            raise BagError(f"{self.path}: {META_TOPIC}: {error}; relabel the episode") from None

    def messages(self, topics: Sequence[str] | None = None) -> Iterator[tuple[str, str, int, bytes]]:
        """Stream (relative topic, type, receive stamp in ns, CDR bytes) in the order of the stamps.

        Raises:
            BagError: the file is damaged; what came before it was handed over.
        """
        names = list(self._connections) if topics is None else [t for t in topics if t in self._connections]
        if not names:
            return
        wanted = [c for n in names for c in self._connections[n]]
        by_topic = {c.topic: name for name in names for c in self._connections[name]}
        for connection, stamp, raw in self._guarded(self._bag.messages(wanted)):
            yield by_topic[connection.topic], connection.msgtype, stamp, raw

    def _guarded(self, found: Iterable[tuple[Any, int, bytes]]) -> Iterator[tuple[Any, int, bytes]]:
        """The messages of rosbags; whatever it stumbles over becomes a BagError."""
        try:
            for connection, stamp, raw in found:
                if type(stamp) is not int or not isinstance(raw, bytes):
                    raise TypeError(f"a message of {type(raw).__name__} at {stamp!r}")
                yield connection, stamp, raw
        except (BagError, GeneratorExit):
            raise
        except Exception as error:
            raise BagError(
                f"{self.path} is damaged inside ({type(error).__name__}: {error}); record it again "
                f"or try `vipra bags repair {self.path}`"
            ) from error

    @property
    def compressed(self) -> bool:
        """Whether chunks of the MCAP file are compressed."""
        return any(c.compression for c in getattr(self._bag.storage, "chunks", ()))

    def raw(self) -> Iterator[tuple[Any, int, bytes]]:
        """Stream every message as (rosbags connection, stamp in ns, bytes), of all namespaces and types."""
        yield from self._guarded(self._bag.messages())

    def _check_types(self) -> None:
        """A database's columns hold values of any type, and an index may name a chunk many times."""
        for c in self._bag.connections:
            if not (isinstance(c.topic, str) and isinstance(c.msgtype, str) and type(c.msgcount) is int):
                raise TypeError(f"topic {c.topic!r} of type {c.msgtype!r} with {c.msgcount!r} messages")
        if type(self._bag.start_time) is not int or type(self._bag.duration) is not int:
            raise TypeError(f"times {self._bag.start_time!r}, {self._bag.duration!r}")
        chunks = getattr(self._bag.storage, "chunks", ())
        if len({c.chunk_start_offset for c in chunks}) < len(chunks):
            raise ValueError("its index names a chunk twice")

    def close(self) -> None:
        """Close the files."""
        if self._bag.is_open:
            self._bag.close()

    def __enter__(self) -> EpisodeReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _storage(path: Path) -> tuple[Path, dict[str, str]]:
    """What to open, and the custom data.

    A single plain MCAP file is opened itself: it describes itself, and parsing metadata.yaml in Python costs
    as long as reading a short episode; libyaml takes a twentieth.
    """
    if path.is_file():
        return path, {}
    text = (path / "metadata.yaml").read_text(encoding="utf-8")
    if len(text) > MOST_METADATA:
        raise ValueError(f"metadata.yaml has {len(text)} characters, {MOST_METADATA} are taken")
    if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_YAML)):
        raise ValueError("metadata.yaml has aliases, which multiply")
    info = yaml.load(text, Loader=_YAML)["rosbag2_bagfile_information"]
    custom = info.get("custom_data") or {}
    if not isinstance(custom, dict):
        raise TypeError(f"custom_data is {type(custom).__name__}")
    files = info["relative_file_paths"]
    if info["storage_identifier"] == "mcap" and len(files) == 1 and not info.get("compression_mode"):
        return path / Path(files[0]).name, custom
    return path, custom


def _check_tables(path: Path) -> None:
    """Refuse a database that computes when it is read: views, virtual tables, generated columns run for ever."""
    if path.suffix != ".db3":
        return
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as db:
        for kind, name, text in db.execute("SELECT type, name, sql FROM sqlite_master"):
            if kind not in ("table", "index") or re.search(r"(?i)^\s*create\s+virtual|\bas\b\s*\(", text or ""):
                raise ValueError(f"{kind} {name} is no plain table")


def find_bags(paths: Sequence[Path]) -> list[Path]:
    """Bags below `paths` (a bag, a .mcap or .db3 file, or folders of bags), sorted, unfinished recordings left out."""
    found = []
    for path in map(Path, paths):
        if not path.exists():
            raise BagError(f"{path}: no such folder; give a bag or a folder of bags")
        if (path / "metadata.yaml").exists() or path.is_file():
            found.append(path)
            continue
        for folder, names, files in os.walk(path):
            names[:] = sorted(n for n in names if not n.startswith("."))
            if "metadata.yaml" in files:
                found.append(Path(folder))
                names.clear()
            elif any(f.endswith((".mcap", ".db3")) for f in files):
                found.append(Path(folder))  # a bag without its metadata: reported as broken, not overlooked
                names.clear()
    return found
