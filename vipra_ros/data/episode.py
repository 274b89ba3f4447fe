"""One episode at the rate of a data set: pictures by nearest-before, joints by interpolation.

The grid starts at the first picture for which everything else is known and steps by 1 / fps. At grid time t_i
    state[i]  = measured joints at t_i, then the gripper's opening in [-1, 1] (from the finger's position)
    action[i] = commanded joints at t_i + 1/fps, then the gripper command in force then (+1 open, -1 closed)
so action row i is to be REACHED one period after observation i, as `control.chunk.ActionChunk` has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vipra_ros.data import messages
from vipra_ros.data.bags import EpisodeReader
from vipra_ros.data.resample import EpisodeError, Resampling, Track, hold, interpolate, nearest_before
from vipra_ros.data.topics import Topics

_CACHE_BYTES = 64 * 2**20  # pictures of an episode up to this size are kept; a longer one is read twice
_CLOCK_SKEW_NS = 5 * messages.NS  # transport takes milliseconds: more means stamps of two clocks


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
        measured, commanded, gripper, opening: the streams behind it (for checks and plots).
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
    _reader: EpisodeReader
    _topics: Topics
    _cache: dict[str, list[bytes]] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.stamp_ns)

    def pictures(self) -> Iterator[tuple[str, int, memoryview]]:
        """Stream (camera, frame index, encoded picture); frames of one camera come in order."""
        for camera, number, raw in self._images():
            data = None
            first, last = np.searchsorted(self.picks[camera], [number, number + 1])
            for i in range(first, last):  # a picture can stand for two frames, or for none
                data = messages.image_data(raw) if data is None else data
                yield camera, i, data

    def _images(self) -> Iterator[tuple[str, int, bytes]]:
        if self._cache is not None:
            for camera in self.picks:
                for number, raw in enumerate(self._cache[camera]):
                    yield camera, number, raw
            return
        by_topic = {self._topics.image_of(c): c for c in self.picks}
        numbers = dict.fromkeys(self.picks, 0)
        for topic, _, _, raw in self._reader.messages(list(by_topic)):
            camera = by_topic[topic]
            yield camera, numbers[camera], raw
            numbers[camera] += 1


def load_episode(
    reader: EpisodeReader,
    resampling: Resampling,
    topics: Topics = Topics(),  # noqa: B008 - frozen
    cameras: list[str] | None = None,
) -> Episode:
    """Read and resample one bag.

    Args:
        cameras: those to use; all that are in the bag when None.

    Raises:
        EpisodeError: a topic is missing or empty, a gap is wider than allowed, the episode is too short.
        BagError, MessageError: the bag or a message is damaged.
    """
    cameras = _cameras(reader, topics, cameras)
    raw, images, cache = _collect(reader, topics, cameras)
    instruction, meta = _instruction(reader, raw.pop(topics.instruction), topics)
    zero = min(v[0] for v in images.values())

    measured = _joints(raw[topics.joint_states], topics.joint_states, zero)
    commanded = _joints(raw[topics.joint_command], topics.joint_command, zero)
    arm = tuple(n for n in commanded.names if "finger" not in n)
    commanded = _select(commanded, arm, topics.joint_command)
    opening = _opening(measured, topics.joint_states, resampling.max_width)
    measured = _select(measured, arm, topics.joint_states)
    gripper = _gripper(raw[topics.gripper_command], topics.gripper_command, zero)

    image_time = {c: (np.array(images[c]) - zero) / messages.NS for c in cameras}
    times = _grid(image_time, measured, commanded, gripper, resampling)
    period, gap = 1.0 / resampling.fps, resampling.joint_gap
    state = np.column_stack(
        [
            interpolate(measured, times, gap, topics.joint_states),
            interpolate(opening, times, gap, topics.joint_states),
        ]
    )
    action = np.column_stack(
        [interpolate(commanded, times + period, gap, topics.joint_command), hold(gripper, times + period)]
    )
    return Episode(
        meta=meta,
        instruction=instruction,
        joint_names=arm,
        zero_ns=zero,
        fps=resampling.fps,
        stamp_ns=zero + np.rint(times * messages.NS).astype(np.int64),
        state=state.astype(np.float32),
        action=action.astype(np.float32),
        picks={c: nearest_before(image_time[c], times, resampling, c) for c in cameras},
        image_ns={c: np.array(images[c], np.int64) for c in cameras},
        measured=measured,
        commanded=commanded,
        gripper=gripper,
        opening=opening,
        _reader=reader,
        _topics=topics,
        _cache=cache,
    )


def _grid(
    image_time, measured: Track, commanded: Track, gripper: Track, resampling: Resampling
) -> np.ndarray:
    """Times of the frames, s: from the first picture with all else known to the last with an action."""
    period = 1.0 / resampling.fps
    ready = max(
        measured.time[0],
        commanded.time[0] - period,
        gripper.time[0] - period,
        *(t.min() for t in image_time.values()),
    )
    anchor = image_time[next(iter(image_time))]
    anchor = np.sort(anchor[anchor >= ready - resampling.snap])
    start = max(ready, anchor[0]) if len(anchor) else np.inf
    stop = min(
        measured.time[-1],
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
    topics: Topics = Topics(),  # noqa: B008 - frozen
) -> tuple[Track, Track, int]:
    """Commanded joints and hand of a bag, without its pictures, and the stamp (ns) their times count from.

    Raises:
        EpisodeError: one of the two is missing, empty or of another type.
        BagError, MessageError: the bag or a message is damaged.
    """
    _expect(reader, {topics.joint_command: messages.JOINT_STATE, topics.gripper_command: messages.FLOAT32})
    raw: dict[str, list] = {topics.joint_command: [], topics.gripper_command: []}
    for topic, _, stamp, data in reader.messages(list(raw)):
        raw[topic].append((stamp, data))
    zero = messages.header_stamp(raw[topics.joint_command][0][1]) or raw[topics.joint_command][0][0]
    commanded = _joints(raw[topics.joint_command], topics.joint_command, zero)
    arm = tuple(n for n in commanded.names if "finger" not in n)
    gripper = _gripper(raw[topics.gripper_command], topics.gripper_command, zero)
    return _select(commanded, arm, topics.joint_command), gripper, zero


# ------------------------------------------------------------------------------------------ reading


def _cameras(reader: EpisodeReader, topics: Topics, wanted: list[str] | None) -> list[str]:
    present = topics.cameras_in([t for t, n in reader.counts.items() if n])
    cameras = present if wanted is None else list(wanted)
    if not cameras:
        raise EpisodeError(
            f"no pictures: {topics.image} is not in the bag, which has {', '.join(sorted(reader.topics))}"
        )
    expected = {
        topics.joint_states: messages.JOINT_STATE,
        topics.joint_command: messages.JOINT_STATE,
        topics.gripper_command: messages.FLOAT32,
    }
    expected.update({topics.image_of(c): messages.COMPRESSED_IMAGE for c in cameras})
    _expect(reader, expected)
    return cameras


def _expect(reader: EpisodeReader, expected: dict[str, str]) -> None:
    """EpisodeError unless the bag has messages of these topics, of these types."""
    missing = [t for t in expected if not reader.counts.get(t)]
    if missing:
        raise EpisodeError(
            f"{missing[0]} is missing or empty; the bag has "
            f"{', '.join(sorted(t for t, n in reader.counts.items() if n))}"
        )
    for topic, msgtype in expected.items():
        if reader.topics[topic] != msgtype:
            raise EpisodeError(
                f"{topic} is a {reader.topics[topic]}, a {msgtype} was expected; map the topic"
            )


def _collect(reader: EpisodeReader, topics: Topics, cameras: list[str]):
    """One pass: (stamp, bytes) of small topics, stamps of the pictures, and the pictures if they are few."""
    raw: dict[str, list] = {
        t: [] for t in (topics.joint_states, topics.joint_command, topics.gripper_command, topics.instruction)
    }
    by_topic = {topics.image_of(c): c for c in cameras}
    images: dict[str, list[int]] = {c: [] for c in cameras}
    cache: dict[str, list[bytes]] | None = {c: [] for c in cameras}
    size = 0
    for topic, _, stamp, data in reader.messages([*raw, *by_topic]):
        camera = by_topic.get(topic)
        if camera is None:
            raw[topic].append((stamp, data))
            continue
        exposed = messages.header_stamp(data) or stamp
        if abs(stamp - exposed) > _CLOCK_SKEW_NS:
            raise EpisodeError(
                f"{topic}: stamped {(stamp - exposed) / messages.NS:.1f} s before it was recorded: two "
                "clocks; record with the clock that stamps (use_sim_time), or synchronise the hosts"
            )
        images[camera].append(exposed)
        size += len(data)
        if cache is not None:
            cache[camera].append(data)
            if size > _CACHE_BYTES:
                cache = None
    return raw, images, cache


def _instruction(reader: EpisodeReader, said: list, topics: Topics) -> tuple[str, dict[str, Any]]:
    meta = reader.meta()
    text = meta.get("instruction") or (messages.read_string(said[-1][1]) if said else "")
    if not isinstance(text, str) or not text.strip():
        raise EpisodeError(f"no instruction in {topics.meta} or {topics.instruction}; relabel the episode")
    return text.strip(), meta


def _joints(raw: list, topic: str, zero: int) -> Track:
    names, stamps, values = messages.joint_table([data for _, data in raw])
    received = np.array([stamp for stamp, _ in raw], np.int64)
    if not stamps.any():  # no header stamps: the time of receipt is all there is
        stamps = received
    if np.abs(received - stamps).max() > _CLOCK_SKEW_NS:
        raise EpisodeError(
            f"{topic}: stamped {np.abs(received - stamps).max() / messages.NS:.1f} s away from when it "
            "was recorded: two clocks; record with the clock that stamps, or synchronise the hosts"
        )
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise EpisodeError(
            f"{topic}: message {np.flatnonzero(bad)[0]} holds a value that is not finite; "
            "leave the episode out"
        )
    return _track((stamps - zero) / messages.NS, values, names, topic)


def _track(time: np.ndarray, value: np.ndarray, names: tuple[str, ...], topic: str) -> Track:
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
            f"{topic} has no joint {missing[0] if missing else 'of an arm'!r}; it has "
            f"{', '.join(track.names)}"
        )
    columns = [track.names.index(n) for n in names]
    return Track(track.time, track.value[:, columns], names, track.back_steps, track.worst_back_step)


def _opening(track: Track, topic: str, max_width: float) -> Track:
    fingers = [i for i, n in enumerate(track.names) if "finger" in n]
    if not fingers:
        raise EpisodeError(
            f"{topic} has no finger joint, so the gripper's opening is unknown; it has "
            f"{', '.join(track.names)}"
        )
    width = 2.0 * track.value[:, fingers[:1]]  # each finger moves by half the width
    return Track(track.time, (width / max_width * 2.0 - 1.0).clip(-1.0, 1.0), ("gripper",))


def _gripper(raw: list, topic: str, zero: int) -> Track:
    value = np.array([[messages.read_float32(data)] for _, data in raw])
    wrong = ~(np.abs(value[:, 0]) <= 1.0 + 1e-6)
    if wrong.any():
        raise EpisodeError(
            f"{topic} = {value[wrong][0, 0]:g}: must be from -1 (closed) to +1 (open); "
            "convert widths or percentages first"
        )
    time = np.array([(stamp - zero) / messages.NS for stamp, _ in raw])
    order = np.argsort(time, kind="stable")
    return Track(time[order], value[order], ("gripper",))
