"""Scripted demonstrations as rosbag2 MCAP episodes, with the topics of the robot.

Two lanes: `lockstep` steps the physics from the executor core, far faster than real time, for thousands of
episodes; `fci` goes through real franky and the simulated controller (`fci_lane.py`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vipra_ros import __version__
from vipra_ros.control import kinematics
from vipra_ros.control.chunk import ActionChunk
from vipra_ros.data import messages
from vipra_ros.data.bag_writer import EpisodeWriter
from vipra_ros.data.repair import forget
from vipra_ros.data.workers import each
from vipra_ros.progress import bar

from . import expert, scene, tasks
from .bodies import BODIES
from .lane import Lane, Scene

HORIZON, EXECUTE = 14, 7
#: Decisions of the demonstrator follow the policy's rhythm; the state at 60 Hz, thinned to 30 Hz in the bag.
STATE_EVERY = 2
EXPERT = "scripted-expert"
FINGER = "fr3_finger_joint1"
#: Bags are stamped from this day on: simulation time starts at 0 and a stamp of 0 means "none" to many tools.
EPOCH_NS = 1_700_000_000_000_000_000
JPEG_QUALITY = 95
#: s recorded after the task is done: "done, stay" belongs to the demonstration.
AFTER_SUCCESS = 0.6


@dataclass(frozen=True)
class Job:
    """One episode to record."""

    task: str
    seed: int
    random_start: bool


class Demonstrator:
    """Plans the whole way at the first look, then hands it out chunk by chunk.

    Args:
        horizon, execute: rows of a chunk, and those of them to be executed.
    """

    def __init__(self, lane: Lane, seed: int, varied: bool, horizon: int = HORIZON, execute: int = EXECUTE):
        self._horizon, self._execute = horizon, execute
        self._lane, self._rng = lane, np.random.default_rng([seed, 77]) if varied else None
        self._rows: np.ndarray | None = None
        self._begin = 0.0

    def __call__(self, view: Scene) -> ActionChunk:
        period = 1.0 / self._lane.fps
        if self._rows is None:
            goal, world, self._begin = view.start.goal, view.world, view.time
            tool = kinematics.forward(self._lane.profile, view.state.q_d)
            turned = float(np.arctan2(tool[1, 0], tool[0, 0]))
            cube, yaw = world.snapshot().cubes[goal.colour], world.cube_yaw(goal.colour)
            way = expert.legs(goal, cube, yaw, tool[:3, 3], self._rng, view.state.gripper_width)
            self._rows = expert.rows(way, tool[:3, 3], view.state.q_d, period, self._lane.ik, turned)
        first = round((view.time - self._begin) / period)
        rows = self._rows[np.minimum(np.arange(first, first + self._horizon), len(self._rows) - 1)]
        return ActionChunk(stamp=view.time, chunk_id=0, step_period=period, actions=rows[: self._execute],
                           lookahead=rows[self._execute :], joint_names=self._lane.profile.joint_names,
                           instruction=view.start.goal.instruction, checkpoint=EXPERT)


class Recorder:
    """Writes what a lane shows into one bag, on the topics of the robot.

    Frames may come on one thread and states on another: the writer of a bag takes one message at a time.
    """

    def __init__(self, root: Path, name: str, lane: Lane, start: tasks.Start):
        self.bag = EpisodeWriter(root, name, sync=False)
        self._lock, self._open = threading.Lock(), True
        self._lane, self._tick, self._opening = lane, 0, None
        self._names = (*lane.profile.joint_names, FINGER)
        self.bag.write("policy/instruction", messages.STRING, messages.string(start.goal.instruction), EPOCH_NS)

    def frame(self, view: Scene) -> None:
        """Camera images of one instant."""
        stamp = EPOCH_NS + round(view.time * 1e9)
        for camera, frames in view.frames.items():
            jpeg = cv2.imencode(".jpg", frames[-1][1][..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1]
            image = messages.compressed_image(stamp, f"{camera}_optical_frame", jpeg.tobytes())
            with self._lock:
                self.bag.write(f"camera/{camera}/image_raw/compressed", messages.COMPRESSED_IMAGE, image, stamp)

    def state(self, now: float, state, q_d: np.ndarray, dq_d: np.ndarray, opening: float) -> None:
        """Joints measured and commanded, the gripper command when it changes; nothing after the end."""
        with self._lock:
            if self._open:
                self._state(EPOCH_NS + round(now * 1e9), state, q_d, dq_d, opening)

    def close(self, notes: dict) -> None:
        """End the episode with its description."""
        with self._lock:
            self._open = False
            self.bag.close(notes)

    def discard(self) -> None:
        """Throw the episode away."""
        with self._lock:
            self._open = False
            self.bag.discard()

    def _state(self, stamp: int, state, q_d: np.ndarray, dq_d: np.ndarray, opening: float) -> None:
        if opening != self._opening:
            self._opening = opening
            self.bag.write("executor/gripper_command", messages.FLOAT32, messages.float32(opening), stamp)
        self._tick += 1
        if self._tick % STATE_EVERY:
            return
        measured = (*state.q, state.gripper_width / 2)
        self.bag.write("joint_states", messages.JOINT_STATE,
                       messages.joint_state(stamp, self._names, measured, (*state.dq, 0.0)), stamp)
        self.bag.write("executor/joint_command", messages.JOINT_STATE,
                       messages.joint_state(stamp, self._names[:7], q_d, dq_d), stamp)


def record(lane: Lane, job: Job, out: Path) -> bool:
    """Demonstrate one start and write it as an episode bag; True when the task succeeded."""
    start = tasks.sample_start(job.task, job.seed)
    q0 = start_pose(lane, start, job.seed) if job.random_start else np.array(scene.HOME)
    demonstrator, recorder = Demonstrator(lane, job.seed, varied=True), Recorder(out, episode_name(job), lane, start)
    try:
        outcome = lane.run(start, demonstrator, q0=q0, replan=EXECUTE, on_frame=recorder.frame,
                           on_tick=recorder.state, stop_on_success=True, rest=AFTER_SUCCESS)
    except BaseException:
        recorder.discard()
        raise
    recorder.close(meta(lane, job, start, outcome.success, outcome.seconds, job.random_start))
    return outcome.success


def meta(lane, job: Job, start: tasks.Start, success: bool, seconds: float, random_start: bool) -> dict:
    """Description of an episode, as the converter reads it."""
    goal = start.goal
    return {"instruction": goal.instruction, "task": job.task, "colour": goal.colour, "zone": goal.zone,
            "seed": job.seed, "success": success, "operator": EXPERT, "robot": lane.profile.name,
            "body": getattr(lane, "body", BODIES[0]), "cameras": list(lane.cameras), "random_start": random_start,
            "seconds": round(seconds, 3),
            "version": __version__}


def episode_name(job: Job) -> str:
    """Directory of an episode; the same job has the same name, so a second run resumes."""
    return f"{job.task}-{job.seed:06d}"


def start_pose(lane: Lane, start: tasks.Start, seed: int) -> np.ndarray:
    """The home pose, half the time; else the start's own tool position: states away from the beaten track."""
    rng = np.random.default_rng([seed, 5])
    home = np.array(scene.HOME)
    if rng.random() < 0.4:
        return home + rng.normal(0.0, 0.02, 7)
    pose = kinematics.forward(lane.profile, home)
    pose[:3, 3] = start.tcp
    return lane.ik(pose, home)


def collect(out: str | Path, tasks_wanted: Sequence[str] = tasks.TASKS, episodes: int = 100, seed: int = 0,
            lane: str = "lockstep", workers: int = 1, cameras: Sequence[str] = scene.CAMERAS,
            after: str = "", body: str = "robot") -> dict[str, list[int]]:
    """Record `episodes` demonstrations of each task into `out`, seeds from `seed` on; resumes a partial folder.

    Args:
        after: checkpoint of a policy that acts first, for a random time, before the expert takes over and is
            recorded (`takeover.py`); an episode that the policy finishes by itself leaves no bag.
        body: what the pictures show in place of the robot (`bodies.py`), lane lockstep only.

    Returns:
        task -> [successes, attempts] of this run.

    Raises:
        ValueError: unknown task, lane or body, or a pair of them that does not go together; fewer than one episode or
            worker; a checkpoint that cannot act here; a worker died.
    """
    for name, number in (("episodes", episodes), ("workers", workers)):
        if number < 1:
            raise ValueError(f"{name} = {number}: give at least 1")
    if lane not in ("lockstep", "fci"):
        raise ValueError(f"lane {lane!r}: choose lockstep (fast) or fci (real franky, simulated controller)")
    jobs = [Job(task, seed + i, True) for i in range(episodes) for task in tasks_wanted]
    for job in jobs[: len(tasks_wanted)]:
        tasks.sample_start(job.task, job.seed)  # an unknown task is said before anything starts
    if lane == "fci" and workers > 1:
        raise ValueError(f"workers = {workers}: lane fci is one controller in real time; drop --workers, or take "
                         "--lane lockstep")
    if lane == "fci" and after:
        raise ValueError("a policy can act first in the lockstep lane only; drop --after or take --lane lockstep")
    if body not in BODIES:
        raise ValueError(f"body {body!r}: choose {' or '.join(BODIES)}")
    if body != "robot" and (lane == "fci" or after):
        raise ValueError(f"body {body!r} is drawn in the lockstep lane, by the expert alone; drop --lane and --after")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    forget(out, {episode_name(j) for j in jobs})
    jobs = [j for j in jobs if not (out / episode_name(j)).exists()]
    if lane == "fci":
        from .fci_lane import run_jobs
        results: Iterable[tuple[Job, Result]] = run_jobs(jobs, out, tuple(cameras))
    elif workers > 1:
        if after:  # said here in one line, not by every worker
            from .takeover import check
            check(after, cameras)
        results = each(_work, jobs, workers, _begin, (out, tuple(cameras), after, body), at_once=4)
    else:
        _begin(out, tuple(cameras), after, body)
        results = map(_work, jobs)
    return _report(results, len(jobs), tasks_wanted)


#: Of a demonstration: whether it did the task; None when none was needed, or why there could be none.
Result = bool | None | kinematics.IkError
_record: Callable[[Job], bool | None] | None = None


def _begin(out: Path, cameras: tuple[str, ...], after: str, body: str) -> None:
    global _record
    cv2.setNumThreads(1)
    if after:
        from .takeover import Takeover
        policy_first = Takeover(after, cameras)
        _record = lambda job: policy_first.record(job, out)  # noqa: E731
    else:
        lane = Lane(cameras=cameras, body=body)
        _record = lambda job: record(lane, job, out)  # noqa: E731


def _work(job: Job) -> tuple[Job, Result]:
    try:
        return job, _record(job)
    except kinematics.IkError as error:  # the same at every attempt: it must not end the others
        return job, error


def _report(results: Iterable[tuple[Job, Result]], total: int, wanted: Sequence[str]) -> dict[str, list[int]]:
    count = {task: [0, 0] for task in wanted}
    began, lost = time.monotonic(), {}
    with bar("collect", total) as advance:
        for done, (job, result) in enumerate(results, 1):
            if isinstance(result, kinematics.IkError):
                lost[episode_name(job)] = result
            else:
                count[job.task][0] += bool(result)
                count[job.task][1] += result is not None
            advance(note=f"{done / (time.monotonic() - began):.1f}/s")
    if lost:
        name, why = next(iter(lost.items()))
        print(f"{len(lost)} of {total} left out, the expert has no way from where the arm is; the first, {name}: {why}")
    return count
