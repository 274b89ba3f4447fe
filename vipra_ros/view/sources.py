"""One recorded episode as plain arrays on one clock, wherever it comes from: a bag, an incident or a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vipra_ros.config import ConfigError
from vipra_ros.control.profile import JOINTS, RobotProfile, load_profile
from vipra_ros.data import messages
from vipra_ros.data.bags import BagError, EpisodeReader, find_bags, robots_in
from vipra_ros.data.incident import ARM_COMMAND, FIGURES, VERDICT
from vipra_ros.data.messages import NS, MessageError
from vipra_ros.data.topics import Topics

#: What the simulated scene says of its task, and the flight recorder of changes of state.
OUTCOME, CHANGE = "sim/outcome", "flight/change"
#: Figures of ExecutorStatus and of the flight recorder that are drawn over time.
FIGURE_NAMES = ("state", "tracking_error", "limiter_active", "boundary_step", "queue_time", "observation_age",
                "obs_to_action_p95", "limited", "rejected", "late", "stall_fraction")


@dataclass(frozen=True)
class Chunk:
    """One answer of a policy. Times in s; `rows` (H, A), those to be executed and the look-ahead behind them."""

    stamp: float
    arrival: float
    period: float
    rows: np.ndarray
    action_space: str

    @property
    def due(self) -> np.ndarray:
        """(H,) s, when each row was to be reached."""
        return self.stamp + self.period * np.arange(1, len(self.rows) + 1)


@dataclass
class Seen:
    """What is known of an episode; times in s from its begin, of an incident from the fault.

    Attributes:
        name: of the recording. path: where it is, without links.
        joints: "measured", "commanded", "arm_command" -> (times (N,), q (N, 7) rad, dq (N, 7) rad/s, NaN unknown).
        hand: "measured" (m of a finger), "commanded" (+1 open, -1 closed) -> (times, values).
        figures: name -> (times, values). texts: (time, level, text), level INFO, WARN or ERROR.
        pictures: streams (time, camera, encoded picture).
    """

    name: str
    path: Path
    profile: RobotProfile
    joints: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=dict)
    hand: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    chunks: list[Chunk] = field(default_factory=list)
    figures: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    texts: list[tuple[float, str, str]] = field(default_factory=list)
    cameras: list[str] = field(default_factory=list)
    pictures: Callable[[], Iterator[tuple[float, str, bytes]]] = lambda: iter(())


def look(source: str | Path, episode: int = 0, profile: str = "", namespace: str = "") -> Seen:
    """The episode at `source`: a bag (also an incident), a folder of bags, or a data set.

    Args:
        episode: which one of a folder of bags (in the order of their names) or of a data set.
        profile: of the robot; what the recording says, or fr3, when empty.
        namespace: of the robot in a bag; the only one that has joint states when empty.

    Raises:
        ConfigError: there is no such episode, or nothing to be seen in it. BagError, DatasetError: it cannot be read.
    """
    path = Path(source)
    if (path / "meta" / "info.json").exists():
        return _dataset(path, episode, profile)
    try:
        return _bag(_chosen(path, episode), profile, namespace)
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


def _namespace(path: Path, joint_states: str) -> str:
    """Of the robot that a bag is about; empty where it is not in one."""
    robots = robots_in(path, joint_states)
    if len(robots) > 1:
        raise ConfigError(f"{path} holds several robots; give --namespace {' or '.join(robots)}")
    return robots[0] if robots else ""


def _bag(path: Path, profile: str, namespace: str) -> Seen:
    names = Topics()
    namespace = namespace or _namespace(path, names.joint_states)
    # What is drawn, and no more: images that are not compressed would fill the memory.
    words = (names.instruction, OUTCOME)
    drawn = (names.joint_states, names.joint_command, ARM_COMMAND, names.gripper_command, names.chunk, names.status,
             FIGURES, CHANGE, VERDICT, *words)
    with EpisodeReader(path, namespace=namespace) as bag:
        meta, topics = bag.meta(), list(bag.topics)
        cameras = {names.image_of(c): c for c in names.cameras_in(topics)}
        raw: dict[str, list[tuple[int, bytes]]] = {}
        for topic, _, when, data in bag.messages(drawn):
            raw.setdefault(topic, []).append((when, data))
        zero = meta["fault_ns"] if meta.get("kind") == "incident" else bag.start_ns
    if not raw and not cameras:
        raise ConfigError(f"{path} has nothing that can be shown in namespace /{namespace.strip('/')} (topics there: "
                          f"{', '.join(topics) or 'none'}); give --namespace, or a bag with {names.joint_states}")
    seen = Seen(path.resolve().name, path.resolve(), _profile(profile, str(meta.get("robot", ""))),
                cameras=sorted(cameras.values()))

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
            seen.chunks.append(Chunk(stamp, float(since(when)), m.step_period, rows, m.action_space))
    _statuses(seen, [(float(since(t)), messages.deserialize(d, messages.EXECUTOR_STATUS))
                     for t, d in raw.get(names.status, ())])
    _figures(seen, [(float(since(t)), messages.read_json(d)) for t, d in raw.get(FIGURES, ())])
    for topic in words:
        seen.texts += [(float(since(t)), "INFO", f"{topic}: {messages.read_string(d)}") for t, d in raw.get(topic, ())]
    _flight(seen, meta, raw, since)
    seen.texts.sort(key=lambda row: row[0])

    def pictures() -> Iterator[tuple[float, str, bytes]]:
        with EpisodeReader(path, namespace=namespace) as again:
            for topic, _, _, data in again.messages(list(cameras)):
                yield float(since(messages.header_stamp(data))), cameras[topic], bytes(messages.image_data(data))

    seen.pictures = pictures
    return seen


def _joints(seen: Seen, what: str, rows: list, since) -> None:
    """Columns by the names in each message: a hand may speak on the arm's topic, with joints of its own."""
    own = seen.profile.joint_names
    wanted = own if any(set(own) <= set(r.name) for r in rows) else rows[0].name[:JOINTS]
    if len(wanted) != JOINTS:
        known = ", ".join(dict.fromkeys(n for r in rows for n in r.name))
        raise ConfigError(f"{seen.name}: joints {known} are not {seen.profile.name}'s; give --profile")

    def table(joints: Sequence[str], numbers: str) -> tuple[np.ndarray, np.ndarray]:
        """(times, rows) of the messages that have one of `joints`, NaN where a number is missing."""
        some = [r for r in rows if not set(joints).isdisjoint(r.name)]
        at = [dict(zip(r.name, getattr(r, numbers), strict=False)) for r in some]
        return since([r.header.stamp.sec * NS + r.header.stamp.nanosec for r in some]), np.array(
            [[a.get(n, np.nan) for n in joints] for a in at])

    times, q = table(wanted, "position")
    seen.joints[what] = times, q, table(wanted, "velocity")[1]
    finger = seen.profile.finger_joint
    if what == "measured" and any(finger in r.name for r in rows):
        times, opening = table([finger], "position")
        seen.hand["measured"] = times, opening[:, 0]


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
    for t, d in raw.get(CHANGE, ()):
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
    seen = Seen(f"{path.resolve().name}-{number}", path.resolve(),
                _profile(profile, str(d.info.get("robot_type", ""))), cameras=d.cameras)
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
