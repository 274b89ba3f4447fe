"""Episodes of a checkpoint in simulation time: rendered frames, the real engine, the executor's core, physics.

Thinking is charged: a chunk arrives one latency after its observation, and the next observation is taken when the
running node would take it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vipra_ros.control.chunk import ActionChunk
from vipra_ros.learning import metrics
from vipra_ros.learning.results import JERK_RATE, EpisodeRecord
from vipra_ros.policy.observation import Observation
from vipra_ros.policy.scheduler import replan_steps
from vipra_ros.policy.shipped import resolve
from vipra_ros.sim import tasks

#: s, passes of the executor in the stepped world at most rates; an arrival counts at the next one.
TICK = 1 / JERK_RATE
#: Inferences timed before an evaluation; the slowest of few is near the 95th percentile of many.
TIMED = 20
#: Pixels of a frame in the videos.
VIDEO_SIZE = 384


@dataclass(frozen=True)
class Job:
    """What a worker needs to run episodes. `latency` in s; `seconds` None for the task's own limit."""

    checkpoint: str
    mode: str
    margin: int
    latency: float
    video: str | None = None
    threads: int = 0
    seconds: float | None = None
    engine: str = "auto"
    device: str = "cpu"
    euler_steps: int = 0
    weights: str = "full"
    #: Episodes at once.
    together: int = 1


class Decider:
    """Observation of the stepped world -> chunk, as the policy node would make it."""

    def __init__(self, engine, config, checkpoint_hash: str, seed: int):
        self._engine, self._config, self._hash, self._seed = engine, config, checkpoint_hash, seed
        self._vectors: list[np.ndarray] = []
        self.made: list[tuple[float, np.ndarray]] = []

    def frame(self, view) -> None:
        """Sees every frame: keeps the joints at the rate of the policy."""
        opening = np.clip(view.state.gripper_width / 0.08 * 2.0 - 1.0, -1.0, 1.0)
        self._vectors.append(np.append(view.state.q, opening))

    def __call__(self, view) -> ActionChunk:
        """Asks the engine and waits for it."""
        return self.answer(view, self._engine.infer(*self.question(view)).actions)

    def question(self, view) -> tuple[Observation, int]:
        """What the engine is asked at this frame, and the seed of its noise."""
        c = self._config
        n = max(c.proprio_steps, int(c.relative_actions))
        frames = {}
        for camera in c.cameras:
            seen = [image for _, image in view.frames[camera]]
            frames[camera] = np.stack([seen[max(0, len(seen) - 1 - c.frame_stride)], seen[-1]])
        joints = np.stack(([self._vectors[0]] * n + self._vectors)[-n:]) if n else None
        instruction = view.start.goal.instruction
        return Observation(view.time, frames, instruction, joints), self._seed + len(self.made)

    def answer(self, view, actions: np.ndarray) -> ActionChunk:
        """The chunk with these rows (h, a) that answers the question of `view`."""
        c, rows = self._config, np.asarray(actions, float)
        self.made.append((view.time, rows))
        return ActionChunk(
            stamp=view.time,
            chunk_id=0,
            step_period=1.0 / c.rate,
            actions=rows[: c.execute_steps],
            lookahead=rows[c.execute_steps :],
            action_space=c.action_space,
            joint_names=c.joint_names,
            instruction=view.start.goal.instruction,
            checkpoint=self._hash[:16],
        )


class FastLane:
    """Runs episodes of one checkpoint in simulation time, `job.together` at once: their chunks are one batch."""

    def __init__(self, job: Job):
        from vipra_ros.control.executor import ExecutorSettings
        from vipra_ros.sim.lane import Lane

        self.job = job
        self.checkpoint, self.engine = load(
            job.checkpoint, job.threads, job.engine, job.device, job.euler_steps, job.weights
        )
        c = self.checkpoint.config
        self.period = 1.0 / c.rate
        self.lanes = [
            Lane(
                ExecutorSettings(mode=job.mode, action_space=c.action_space),
                fps=c.rate,
                cameras=c.cameras,
                size=c.image_size,
                jpeg=95,  # the policy sees what a camera topic carries
                remember=c.frame_stride + 1,
            )
            for _ in range(job.together)
        ]
        self.checkpoint.check(self.lanes[0].profile)
        if job.mode == "async":
            self.replan = replan_steps(c.execute_steps, job.latency, self.period, job.margin)
        else:  # the arm rests while the policy thinks, then runs the whole chunk
            self.replan = c.execute_steps + math.ceil(job.latency / self.period - 1e-9)

    def episode(self, task: str, seed: int) -> EpisodeRecord:
        """One start, one record."""
        return self.episodes([(task, seed)])[0]

    def episodes(self, starts: Sequence[tuple[str, int]]) -> list[EpisodeRecord]:
        """Records of these (task, seed), at most `job.together`, in their order; they decide at the same time."""
        runs = [_Run(self, lane, *start) for lane, start in zip(self.lanes, starts, strict=False)]
        while waiting := [run for run in runs if run.view is not None]:
            asked = [run.decider.question(run.view) for run in waiting]
            for run, said in zip(waiting, self.engine.infer_many(*zip(*asked))):
                run.go_on(said.actions)
        return [run.record() for run in runs]


class _Run:
    """One episode under way: `view` is what it waits at for a chunk, None once it is over."""

    def __init__(self, fast: FastLane, lane, task: str, seed: int):
        self.fast, self.lane = fast, lane
        self.start, self.seed = tasks.sample_start(task, seed), seed
        self.decider = Decider(fast.engine, fast.checkpoint.config, fast.checkpoint.hash, 1000 * seed)
        self.pictures: list[np.ndarray] = []
        self._steps = lane.steps(self.start, seconds=fast.job.seconds, replan=fast.replan, latency=fast.job.latency,
                                 on_frame=self._frame)
        self.view = next(self._steps)

    def _frame(self, view) -> None:
        self.decider.frame(view)
        if self.fast.job.video:
            self.pictures.append(next(iter(view.frames.values()))[-1][1])

    def go_on(self, actions: np.ndarray) -> None:
        """With these rows to the next decision or to the end."""
        try:
            self.view = self._steps.send(self.decider.answer(self.view, actions))
        except StopIteration as over:
            self.view, self.outcome = None, over.value

    def record(self) -> EpisodeRecord:
        """How it went; writes its video."""
        job, c, outcome, goal = self.fast.job, self.fast.checkpoint.config, self.outcome, self.start.goal
        if job.video:
            caption = f"{goal.instruction}: {'done' if outcome.success else 'not done'}"
            write_video(Path(job.video) / f"{goal.task}-{self.seed:06d}.mp4", self.pictures, self.lane.fps, caption)
        commanded = outcome.commanded
        if abs(self.lane.fps * self.lane.ticks / JERK_RATE - 1.0) > 1e-9:
            commanded = metrics.resample(outcome.time, commanded, outcome.speed, 1 / JERK_RATE)
        accepted = [
            (t, arrival, rows)
            for (t, rows), arrival, verdict in zip(self.decider.made, outcome.arrivals, outcome.verdicts)
            if verdict == "accepted"
        ]
        status, period = outcome.status, self.fast.period
        return EpisodeRecord(
            task=goal.task,
            seed=self.seed,
            instruction=goal.instruction,
            colour=goal.colour,
            zone=goal.zone,
            success=outcome.success,
            acted_on=outcome.acted_on,
            time_to_success=outcome.time_to_success,
            seconds=outcome.seconds,
            chunks=status.accepted + status.rejected,
            rejected=status.rejected,
            limited=status.limited,
            rows=metrics.rows_executed(accepted, c.execute_steps, period, outcome.seconds),
            stopped="; ".join(status.reasons) if status.state_text in ("HOLD", "FAULT") else "",
            latencies=[round(arrival - t, 9) for t, arrival, _ in accepted],
            boundaries=metrics.boundary_steps(accepted, period).tolist(),
            commanded=commanded,
        )


def load(
    checkpoint: str | Path, threads: int = 0, engine: str = "auto", device: str = "cpu", euler_steps: int = 0,
    weights: str = "full",
):  # fmt: skip
    """(Checkpoint, warm engine). `threads` of torch; 0 leaves its choice. The others: policy.engine.open_engine."""
    import torch

    from vipra_ros.policy.engine import open_engine

    if threads:
        torch.set_num_threads(threads)
    made = open_engine(resolve(checkpoint), engine, device, threads, euler_steps, weights=weights)
    made.warm_up()
    return made.checkpoint, made


def measure_latency(checkpoint, engine, count: int = TIMED) -> float:
    """95th percentile of an inference on this machine, s, rounded up to a pass of the executor."""
    c, rng = checkpoint.config, np.random.default_rng(0)
    spent = []
    for i in range(count):
        shape = (2, c.image_size, c.image_size, 3)
        frames = {camera: rng.integers(0, 256, shape, np.uint8) for camera in c.cameras}
        joints = np.zeros((max(c.proprio_steps, 1), c.policy.action_dim))
        began = time.monotonic()
        engine.infer(
            Observation(stamp=float(i), frames=frames, instruction="reach above the red cube", joints=joints),
            seed=i,
        )
        spent.append(time.monotonic() - began)
    return math.ceil(float(np.percentile(spent, 95)) / TICK) * TICK


def write_video(path: Path, frames: Sequence[np.ndarray], fps: float, caption: str) -> None:
    """One MP4 of enlarged frames with a caption."""
    import cv2

    from vipra_ros.data.video import Codec, encode_video

    def drawn(image: np.ndarray) -> np.ndarray:
        big = cv2.resize(image, (VIDEO_SIZE, VIDEO_SIZE), interpolation=cv2.INTER_NEAREST)
        cv2.putText(
            big,
            caption,
            (6, VIDEO_SIZE - 10),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.42,
            (255, 255, 255),
            1,
            cv2.LINE_AA,
        )
        return big

    encode_video(
        path,
        map(drawn, frames),
        fps,
        Codec(crf=23, preset="veryfast", pixel_format="yuv420p", keyframe_interval=30),
    )
