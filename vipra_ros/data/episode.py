"""One episode at the rate of a data set: pictures by nearest-before, joints by interpolation.

The grid starts at the first picture for which everything else is known and steps by 1 / fps. At grid time t_i
    state[i]  = measured joints at t_i, then the gripper's opening in [-1, 1] (from the finger's position)
    action[i] = commanded joints at t_i + 1/fps, then the gripper command in force then (+1 open, -1 closed)
so action row i is to be REACHED one period after observation i, as `control.chunk.ActionChunk` has it. In an
action space of increments the row is what leads from the command at t_i to that one (`spaces`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vipra_ros.control.profile import RobotProfile
from vipra_ros.data import messages, pictures
from vipra_ros.data.bags import EpisodeReader
from vipra_ros.data.gathering import Gathered, gather
from vipra_ros.data.mapping import Hand, Joints, TopicMap
from vipra_ros.data.resample import EpisodeError, Resampling, Track, hold, interpolate, nearest_before
from vipra_ros.data.spaces import increments


@dataclass
class Episode:
    """A resampled episode of N frames.

    Attributes:
        meta, instruction: what was recorded about it.
        joint_names: arm joints, in the order of the columns.
        zero_ns: ns, stamp that times of the tracks count from.
        stamp_ns: int64 (N,), grid times.
        state, action: float32 (N, J + 1).
        picks: camera -> int64 (N,), number of the picture that stands for frame i.
        image_ns: camera -> int64 (M,), stamps of all pictures, as recorded.
        measured, commanded, gripper, opening: the streams behind it (for checks and plots); what was not
            recorded is the stream that stands for it.
        delay: stream -> s, median time from a message's stamp to its receipt, of those that are stamped.
        action_names: columns of `action`.
    """

    meta: dict[str, Any]
    instruction: str
    joint_names: tuple[str, ...]
    zero_ns: int
    fps: float
    stamp_ns: np.ndarray
    state: np.ndarray
    action: np.ndarray
    picks: dict[str, np.ndarray]
    image_ns: dict[str, np.ndarray]
    measured: Track
    commanded: Track
    gripper: Track
    opening: Track
    delay: dict[str, float]
    action_names: tuple[str, ...]
    _reader: EpisodeReader
    _gathered: Gathered = field(repr=False)
    _formats: dict[str, pictures.RawFormat | None] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.stamp_ns)

    def pictures(self) -> Iterator[tuple[str, int, memoryview]]:
        """Stream (camera, frame index, bytes of the picture); frames of one camera come in order."""
        types = self._gathered.types
        for camera, number, msgtype, raw in self._images():
            data = None
            first, last = np.searchsorted(self.picks[camera], [number, number + 1])
            for i in range(first, last):  # a picture can stand for two frames, or for none
                if data is None:
                    data, self._formats[camera] = pictures.payload(raw, msgtype, types)
                yield camera, i, data

    def decode(self, camera: str, index: int, data: memoryview | bytes) -> np.ndarray:
        """uint8 RGB (H, W, 3) of what `pictures` yielded last for this camera."""
        what = f"camera {camera}: picture of frame {index}"
        return pictures.decode(data, self._formats.get(camera), what)

    def _images(self) -> Iterator[tuple[str, int, str, bytes]]:
        by_topic = {t: c for c, t in self._gathered.cameras.items()}
        if self._gathered.cache is not None:
            for topic, camera in by_topic.items():
                for number, raw in enumerate(self._gathered.cache[camera]):
                    yield camera, number, self._reader.topics[topic], raw
            return
        numbers = dict.fromkeys(self.picks, 0)
        for topic, msgtype, _, raw in self._reader.messages(list(by_topic)):
            camera = by_topic[topic]
            yield camera, numbers[camera], msgtype, raw
            numbers[camera] += 1


def load_episode(
    reader: EpisodeReader,
    resampling: Resampling,
    topics: TopicMap = TopicMap(),  # noqa: B008 - frozen
    cameras: list[str] | None = None,
    action_space: str = "joint_position",
    profile: RobotProfile | None = None,
) -> Episode:
    """Read and resample one bag.

    Args:
        topics: what the bag's topics mean.
        cameras: those to use; all that are in the bag when None.
        action_space: one of `control.chunk.ACTION_SPACES`. profile: of the robot, for ee_delta.

    Raises:
        EpisodeError: a topic is missing or empty, a gap is wider than allowed, the episode is too short.
        BagError, MessageError: the bag or a message is damaged.
    """
    found = gather(reader, topics, cameras)
    zero = int(min(v[0] for v in found.images.values()))
    measured, commanded, opening, gripper = _tracks(found, topics, zero)

    image_time = {c: (stamps - zero) / messages.NS for c, stamps in found.images.items()}
    absolute = action_space == "joint_position"
    period, gap = 1.0 / resampling.fps, resampling.joint_gap
    until = np.inf  # the last command of the hand stays in force, its last state does not
    if topics.gripper_state.topic:
        until = opening.time[-1] - (0.0 if topics.gripper_command.topic else period)
    times = _grid(image_time, measured, commanded, gripper, opening, until, resampling, absolute)
    hand, asked = resampling.hand_gap, bool(topics.gripper_command.topic)
    seen = bool(topics.gripper_state.topic)
    wide = interpolate(opening, times, hand, "gripper") if seen else hold(gripper, times)
    grip = hold(gripper, times + period) if asked else interpolate(opening, times + period, hand, "gripper")
    state = np.column_stack([interpolate(measured, times, gap, topics.joints.topic), wide])
    name = topics.command.topic or topics.joints.topic
    body = interpolate(commanded, times + period, gap, name)
    names = commanded.names
    if not absolute:
        body, names = increments(interpolate(commanded, times, gap, name), body, action_space, names, profile)
    action = np.column_stack([body, grip])
    return Episode(
        meta=found.meta,
        instruction=found.instruction,
        joint_names=commanded.names,
        zero_ns=zero,
        fps=resampling.fps,
        stamp_ns=zero + np.rint(times * messages.NS).astype(np.int64),
        state=state.astype(np.float32),
        action=action.astype(np.float32),
        picks={c: nearest_before(t, times, resampling, c) for c, t in image_time.items()},
        image_ns=found.images,
        measured=measured,
        commanded=commanded,
        gripper=gripper,
        opening=opening,
        delay=found.delay,
        action_names=(*names, "gripper"),
        _reader=reader,
        _gathered=found,
    )


def _grid(
    image_time,
    measured: Track,
    commanded: Track,
    gripper: Track,
    opening: Track,
    until: float,
    resampling: Resampling,
    absolute: bool,
) -> np.ndarray:
    """Times of the frames, s: from the first picture with all else known to the last with an action."""
    period = 1.0 / resampling.fps
    ready = max(
        measured.time[0],
        opening.time[0],
        commanded.time[0] - (period if absolute else 0.0),  # increments start from the command in force
        gripper.time[0] - period,
        *(t.min() for t in image_time.values()),
    )
    anchor = image_time[next(iter(image_time))]
    anchor = np.sort(anchor[anchor >= ready - resampling.snap])
    start = max(ready, anchor[0]) if len(anchor) else np.inf
    stop = min(
        measured.time[-1],
        until,
        commanded.time[-1] - period,
        *(t.max() + min(period, resampling.image_age) for t in image_time.values()),
    )
    count = int(np.floor((stop - start) * resampling.fps + 1e-6)) + 1 if stop >= start else 0
    if count < resampling.min_frames:
        raise EpisodeError(
            f"only {max(count, 0)} frames have pictures, joints and a command one period later; at least "
            f"{resampling.min_frames} are needed: all streams must overlap"
        )
    return start + np.arange(count) * period


def load_commands(
    reader: EpisodeReader,
    topics: TopicMap = TopicMap(),  # noqa: B008 - frozen
) -> tuple[Track, Track, int]:
    """Commanded joints and hand of a bag, without its pictures, and the stamp (ns) their times count from.

    Raises:
        EpisodeError: one of the two is missing, empty or of another type.
        BagError, MessageError: the bag or a message is damaged.
    """
    found = gather(reader, topics, [], commands_only=True)
    zero = int(found.tables["command"][1][0])
    gripper = _hand(found, "gripper_command", topics.gripper_command, zero)
    return _joints(found, "command", topics.command, zero), gripper, zero


def _tracks(found: Gathered, topics: TopicMap, zero: int) -> tuple[Track, Track, Track, Track]:
    """Measured and commanded joints, measured opening and commanded hand; one that is not recorded is its twin."""
    measured = _joints(found, "joints", topics.joints, zero)
    if topics.command.topic:
        commanded = _joints(found, "command", topics.command, zero)
        measured = _select(measured, commanded.names, topics.joints.topic)
    else:
        measured = commanded = _arm(measured, topics.joints)
    hands = [
        _hand(found, role, source, zero) if source.topic else None
        for role, source in (("gripper_state", topics.gripper_state), ("gripper_command", topics.gripper_command))
    ]
    return measured, commanded, hands[0] or hands[1], hands[1] or hands[0]


def _joints(found: Gathered, role: str, source: Joints, zero: int) -> Track:
    names, stamps, _, values = found.tables[role]
    names = tuple(source.rename.get(n, n) for n in names)
    track = _track((stamps - zero) / messages.NS, values, names, source.topic)
    return _arm(track, source) if role == "command" else track


def _arm(track: Track, source: Joints) -> Track:
    """The arm's joints: those named in the map, else all but fingers, by number where each name ends in one."""
    names = tuple(source.rename.get(n, n) for n in source.names)
    if not names:
        names = tuple(n for n in track.names if "finger" not in n and "gripper" not in n)
        numbers = [re.search(r"(\d+)$", n) for n in names]
        if all(numbers) and len({m.group() for m in numbers}) == len(names):
            names = tuple(n for _, n in sorted((int(m.group()), n) for m, n in zip(numbers, names, strict=True)))
    return _select(track, names, source.topic)


def _track(time: np.ndarray, value: np.ndarray, names: tuple[str, ...], topic: str) -> Track:
    bad = ~np.isfinite(value).all(axis=1)
    if bad.any():
        raise EpisodeError(
            f"{topic}: message {np.flatnonzero(bad)[0]} holds a value that is not finite; leave the episode out"
        )
    newest = np.maximum.accumulate(time)
    keep = np.concatenate([[True], time[1:] > newest[:-1]])
    back = newest - time
    if keep.sum() < 2:
        raise EpisodeError(
            f"{topic}: {int(keep.sum())} message with a stamp of its own; the publisher must stamp them"
        )
    return Track(time[keep], value[keep], names, int((~keep).sum()), float(back.max()))


def _select(track: Track, names: tuple[str, ...], topic: str) -> Track:
    missing = [n for n in names if n not in track.names]
    if missing or not names:
        raise EpisodeError(
            f"{topic} has no joint {missing[0] if missing else 'of an arm'!r}; it has {', '.join(track.names)}"
        )
    columns = [track.names.index(n) for n in names]
    return Track(track.time, track.value[:, columns], names, track.back_steps, track.worst_back_step)


def _hand(found: Gathered, role: str, source: Hand, zero: int) -> Track:
    """The hand's number as +1 open, -1 closed."""
    names, stamps, _, values = found.tables[role]
    column = 0
    if source.joint or len(names) > 1:
        wanted = [source.joint] if source.joint else [n for n in names if "finger" in n or "gripper" in n][:1]
        if not wanted or wanted[0] not in names:
            raise EpisodeError(
                f"{source.topic} has no {source.joint or 'finger'} joint, so the gripper's opening is unknown; it has "
                f"{', '.join(names)}"
            )
        column = names.index(wanted[0])
    value = (values[:, column] - source.closed) / (source.open - source.closed) * 2.0 - 1.0
    wrong = ~(np.abs(value) <= 1.0 + 1e-6)
    if wrong.any() and not (source.clip and np.isfinite(value).all()):
        raise EpisodeError(
            f"{source.topic} = {values[wrong, column][0]:g}: must be from {source.closed:g} (closed) to "
            f"{source.open:g} (open); say in the topic map which values mean open and closed"
        )
    time, value = (stamps - zero) / messages.NS, value[:, None].clip(-1.0, 1.0)
    if role == "gripper_state":
        return _track(time, value, ("gripper",), source.topic)
    order = np.argsort(time, kind="stable")  # of two commands at one time the later one is in force
    return Track(time[order], value[order], ("gripper",))
