"""One pass over a bag: numbers of the small topics, stamps of the pictures, and the pictures if they are few."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vipra_ros.data import messages, pictures, sources
from vipra_ros.data.bags import EpisodeReader
from vipra_ros.data.mapping import Hand, Joints, TopicMap, relative
from vipra_ros.data.reception import CLOCK_SKEW
from vipra_ros.data.resample import EpisodeError
from vipra_ros.data.sources import Table, Types
from vipra_ros.data.topics import Topics

CACHE_BYTES = 64 * 2**20  # pictures of an episode up to this size are kept; a longer one is read twice
_ROLES = ("joints", "command", "gripper_state", "gripper_command")


@dataclass
class Gathered:
    """What a bag holds, by role.

    Attributes:
        tables: role -> (names, stamps ns, received ns, values).
        cameras: name -> relative topic. images: name -> int64 stamps, ns, in order of arrival.
        cache: the cameras' messages, None when they are too many.
        delay: role or camera -> s, median from stamp to receipt.
    """

    types: Types
    tables: dict[str, tuple]
    cameras: dict[str, str]
    images: dict[str, np.ndarray]
    cache: dict[str, list[bytes]] | None
    instruction: str
    meta: dict[str, Any]
    delay: dict[str, float] = field(default_factory=dict)


def gather(reader: EpisodeReader, topics: TopicMap, cameras: list[str] | None, commands_only: bool = False) -> Gathered:
    """Read a bag once.

    Raises:
        EpisodeError: a topic is missing, empty or of a type that cannot be what the map says; two clocks.
    """
    types = Types(reader.connections, topics.definitions)
    chosen = {} if commands_only else _cameras(reader, topics, cameras)
    roles = _ROLES[1::2] if commands_only else _ROLES
    wanted = {r: getattr(topics, r) for r in roles if getattr(topics, r).topic}
    missing = [t for t in [*chosen.values(), *(relative(s.topic) for s in wanted.values())] if not reader.counts.get(t)]
    if missing:
        there = ", ".join(sorted(t for t, n in reader.counts.items() if n))
        raise EpisodeError(f"{missing[0]} is missing or empty; the bag has {there}")
    tables = _tables(reader, topics, types, wanted)
    feed: dict[str, list[Table]] = {}
    for table in dict.fromkeys(tables.values()):
        feed.setdefault(relative(table.topic), []).append(table)
    camera_of = {t: c for c, t in chosen.items()}
    words = {relative(t) for t in (topics.instruction.topic, topics.success.topic) if t}
    last: dict[str, tuple[str, bytes]] = {}
    images: dict[str, list[tuple[int, int]]] = {c: [] for c in chosen}
    cache: dict[str, list[bytes]] | None = {c: [] for c in chosen}
    size = 0
    for topic, msgtype, stamp, data in reader.messages(list(dict.fromkeys([*feed, *camera_of, *words]))):
        for table in feed.get(topic, ()):
            table.add(stamp, data)
        if topic in words:
            last[topic] = (msgtype, data)
        camera = camera_of.get(topic)
        if camera is None:
            continue
        exposed = messages.header_stamp(data) if topics.stamps == "header" else 0
        images[camera].append((exposed or stamp, stamp))
        _one_clock(topic, np.array([exposed or stamp]), np.array([stamp]))
        size += len(data)
        if cache is not None:
            cache[camera].append(data)
            if size > CACHE_BYTES:
                cache = None
    found = Gathered(types, {}, chosen, {}, cache, "", {})
    parsed = {table: table.result() for table in dict.fromkeys(tables.values())}
    for role, table in tables.items():
        found.tables[role] = parsed[table]
        _, stamps, received, _ = parsed[table]
        _one_clock(table.topic, stamps, received)
        found.delay[role] = float(np.median(received - stamps)) / messages.NS
    for camera, pairs in images.items():
        both = np.array(pairs, np.int64)
        found.images[camera] = both[:, 0]
        found.delay[camera] = float(np.median(both[:, 1] - both[:, 0])) / messages.NS
    if not commands_only:
        found.meta = _meta(reader, topics, types, last)
        found.instruction = _instruction(found.meta, topics, types, last)
    return found


def _cameras(reader: EpisodeReader, topics: TopicMap, wanted: list[str] | None) -> dict[str, str]:
    known = topics.camera_topics([t for t, n in reader.counts.items() if n])
    if wanted is not None and not topics.cameras:
        known |= {c: Topics(image=topics.image).image_of(c) for c in wanted}
    chosen = {c: known[c] for c in wanted if c in known} if wanted is not None else known
    if wanted is not None and len(chosen) < len(wanted):
        raise EpisodeError(f"camera {(set(wanted) - set(known)).pop()!r} is not in the topic map: {', '.join(known)}")
    if not chosen:
        raise EpisodeError(
            f"no pictures: {topics.image} is not in the bag, which has {', '.join(sorted(reader.topics))}"
        )
    for topic in chosen.values():
        kind = reader.topics.get(topic)
        if kind not in (None, *pictures.TYPES):
            raise EpisodeError(f"{topic} is a {kind}; one of {', '.join(pictures.TYPES)} was expected; map the topic")
    return chosen


def _tables(
    reader: EpisodeReader, topics: TopicMap, types: Types, wanted: dict[str, Joints | Hand]
) -> dict[str, Table]:
    """A table for every role; two roles that read the same share one."""
    made: dict[tuple, Table] = {}
    out = {}
    for role, source in wanted.items():
        names = source.names if isinstance(source, Joints) else (source.joint,) if source.joint else ()
        topic = relative(source.topic)
        key = (topic, source.field, names)
        if key not in made:
            headers = topics.stamps == "header"
            made[key] = Table(topic, reader.topics[topic], types, source.field, names, headers)
        out[role] = made[key]
    return out


def _one_clock(topic: str, stamps: np.ndarray, received: np.ndarray) -> None:
    off = received - stamps
    worst = off[np.abs(off).argmax()]
    if abs(worst) > CLOCK_SKEW:
        raise EpisodeError(
            f"{topic}: stamped {worst / messages.NS:.1f} s before it was recorded: two clocks; record with the clock "
            "that stamps (use_sim_time), synchronise the hosts, or map `stamps: receipt`"
        )


def _meta(reader: EpisodeReader, topics: TopicMap, types: Types, last: dict) -> dict[str, Any]:
    meta = dict(reader.meta())
    if "success" not in meta:
        topic = relative(topics.success.topic)
        if topic in last:
            meta["success"] = sources.truth(types.read(last[topic][1], last[topic][0]), topic)
        elif topics.success.value is not None:
            meta["success"] = topics.success.value
    return meta


def _instruction(meta: dict[str, Any], topics: TopicMap, types: Types, last: dict) -> str:
    said, topic = meta.get("instruction"), relative(topics.instruction.topic)
    if said is None and topic in last:
        said = sources.text(types.read(last[topic][1], last[topic][0]), topic)
    said = said or topics.instruction.text
    if not isinstance(said, str) or not said.strip():
        raise EpisodeError(
            f"no instruction in {Topics().meta} or {topic or 'a mapped topic'}; relabel the episode, or give its text "
            "in the topic map"
        )
    return said.strip()
