"""Demonstrations that begin where a policy went wrong: it acts first, then the expert takes over.

Dataset aggregation (Ross et al., AISTATS 2011) in its human-gated form (Kelly et al., HG-DAgger, ICRA 2019):
the expert's part alone is recorded, so a bag is an ordinary demonstration from an extraordinary start, and
what the policy never saw in flawless demonstrations, its own mistakes, is what it learns to come back from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vipra_ros.config import ConfigError
from vipra_ros.learning.stepped_lane import Decider, load
from vipra_ros.policy.checkpoint import Checkpoint, CheckpointConfig
from vipra_ros.policy.scheduler import replan_steps

from . import scene, tasks
from .collect import AFTER_SUCCESS, EXPERT, Demonstrator, Job, Recorder, episode_name, meta, start_pose
from .lane import Lane, Scene

#: The policy acts for a random time within this share of the task's time limit.
EARLIEST, LATEST = 0.04, 0.75
#: s that the policy's thinking is charged, drawn per episode: with none it would make no mistakes of a late hand.
THINKING = (0.08, 0.18)
#: rad/s and s: an arm that has stood so still for so long is stuck, and the expert does not wait for its time.
STILL, PATIENCE = 0.02, 1.5


class Takeover:
    """Records one episode per job, at the rate of a policy that has acted before.

    Args:
        checkpoint: folder of the policy that goes first.
        cameras: recorded, those of the policy among them.

    Raises:
        ConfigError: a policy that the expert cannot follow.
    """

    def __init__(self, checkpoint: str | Path, cameras: Sequence[str] = scene.CAMERAS, threads: int = 1):
        self._checkpoint, self._engine = load(checkpoint, threads)
        c = _fit(self._checkpoint, cameras)
        self._lane = Lane(fps=c.rate, cameras=tuple(cameras), remember=c.frame_stride + 1)
        self._checkpoint.check(self._lane.profile)

    def record(self, job: Job, out: Path) -> bool | None:
        """The expert's part as a bag; True when it finished the task, None when the policy needed no help."""
        c = self._checkpoint.config
        lane, start, rng = self._lane, tasks.sample_start(job.task, job.seed), np.random.default_rng([job.seed, 6])
        handover = rng.uniform(EARLIEST, LATEST) * tasks.TIME_LIMIT[job.task]
        thinking = rng.uniform(*THINKING)
        q0 = start_pose(lane, start, job.seed) if job.random_start else np.array(scene.HOME)
        policy = Decider(self._engine, c, self._checkpoint.hash, 1000 * job.seed)
        # In the policy's form: the executor takes no other from one and the same holder.
        expert = Demonstrator(lane, job.seed, varied=True, horizon=c.horizon, execute=c.execute_steps)
        recorder: Recorder | None = None
        moved = 0.0

        def decide(view: Scene):
            nonlocal recorder, handover, moved
            if np.abs(view.state.dq_d).max() > STILL:
                moved = view.time
            if recorder is None and view.time - moved > PATIENCE:
                handover = min(handover, view.time)
            if recorder is None and view.time < handover:
                return replace(policy(view), checkpoint=EXPERT)  # one lease for both hands
            if recorder is None:
                recorder = Recorder(out, episode_name(job), lane, start)
                recorder.frame(view)
            return expert(view)

        def on_frame(view: Scene) -> None:
            policy.frame(view)
            if recorder:
                recorder.frame(view)

        def on_tick(*sample) -> None:
            if recorder:
                recorder.state(*sample)

        try:
            outcome = lane.run(start, decide, q0=q0, replan=replan_steps(c.execute_steps, thinking, 1.0 / c.rate),
                               latency=lambda: 0.0 if recorder else thinking, on_frame=on_frame, on_tick=on_tick,
                               seconds=handover + tasks.TIME_LIMIT[job.task], rest=AFTER_SUCCESS)
        except BaseException:
            if recorder:
                recorder.discard()
            raise
        if recorder is None:
            return None
        if outcome.success and outcome.time_to_success < handover:  # the expert only saw it rest
            recorder.discard()
            return None
        notes = meta(lane, job, start, outcome.success, outcome.seconds - handover, job.random_start)
        recorder.close(notes | {"after_checkpoint": self._checkpoint.hash[:16], "handover": round(handover, 3)})
        return outcome.success


def check(checkpoint: str | Path, cameras: Sequence[str]) -> None:
    """Refuse a policy that the expert cannot follow; see `Takeover`."""
    _fit(Checkpoint.load(checkpoint), cameras)


def _fit(checkpoint: Checkpoint, cameras: Sequence[str]) -> CheckpointConfig:
    c, where = checkpoint.config, checkpoint.folder
    if c.action_space != "joint_position":
        raise ConfigError(f"{where} has action_space {c.action_space}: the expert speaks joint_position, and an "
                          "executor takes one of them; give a policy of joint positions, or drop --after")
    if missing := [camera for camera in c.cameras if camera not in cameras]:
        remedy = (f"give --cameras {','.join((*cameras, *missing))}" if set(missing) <= set(scene.CAMERAS) else
                  f"the table has {' and '.join(scene.CAMERAS)}, give a policy of these")
        raise ConfigError(f"{where} looks at camera {', '.join(missing)}, not recorded here: {remedy}")
    least = replan_steps(c.execute_steps, THINKING[1], 1.0 / c.rate)
    if least > c.execute_steps:
        raise ConfigError(f"{where} has execute_steps {c.execute_steps}: at {c.rate:g} Hz a chunk comes every {least} "
                          f"rows, and the arm would stand in between; give a policy that executes {least} or more")
    return c
