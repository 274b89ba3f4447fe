"""Success and smoothness of a checkpoint over unseen random starts.

Two lanes, one record per episode (`results.py`). The fast one runs in this process in simulation time:
rendered frames, the real engine, the executor's core, stepped physics. Thinking is charged: a chunk arrives
one latency after its observation, and the next observation is taken when the running node would take it.
`ros=True` runs the same seeds through the nodes, franky and the simulated controller, in real time.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vipra_ros.config import ConfigError
from vipra_ros.control.chunk import ActionChunk
from vipra_ros.learning import metrics, results
from vipra_ros.learning.results import EpisodeRecord
from vipra_ros.policy.deployment import mode_of_folder
from vipra_ros.policy.scheduler import MODES, replan_steps
from vipra_ros.policy.shipped import resolve
from vipra_ros.sim import tasks

#: s, passes of the executor in the stepped world; an arrival counts at the next one.
TICK = 1 / 60
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
        from vipra_ros.policy.observation import Observation

        c = self._config
        n = max(c.proprio_steps, int(c.relative_actions))
        frames = {}
        for camera in c.cameras:
            seen = [image for _, image in view.frames[camera]]
            frames[camera] = np.stack([seen[max(0, len(seen) - 1 - c.frame_stride)], seen[-1]])
        joints = None
        if n:
            joints = np.stack(([self._vectors[0]] * n + self._vectors)[-n:])
        observation = Observation(
            stamp=view.time, frames=frames, instruction=view.start.goal.instruction, joints=joints
        )
        rows = np.asarray(self._engine.infer(observation, seed=self._seed + len(self.made)).actions, float)
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
    """Runs single episodes of one checkpoint in simulation time."""

    def __init__(self, job: Job):
        from vipra_ros.control.executor import ExecutorSettings
        from vipra_ros.sim.lane import Lane

        self.job = job
        self.checkpoint, self.engine = load(job.checkpoint, job.threads, job.engine)
        c = self.checkpoint.config
        self.period, self._execute = 1.0 / c.rate, c.execute_steps
        self.lane = Lane(
            ExecutorSettings(mode=job.mode, action_space=c.action_space),
            fps=c.rate,
            cameras=c.cameras,
            size=c.image_size,
            jpeg=95,  # the policy sees what a camera topic carries
        )
        self.checkpoint.check(self.lane.profile)
        if job.mode == "async":
            self.replan = replan_steps(c.execute_steps, job.latency, self.period, job.margin)
        else:  # the arm rests while the policy thinks, then runs the whole chunk
            self.replan = c.execute_steps + math.ceil(job.latency / self.period - 1e-9)

    def episode(self, task: str, seed: int) -> EpisodeRecord:
        """One start, one record."""
        start = tasks.sample_start(task, seed)
        decider = Decider(self.engine, self.checkpoint.config, self.checkpoint.hash, 1000 * seed)
        pictures: list[np.ndarray] = []

        def on_frame(view) -> None:
            decider.frame(view)
            if self.job.video:
                pictures.append(next(iter(view.frames.values()))[-1][1])

        outcome = self.lane.run(
            start,
            decider,
            seconds=self.job.seconds,
            replan=self.replan,
            latency=self.job.latency,
            on_frame=on_frame,
        )
        if self.job.video:
            write_video(
                Path(self.job.video) / f"{task}-{seed:06d}.mp4",
                pictures,
                self.lane.fps,
                f"{start.goal.instruction}: {'done' if outcome.success else 'not done'}",
            )
        arrival = math.ceil(self.job.latency / TICK - 1e-9) * TICK
        accepted = [
            (t, t + arrival, rows)
            for (t, rows), verdict in zip(decider.made, outcome.verdicts)
            if verdict == "accepted"
        ]
        status, goal = outcome.status, start.goal
        return EpisodeRecord(
            task=task,
            seed=seed,
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
            rows=metrics.rows_executed(accepted, self._execute, self.period, outcome.seconds),
            stopped="; ".join(status.reasons) if status.state_text in ("HOLD", "FAULT") else "",
            latencies=[arrival] * len(accepted),
            boundaries=metrics.boundary_steps(accepted, self.period).tolist(),
            commanded=outcome.commanded,
        )


def load(checkpoint: str | Path, threads: int = 0, engine: str = "auto"):
    """(Checkpoint, warm engine). `threads` of torch; 0 leaves its choice. `engine`: see policy.engine.ENGINES."""
    import torch

    from vipra_ros.policy.checkpoint import Checkpoint
    from vipra_ros.policy.engine import load_engine

    if threads:
        torch.set_num_threads(threads)
    loaded = Checkpoint.load(resolve(checkpoint))
    made = load_engine(loaded, engine, threads)
    made.warm_up()
    return loaded, made


def measure_latency(checkpoint, engine, count: int = TIMED) -> float:
    """95th percentile of an inference on this machine, s, rounded up to a pass of the executor."""
    from vipra_ros.policy.observation import Observation

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


def main(
    checkpoint: str | Path,
    task: str = "all",
    episodes: int = 50,
    seed: int = 1000,
    json_path: str | Path | None = None,
    video: str | Path | None = None,
    ros: bool = False,
    mode: str = "",
    latency: float | None = None,
    margin: int = 1,
    workers: int = 1,
    seconds: float | None = None,
    quiet: bool = False,
    engine: str = "auto",
) -> dict:
    """Evaluate `checkpoint` on `episodes` starts of each task, seeds from `seed` on.

    Args:
        task: one of `vipra_ros.sim.tasks.TASKS`, or "all".
        json_path: where the result is written.
        video: folder for one MP4 of the front camera per episode.
        ros: through the running nodes in real time instead of in this process.
        mode: async or sync; empty: as the checkpoint's executed rows ask for (`deployment.mode_of`).
        latency: s charged per chunk in the fast lane; None measures this machine's.
        margin: rows still queued when the next chunk is to arrive.
        workers: processes of the fast lane.
        seconds: limit of an episode; the task's own when None.
        engine: what computes, torch or onnx; the nodes (`ros`) take theirs from their parameter.

    Returns:
        The figures of `results.summarise`; for "all" the total, with one entry per task under "tasks".

    Raises:
        ConfigError: unknown task, mode or checkpoint.
    """
    if task != "all" and task not in tasks.TASKS:
        raise ConfigError(f"task {task!r} is unknown; choose one of {', '.join(tasks.TASKS)}, all")
    if mode and mode not in MODES:
        raise ConfigError(f"mode {mode!r}: choose one of {', '.join(MODES)}")
    if episodes < 1:
        raise ConfigError(f"episodes = {episodes}: give at least 1")
    wanted = list(tasks.TASKS) if task == "all" else [task]
    todo = [(t, seed + i) for t in wanted for i in range(episodes)]
    folder = resolve(checkpoint)
    mode = mode or mode_of_folder(folder) or MODES[0]
    about = {"checkpoint": str(checkpoint), "mode": mode, "engine": engine, "machine": results.machine()}
    if ros:
        from vipra_ros.nodes.evaluation import evaluate as through_ros

        records, extra = through_ros(folder, todo, mode, video, seconds, None if quiet else _progress, engine)
        about |= extra
    else:
        records, extra = _fast(folder, todo, mode, latency, margin, video, workers, seconds, quiet, engine)
        about |= extra
    parts = [results.summarise(t, [r for r in records if r.task == t], tasks.COLOURS, **about) for t in wanted]
    result = parts[0]
    if task == "all":
        result = {**results.summarise("all", records, tasks.COLOURS, **about), "tasks": parts}
    if json_path:
        results.write_json(result, json_path)
    if not quiet:
        results.print_tables(parts, tasks.COLOURS)
        charged = about["latency_charged"]
        print(
            f"checkpoint {about['checkpoint_hash'][:16]}, {about['lane']} lane, mode {mode}"
            + (f", latency charged {1e3 * charged:.0f} ms" if charged is not None else "")
        )
        if json_path:
            print(f"wrote {json_path}")
    return result


def _fast(
    folder: Path,
    todo: Sequence[tuple[str, int]],
    mode: str,
    latency: float | None,
    margin: int,
    video: str | Path | None,
    workers: int,
    seconds: float | None,
    quiet: bool,
    engine: str = "auto",
) -> tuple[list[EpisodeRecord], dict]:
    threads = max(1, len(os.sched_getaffinity(0)) // workers) if workers > 1 else 0
    checkpoint, loaded = load(folder, threads, engine)
    measured = measure_latency(checkpoint, loaded) if latency is None else None
    charged = measured if latency is None else latency
    if video:
        Path(video).mkdir(parents=True, exist_ok=True)
    job = Job(str(folder), mode, margin, charged, str(video) if video else None, threads, seconds, engine)
    if workers > 1:
        # spawn: a forked child would share torch's threads and the GL context
        with multiprocessing.get_context("spawn").Pool(workers, _begin, (job,)) as pool:
            records = list(_watched(pool.imap(_work, todo), len(todo), quiet))
    else:
        lane = FastLane(job)
        records = list(_watched((lane.episode(*item) for item in todo), len(todo), quiet))
    return records, {
        "lane": "in-process",
        "checkpoint_hash": checkpoint.hash,
        "latency_charged": charged,
        "latency_measured": measured,
        "margin": margin,
    }


_lane: FastLane | None = None


def _begin(job: Job) -> None:
    global _lane
    _lane = FastLane(job)


def _work(item: tuple[str, int]) -> EpisodeRecord:
    return _lane.episode(*item)


def _watched(records: Iterable[EpisodeRecord], total: int, quiet: bool) -> Iterator[EpisodeRecord]:
    return iter(records) if quiet else _progress(records, total)


def _progress(records: Iterable[EpisodeRecord], total: int) -> Iterator[EpisodeRecord]:
    """Passes records on under a progress bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    good = done = 0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task("evaluate", total=total, said="")
        for record in records:
            good, done = good + record.success, done + 1
            progress.update(bar, advance=1, description=record.task, said=f"{good}/{done} done")
            yield record


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
