"""Demonstrations that begin where a policy went wrong: it acts first, then the expert takes over.

Dataset aggregation (Ross et al., AISTATS 2011) in its human-gated form (Kelly et al., HG-DAgger, ICRA 2019):
the expert's part alone is recorded, so a bag is an ordinary demonstration from an extraordinary start, and
what the policy never saw in flawless demonstrations, its own mistakes, is what it learns to come back from.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from vipra_ros.learning.stepped_lane import Decider, load
from vipra_ros.policy.scheduler import replan_steps

from . import scene, tasks
from .collect import AFTER_SUCCESS, EXECUTE, EXPERT, Demonstrator, Job, Recorder, episode_name, meta, start_pose
from .lane import Lane, Scene

#: The policy acts for a random time within this share of the task's time limit.
EARLIEST, LATEST = 0.04, 0.75
#: s that the policy's thinking is charged, drawn per episode: with none it would make no mistakes of a late hand.
THINKING = (0.08, 0.18)
#: rad/s and s: an arm that has stood so still for so long is stuck, and the expert does not wait for its time.
STILL, PATIENCE = 0.02, 1.5


class Takeover:
    """Records one episode per job on a lane, after a policy has acted.

    Args:
        checkpoint: folder of the policy that goes first.
    """

    def __init__(self, lane: Lane, checkpoint: str | Path, threads: int = 1):
        self._lane = lane
        self._checkpoint, self._engine = load(checkpoint, threads)

    def record(self, job: Job, out: Path) -> bool | None:
        """The expert's part as a bag; True when it finished the task, None when the policy needed no help."""
        lane, start, rng = self._lane, tasks.sample_start(job.task, job.seed), np.random.default_rng([job.seed, 6])
        handover = rng.uniform(EARLIEST, LATEST) * tasks.TIME_LIMIT[job.task]
        thinking = rng.uniform(*THINKING)
        q0 = start_pose(lane, start, job.seed) if job.random_start else np.array(scene.HOME)
        policy = Decider(self._engine, self._checkpoint.config, self._checkpoint.hash, 1000 * job.seed)
        expert = Demonstrator(lane, job.seed, varied=True)
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
            outcome = lane.run(start, decide, q0=q0, replan=replan_steps(EXECUTE, thinking, 1.0 / lane.fps),
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
