"""One recorded episode as plain arrays on one clock, wherever it comes from: a bag, an incident or a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vipra_ros.config import ConfigError
from vipra_ros.control.profile import JOINTS, RobotProfile, load_profile
from vipra_ros.data import messages
from vipra_ros.data.bags import BagError, EpisodeReader, find_bags
from vipra_ros.data.incident import ARM_COMMAND, FIGURES, VERDICT
from vipra_ros.data.messages import NS, MessageError
from vipra_ros.data.topics import Topics

#: Figures of ExecutorStatus and of the flight recorder that are drawn over time.
FIGURE_NAMES = ("state", "tracking_error", "limiter_active", "boundary_step", "queue_time", "observation_age",
                "obs_to_action_p95", "limited", "rejected", "late", "stall_fraction")


@dataclass(frozen=True)
class Chunk:
    """One answer of a policy. Times in s; `rows` (H, A), of which the first `execute` were to be executed."""

    stamp: float
    arrival: float
    period: float
    rows: np.ndarray
    execute: int
    action_space: str

    @property
    def due(self) -> np.ndarray:
        """(H,) s, when each row was to be reached."""
        return self.stamp + self.period * np.arange(1, len(self.rows) + 1)


@dataclass
class Seen:
    """What is known of an episode; times in s from its begin, of an incident from the fault.

    Attributes:
        joints: "measured", "commanded", "arm_command" -> (times (N,), q (N, 7) rad, dq (N, 7) rad/s, NaN unknown).
        hand: "measured" (m of a finger), "commanded" (+1 open, -1 closed) -> (times, values).
        figures: name -> (times, values). texts: (time, level, text), level INFO, WARN or ERROR.
        pictures: streams (time, camera, encoded picture).
    """

    name: str
    profile: RobotProfile
    joints: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=dict)
    hand: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    chunks: list[Chunk] = field(default_factory=list)
    figures: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    texts: list[tuple[float, str, str]] = field(default_factory=list)
    cameras: list[str] = field(default_factory=list)
    pictures: Callable[[], Iterator[tuple[float, str, bytes]]] = lambda: iter(())


def look(source: str | Path, episode: int = 0, profile: str = "") -> Seen:
    """The episode at `source`: a bag (also an incident), a folder of bags, or a data set.

    Args:
        episode: which one of a folder of bags (in the order of their names) or of a data set.
        profile: of the robot; what the recording says, or fr3, when empty.

    Raises:
        ConfigError: there is no such episode. BagError, DatasetError: it cannot be read.
    """
    path = Path(source)
    if (path / "meta" / "info.json").exists():
        return _dataset(path, episode, profile)
    try:
        return _bag(_chosen(path, episode), profile)
    except (ConfigError, MessageError, BagError):
        raise
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        # What was recorded elsewhere may lack a field, or hold another type under our topic's name.
        raise BagError(f"{path} holds what cannot be shown ({type(error).__name__}: {error})") from error


def _chosen(path: Path, episode: int) -> Path:
    bags = find_bags([path])
    if not 0 <= episode < len(bags):
        raise ConfigError(f"{path}: episode {episode} is asked for, there are {len(bags)} bags; give --episode 0 .. "
                          f"{len(bags) - 1}" if bags else f"{path} holds neither a bag nor a data set")
    return bags[episode]


def _profile(given: str, said: str) -> RobotProfile:
    """The profile asked for, else the one a recording names (`fr3`, `panda at 172.16.0.2`), else the FR3's."""
    if given:
        return load_profile(given)
    try:
        return load_profile((said.split() or ["fr3"])[0])
    except ConfigError:
        return load_profile("fr3")


# --- bags ----------------------------------------------------------------------------------------------------


def _bag(path: Path, profile: str) -> Seen:
    names = Topics()
    with EpisodeReader(path) as bag:
        meta = bag.meta()
        cameras = {names.image_of(c): c for c in names.cameras_in(list(bag.topics))}
        raw: dict[str, list[tuple[int, bytes]]] = {}
        for topic, _, when, data in bag.messages([t for t in bag.topics if t not in cameras]):
            raw.setdefault(topic, []).append((when, data))
        zero = meta["fault_ns"] if meta.get("kind") == "incident" else bag.start_ns
    seen = Seen(path.name, _profile(profile, str(meta.get("robot", ""))), cameras=sorted(cameras.values()))

    def since(ns) -> np.ndarray:
        return (np.asarray(ns, np.int64) - zero) / NS

    for what, topic in (("measured", names.joint_states), ("commanded", names.joint_command),
                        ("arm_command", ARM_COMMAND)):
        if topic in raw:
            _joints(seen, what, [messages.deserialize(data, messages.JOINT_STATE) for _, data in raw[topic]], since)
    if names.gripper_command in raw:
        rows = raw[names.gripper_command]
        seen.hand["commanded"] = since([t for t, _ in rows]), np.array([messages.read_float32(d) for _, d in rows])
    for when, data in raw.get(names.chunk, ()):
        m = messages.deserialize(data, messages.ACTION_CHUNK)
        if m.action_size and m.step_period > 0:
            rows = np.concatenate([m.actions, m.lookahead]).reshape(-1, m.action_size)
            stamp = float(since(m.header.stamp.sec * NS + m.header.stamp.nanosec))
            seen.chunks.append(Chunk(stamp, float(since(when)), m.step_period, rows, m.execute_steps, m.action_space))
    _statuses(seen, [(float(since(t)), messages.deserialize(d, messages.EXECUTOR_STATUS))
                     for t, d in raw.get(names.status, ())])
    _figures(seen, [(float(since(t)), messages.read_json(d)) for t, d in raw.get(FIGURES, ())])
    for topic in (names.instruction, "sim/outcome"):
        seen.texts += [(float(since(t)), "INFO", f"{topic}: {messages.read_string(d)}") for t, d in raw.get(topic, ())]
    _flight(seen, meta, raw, since)
    seen.texts.sort(key=lambda row: row[0])

    def pictures() -> Iterator[tuple[float, str, bytes]]:
        with EpisodeReader(path) as again:
            for topic, _, _, data in again.messages(list(cameras)):
                yield float(since(messages.header_stamp(data))), cameras[topic], bytes(messages.image_data(data))

    seen.pictures = pictures
    return seen


def _joints(seen: Seen, what: str, rows: list, since) -> None:
    """Columns by name: a message may hold the fingers too, and other joints first."""
    times = since([r.header.stamp.sec * NS + r.header.stamp.nanosec for r in rows])
    names = list(rows[0].name)
    wanted = [n for n in seen.profile.joint_names if n in names] or names[:JOINTS]
    if len(wanted) != JOINTS:
        raise ConfigError(f"{seen.name}: joints {', '.join(names)} are not {seen.profile.name}'s; give --profile")
    columns = [names.index(n) for n in wanted]
    q = np.array([np.asarray(r.position)[columns] for r in rows])
    dq = np.array([np.asarray(r.velocity)[columns] if len(r.velocity) else np.full(JOINTS, np.nan) for r in rows])
    seen.joints[what] = times, q, dq
    finger = seen.profile.finger_joint
    if what == "measured" and finger in names:
        seen.hand["measured"] = times, np.array([r.position[names.index(finger)] for r in rows])


def _statuses(seen: Seen, rows: list[tuple[float, object]]) -> None:
    _figures(seen, [(t, {k: getattr(m, k) for k in FIGURE_NAMES}) for t, m in rows])
    before = None
    for t, m in rows:
        said = (m.state_text, *m.reasons)
        if said != before:
            seen.texts.append((t, _level(m.state_text), " - ".join(said)))
        before = said


def _figures(seen: Seen, rows: list[tuple[float, dict]]) -> None:
    for name in FIGURE_NAMES:
        pairs = [(t, float(f[name])) for t, f in rows if f.get(name) is not None]
        if pairs:
            seen.figures[name] = tuple(np.array(pairs).T)


def _flight(seen: Seen, meta: dict, raw: dict, since) -> None:
    """What only the flight recorder knows: changes of state, what became of chunks, the faults."""
    for t, d in raw.get("flight/change", ()):
        c = messages.read_json(d)
        text = " - ".join([c["text"], *c["reasons"], *([f"robot: {c['error']}"] if c["error"] else [])])
        seen.texts.append((float(since(t)), _level(c["text"]), text))
    for t, d in raw.get(VERDICT, ()):
        v = messages.read_json(d)
        if v["verdict"] != "accepted":
            seen.texts.append((float(since(t)), "WARN", f"chunk {v['chunk_id']} {v['verdict']}"))
    for fault in meta.get("faults", ()):
        seen.texts.append((float(since(fault["ns"])), "ERROR", f"{fault['code']}: {fault['text']}"))


def _level(state: str) -> str:
    return {"FAULT": "ERROR", "HOLD": "WARN", "STOPPING": "WARN"}.get(state, "INFO")


# --- data sets -----------------------------------------------------------------------------------------------


def _dataset(path: Path, number: int, profile: str) -> Seen:
    from vipra_ros.data.dataset import Dataset
    from vipra_ros.policy.pictures import to_jpeg

    d = Dataset(path)
    if not 0 <= number < len(d.episodes):
        raise ConfigError(f"{path}: episode {number} is asked for, there are 0 to {len(d.episodes) - 1}")
    e = d.episodes[number]
    window = slice(e.start, e.start + e.length)
    times = np.arange(e.length) / d.fps
    seen = Seen(f"{path.name}-{number}", _profile(profile, str(d.info.get("robot_type", ""))), cameras=d.cameras)
    seen.texts.append((0.0, "INFO", f"task: {e.task}" + (f", success: {e.success}" if e.success is not None else "")))
    space = (d.info.get("vipra_ros") or {}).get("action_space", "joint_position")
    for what, column, later in (("measured", "observation.state", 0.0), ("commanded", "action", 1 / d.fps)):
        if column not in d.features or (column == "action" and space != "joint_position"):
            continue  # increments are no joints
        table = d.numeric(column)[window].astype(float)
        if table.shape[1] < JOINTS:
            raise ConfigError(f"{path}: {column} has {table.shape[1]} columns, an arm has {JOINTS} joints")
        seen.joints[what] = times + later, table[:, :JOINTS], np.full((len(table), JOINTS), np.nan)
        if table.shape[1] > JOINTS:
            seen.hand[what] = times + later, table[:, JOINTS]

    def pictures() -> Iterator[tuple[float, str, bytes]]:
        for camera in d.cameras:
            for index, image in d.frames(camera, window.start, window.stop):
                yield (index - e.start) / d.fps, camera, to_jpeg(image, 92)

    seen.pictures = pictures
    return seen
