"""Demonstrations through real franky and the simulated controller, in real time.

The slow lane of `collect`: what the executor node does on a robot (control loop at 100 Hz, waypoint motions,
the hand's worker), in one process and without ROS, recorded with the same `Recorder` as the fast lane.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from vipra_ros.control import kinematics
from vipra_ros.control.chunk import ActionChunk, RobotState
from vipra_ros.control.executor import ExecutorCore, ExecutorSettings, Result
from vipra_ros.control.guard import State
from vipra_ros.control.profile import RobotProfile, load_profile
from vipra_ros.robot.connect import ConnectionSettings, connect

from . import scene, tasks
from .lane import Scene
from .server import TableServer
from .world import Eyes

CONTROL_PERIOD = 0.01
#: s the arm may take to come home, and the hand to open.
HOMING_SECONDS, OPENING_SECONDS = 20.0, 3.0


def _own_host() -> str:
    number = os.getpid()
    return f"127.3.{number // 250 % 250}.{number % 250 + 1}"


@dataclass
class FciLane:
    """One simulated controller, at an address of this process, and one executor core driving it through franky."""

    host: str = field(default_factory=_own_host)
    fps: float = 15.0
    cameras: tuple[str, ...] = scene.CAMERAS
    size: int = 128

    def __enter__(self) -> FciLane:
        self.profile: RobotProfile = load_profile("fr3")
        self.server = TableServer(self.host).__enter__()
        self.eyes = Eyes(self.server.world.model, self.size)
        settings = ConnectionSettings(host=self.host, realtime_config="ignore")
        self.arm, self.hand = connect(self.profile, settings, print)
        self.core = ExecutorCore(self.profile, ExecutorSettings(), self.arm, self.hand, recover_robot=self.arm.recover)
        self._on_tick: Callable | None = None
        self._began = self._chunk = 0
        self._running = True
        self._loop = threading.Thread(target=self._control, name="control", daemon=True)
        self._loop.start()
        self._wait(lambda: self.core.reference() is not None, 5.0)
        return self

    def __exit__(self, *exc: object) -> None:
        self.core.stop(time.monotonic())
        self._wait(lambda: self.core.machine.state is not State.STOPPING, 3.0)
        self._running = False
        self._loop.join(timeout=2.0)
        self.hand.close()
        self.arm.close()
        self.server.__exit__(*exc)

    def ik(self, pose: np.ndarray, q0: np.ndarray) -> np.ndarray:
        """Joint position for a tool pose, near `q0`."""
        return kinematics.ik(self.profile, pose, q0)

    def state(self) -> RobotState:
        """State of the arm with the cached width of the hand."""
        return replace(self.arm.state(), gripper_width=self.hand.width)

    def run(self, start: tasks.Start, decide: Callable[[Scene], ActionChunk], *, replan: int = 7,
            on_frame: Callable[[Scene], None], on_tick: Callable, rest: float = 0.6) -> tuple[bool, float]:
        """One episode from the home pose; (success, seconds).

        Raises:
            RuntimeError: the executor refuses to go home, to arm, or a chunk; its words are the message.
        """
        self._home()
        self.server.place(start)
        world = self.server.world
        decide(Scene(0.0, {}, self.state(), 1.0, start, world))  # plans, which takes a while
        self._must(self.core.arm(time.monotonic()))
        judge, began, frames = tasks.Judge(start.goal), time.monotonic(), 0
        self._began, self._on_tick = began, on_tick
        try:
            while (now := time.monotonic() - began) < tasks.TIME_LIMIT[start.goal.task]:
                data = self.server.freeze()
                images = {camera: [(now, self.eyes.see(data, camera).copy())] for camera in self.cameras}
                view = Scene(now, images, self.state(), self._opening(), start, world)
                on_frame(view)
                if frames % replan == 0:
                    self._chunk += 1
                    chunk = replace(decide(view), stamp=began + now, chunk_id=self._chunk)
                    verdict = self.core.offer(chunk, time.monotonic())
                    if not verdict:
                        raise RuntimeError(f"chunk refused: {verdict}; {'; '.join(self.core.status.reasons)}")
                judge.see(self.server.look(lambda w: w.snapshot()))
                if judge.success and data.time - judge.success_time > rest:
                    break
                frames += 1
                time.sleep(max(0.0, began + frames / self.fps - time.monotonic()))
        finally:
            self._on_tick = None
            self.core.stop(time.monotonic())
        self._wait(lambda: self.core.machine.state is not State.STOPPING, 3.0)
        return judge.success, time.monotonic() - began

    def _control(self) -> None:
        due = time.monotonic()
        while self._running:
            state = self.state()
            self.core.tick(time.monotonic(), state)
            on_tick = self._on_tick
            if on_tick:
                on_tick(time.monotonic() - self._began, state, state.q_d, state.dq_d, self._opening())
            due = max(due + CONTROL_PERIOD, time.monotonic() - CONTROL_PERIOD)
            time.sleep(max(0.0, due - time.monotonic()))

    def _home(self) -> None:
        if self.core.machine.state is State.FAULT:
            self._must(self.core.recover(time.monotonic()))
        self.hand.command(1.0)
        self._wait(lambda: self.hand.width > 0.95 * self.profile.gripper_width, OPENING_SECONDS)
        self._must(self.core.home(time.monotonic()))
        home = self.profile.home_q
        self._wait(lambda: bool(np.abs(self.arm.state().q - home).max() < 0.02), HOMING_SECONDS)
        self._wait(lambda: self.core.machine.state is not State.RUNNING, 2.0)

    @staticmethod
    def _wait(done: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not done() and time.monotonic() < end:
            time.sleep(CONTROL_PERIOD)

    def _opening(self) -> float:
        return float(self.core.opening) if np.isfinite(self.core.opening) else 1.0

    @staticmethod
    def _must(result: Result) -> None:
        if not result.success:
            raise RuntimeError(result.message)


def run_jobs(jobs: Iterable, out: Path, cameras: tuple[str, ...]) -> Iterator[tuple]:
    """Record every job; yields (job, success)."""
    from .collect import Demonstrator, Recorder, episode_name, meta
    with FciLane(cameras=cameras) as lane:
        for job in jobs:
            start = tasks.sample_start(job.task, job.seed)
            demonstrator = Demonstrator(lane, job.seed, varied=True)
            recorder = Recorder(out, episode_name(job), lane, start)
            try:
                success, seconds = lane.run(start, demonstrator, on_frame=recorder.frame, on_tick=recorder.state)
            except BaseException:
                recorder.discard()
                raise
            recorder.close(meta(lane, job, start, success, seconds, random_start=False))
            yield job, success
