"""One episode, one rosbag2 directory, read as a stream. `bag_writer.py` writes them.

The description of the episode (instruction, seed, success, ...) is the latched topic `episode/meta` (JSON) and, for
a reader in a hurry, `custom_data` of metadata.yaml.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from rosbags.rosbag2 import Reader

from vipra_ros.data import messages
from vipra_ros.data.messages import MessageError
from vipra_ros.data.unpack import bound_rosbags

PARTIAL = ".partial"
CUSTOM_KEY = "vipra_ros"
META_TOPIC = "episode/meta"
#: Beside the unfinished bag: what is known of the episode so far, for a repair.
NOTES = "notes.json"
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: Characters of a metadata.yaml: a bag of a thousand files has a quarter of a million.
MOST_METADATA = 4 << 20
bound_rosbags()


class BagError(RuntimeError):
    """A bag cannot be written or read; the message names the bag and the remedy."""


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


def robots_in(path: Path, joint_states: str = "joint_states") -> list[str]:
    """Namespaces of the robots that the bag `path` is about: "" or "/left", ...; none without joint states."""
    with EpisodeReader(path) as bag:
        found = [f"/{t}".removesuffix(f"/{joint_states}") for t in bag.topics if f"/{t}".endswith(f"/{joint_states}")]
    # Below a robot are its leader and its hand.
    return sorted(n for n in found if not any(n.startswith(f"{other}/") for other in found))


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
        seen: set[str] = set()  # links may lead in a circle
        for folder, names, files in os.walk(path, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:
                names.clear()
                continue
            seen.add(real)
            names[:] = sorted(n for n in names if not n.startswith("."))
            if "metadata.yaml" in files:
                found.append(Path(folder))
                names.clear()
            elif parts := sorted(f for f in files if f.endswith((".mcap", ".db3"))):
                # A bag without its metadata is reported as broken, not overlooked; loose files are bags each.
                found += [Path(folder)] if len(parts) == 1 or _split(parts) else [Path(folder) / f for f in parts]
                names.clear()
    return found


def _split(files: Sequence[str]) -> bool:
    """Whether the files are those of one bag: NAME_0.mcap, NAME_1.mcap, ..."""
    names = [re.fullmatch(r"(.+)_\d+\.(?:mcap|db3)", f) for f in files]
    return all(names) and len({match[1] for match in names}) == 1
