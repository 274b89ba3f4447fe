"""One episode in simulation time: cameras -> decision -> executor core -> stepped physics, in one thread.

The executor core is the one of the robot (validation, timeline, limits, guard); only the last hop differs:
the limited reference goes to the joint servos of the stepped world. Thinking time is charged: a chunk
arrives `latency` seconds after its observation, while the arm moves on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from vipra_ros.control import kinematics
from vipra_ros.control.chunk import ActionChunk, RobotState
from vipra_ros.control.executor import ExecutorCore, ExecutorSettings
from vipra_ros.control.profile import RobotProfile, load_profile
from vipra_ros.control.reference import Reference

from . import scene, tasks
from .bodies import wear
from .lockstep import LockstepWorld
from .world import Eyes

#: Hz, passes of the executor; at a rate of frames that does not divide it, as near as whole passes per frame come.
TICK_RATE = 60.0


@dataclass(frozen=True)
class Scene:
    """What a decision may look at: the last frames and the state of the arm.

    Attributes:
        frames: camera -> list of (time s, uint8 RGB image), oldest first.
        state: measured and commanded arm.
        gripper: last commanded opening, +1 or -1.
    """

    time: float
    frames: dict[str, list[tuple[float, np.ndarray]]]
    state: RobotState
    gripper: float
    start: tasks.Start
    world: LockstepWorld


Decide = Callable[[Scene], ActionChunk]


@dataclass
class Outcome:
    """How an episode went. Times in s of simulation."""

    start: tasks.Start
    success: bool = False
    time_to_success: float = float("nan")
    acted_on: str | None = None
    seconds: float = 0.0
    #: of each chunk that has arrived: what the executor said, and when that was
    verdicts: list[str] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    decisions: int = 0
    #: sampled at the ticks: time, commanded joints and their speed, measured joints, (n,), (n, 7), (n, 7), (n, 7)
    time: np.ndarray = field(default_factory=lambda: np.zeros(0))
    commanded: np.ndarray = field(default_factory=lambda: np.zeros((0, 7)))
    speed: np.ndarray = field(default_factory=lambda: np.zeros((0, 7)))
    measured: np.ndarray = field(default_factory=lambda: np.zeros((0, 7)))
    status: object = None


class _Hand:
    """Opening commands for the stepped hand."""

    def __init__(self, world: LockstepWorld):
        self._world, self.opening, self._told = world, 1.0, float("nan")

    def command(self, opening: float) -> None:
        self.opening = self._told = opening
        self._world.hand(0.08 if opening > 0 else 0.0)

    def cancel(self) -> float:
        return self._told

    def forgot(self) -> bool:
        return False


class _Servo:
    """Last hop: the core's reference is what the joint servos follow."""

    def stream(self, waypoints, now: float) -> None:  # the lane samples core.reference() itself
        del waypoints, now

    def stop(self, now: float) -> None:
        del now


class Lane:
    """Runs episodes one after the other.

    Args:
        settings: of the executor; None takes the shipped ones.
        fps: frames and decisions are on this grid, Hz.
        cameras: which are drawn.
        size: pixels, square.
        jpeg: quality of the JPEG each frame goes through, as on a camera topic; 0 leaves it as drawn.
        body: what the robot looks like (`bodies.py`).
        remember: frames that a decision may look back on, the newest included.
    """

    def __init__(self, settings: ExecutorSettings | None = None, *, fps: float = 15.0,
                 cameras: tuple[str, ...] = ("front",), size: int = 128, jpeg: int = 0,
                 profile: RobotProfile | None = None, body: str = "robot", remember: int = 1):
        self.profile = profile or load_profile("fr3")
        self.settings = settings or ExecutorSettings()
        self.fps, self.cameras, self._jpeg, self._remember = fps, cameras, jpeg, remember
        self.ticks = max(1, round(TICK_RATE / fps))  # of a frame
        self.body = body
        self.world = LockstepWorld()
        wear(self.world.model, body)
        self.eyes = Eyes(self.world.model, size)

    def ik(self, pose: np.ndarray, q0: np.ndarray) -> np.ndarray:
        """Joint position for a tool pose, near `q0`."""
        return kinematics.ik(self.profile, pose, q0)

    def run(self, start: tasks.Start, decide: Decide, **how) -> Outcome:
        """One episode from `start`; decide: observation -> chunk, called every `replan` frames; how: as of `steps`."""
        under_way = self.steps(start, **how)
        try:
            view = next(under_way)
            while True:
                view = under_way.send(decide(view))
        except StopIteration as over:
            return over.value

    def steps(self, start: tasks.Start, *, q0: np.ndarray | None = None, seconds: float | None = None,
              replan: int = 7, latency: float | Callable[[], float] = 0.0,
              on_frame: Callable[[Scene], None] | None = None,
              on_tick: Callable[[float, RobotState, np.ndarray, np.ndarray, float], None] | None = None,
              stop_on_success: bool = True, rest: float = 0.0) -> Generator[Scene, ActionChunk, Outcome]:
        """One episode from `start` that stands still at every decision: gives what is seen, is sent the chunk.

        Args:
            q0: starting joints, rad; the home pose when None.
            seconds: limit; the task's own when None.
            replan: frames from one decision to the next.
            latency: s charged between an observation and the arrival of its chunk; a callable is asked for each
                chunk, once it has been decided.
            on_frame: sees every frame; on_tick: (time, state, q_d, dq_d, opening) at every executor pass.
            stop_on_success: end `rest` seconds after the judge is satisfied.
        """
        world, tick = self.world, 1.0 / (self.fps * self.ticks)
        q0 = np.array(scene.HOME) if q0 is None else np.asarray(q0, float)
        world.reset(start, q0)
        hand = _Hand(world)
        core = ExecutorCore(self.profile, self.settings, _Servo(), hand)
        core.tick(0.0, self._state(core, q0))
        core.arm(0.0)
        outcome, judge = Outcome(start), tasks.Judge(start.goal)
        history: dict[str, list[tuple[float, np.ndarray]]] = {c: [] for c in self.cameras}
        arriving: list[tuple[float, ActionChunk]] = []
        log: list[tuple] = []
        limit = seconds if seconds is not None else tasks.TIME_LIMIT[start.goal.task]
        frame = done = 0
        while world.data.time < limit - 1e-6:
            now = world.data.time
            for camera in self.cameras:
                history[camera] = [*history[camera], (now, self._look(camera))][-self._remember :]
            state = self._state(core, q0)
            view = Scene(now, history, state, hand.opening, start, world)
            if on_frame:
                on_frame(view)
            if frame % replan == 0:
                chunk = yield view
                outcome.decisions += 1
                charged = latency() if callable(latency) else latency
                arriving.append((now + charged, replace(chunk, stamp=now, chunk_id=outcome.decisions)))
            for _ in range(self.ticks):
                now = world.data.time
                while arriving and arriving[0][0] <= now + 1e-9:
                    verdict = core.offer(arriving.pop(0)[1], now)
                    outcome.verdicts.append(str(verdict))
                    outcome.arrivals.append(now)
                core.tick(now, self._state(core, q0))
                reference = core.reference() or Reference.rest(now, q0)
                done += 1
                world.advance(reference, done * tick)
                state = self._state(core, q0)
                log.append((world.data.time, state.q_d, state.dq_d, state.q))
                if on_tick:
                    on_tick(world.data.time, state, state.q_d, state.dq_d, hand.opening)
                judge.see(world.snapshot())
            frame += 1
            if stop_on_success and judge.success and world.data.time - judge.success_time >= rest:
                break
        outcome.success, outcome.time_to_success = judge.success, judge.success_time
        outcome.acted_on, outcome.seconds = judge.acted_on, world.data.time
        outcome.time, outcome.commanded, outcome.speed, outcome.measured = map(np.array, zip(*log))
        outcome.status = core.status
        return outcome

    def _look(self, camera: str) -> np.ndarray:
        image = self.eyes.see(self.world.data, camera)
        if not self._jpeg:
            return image.copy()
        coded = cv2.imencode(".jpg", image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, self._jpeg))[1]
        return cv2.imdecode(coded, cv2.IMREAD_COLOR_RGB)

    def _state(self, core: ExecutorCore, q0: np.ndarray) -> RobotState:
        world, reference = self.world, core.reference()
        q_d, dq_d = (q0, np.zeros(7)) if reference is None else reference.at(world.data.time)[:2]
        return RobotState(world.data.time, world.q, world.dq, q_d, dq_d, world.width, in_control=True)
