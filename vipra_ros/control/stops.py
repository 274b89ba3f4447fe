"""Stop time of the core in fake time: from the call, or from input going stale, until the commanded velocity is zero.

The specification is v/a of the slowest joint plus one pass of the loop; the jerk ramps of a stop (2 a/j, 4 ms with the
shipped profiles) are shorter than that pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vipra_ros.control.chunk import ActionChunk, RobotState
from vipra_ros.control.executor import ExecutorCore
from vipra_ros.control.profile import RobotProfile, load_profile
from vipra_ros.control.settings import ExecutorSettings
from vipra_ros.control.sinks import PreviewHand, PreviewSink

#: service: executor/stop; stale: no chunk comes any more, counted from the end of chunk_timeout.
CAUSES = ("service", "stale")
#: s between rows; rad/s below which a joint stands.
PERIOD, STILL = 1 / 15, 1e-6
#: rad/s; an arm that stands need not stop.
SLOWEST = 0.02
#: s without a chunk after which the stop of `stale` begins: before the rows of the last chunk have run out.
TIMEOUT = 0.25


@dataclass(frozen=True)
class Stop:
    """One stop: speed (rad/s, fastest joint) when it was asked for, s until zero, and s that are specified."""

    cause: str
    speed: float
    seconds: float
    specified: float


def specified(profile: RobotProfile, dq: np.ndarray, tick: float) -> float:
    """s: max over joints of |dq| / a, plus one pass of the loop."""
    return float(np.max(np.abs(dq) / profile.limits[1])) + tick


def ramp(profile: RobotProfile, rng: np.random.Generator) -> np.ndarray:
    """Random joint velocities (7,) in rad/s, up to the limits."""
    return rng.uniform(-1, 1, 7) * rng.uniform(0.05, 1.0) * profile.limits[0]


def measure(count: int, seed: int, rate: float = 100.0, robot: str = "fr3") -> list[Stop]:
    """`count` stops for each cause, at random velocities and moments."""
    profile, rng = load_profile(robot), np.random.default_rng(seed)
    stops: list[Stop] = []
    for cause in CAUSES:
        wanted = len(stops) + count
        while len(stops) < wanted:
            stop = _stop(profile, cause, rng, 1 / rate)
            stops += [stop] if stop.speed > SLOWEST else []  # near a joint limit chunks are refused, and it stood
    return stops


def _stop(profile: RobotProfile, cause: str, rng: np.random.Generator, tick: float) -> Stop:
    settings = ExecutorSettings(chunk_timeout=TIMEOUT if cause == "stale" else 1.5, start_ramp=0.0, start_speed=1.0)
    core = ExecutorCore(profile, settings, PreviewSink(), PreviewHand())
    now, velocity, sent, last = 100.0, ramp(profile, rng), 0, 0.0
    still = np.zeros(7)
    core.tick(now, RobotState(now, profile.home_q, still, profile.home_q, still, in_control=True))
    core.arm(now)
    end, due = now + rng.uniform(0.3, 0.7), now
    while now < end:
        if now >= due:
            start = core.reference().at(now)[0]
            rows = np.array([np.append(start + velocity * (k + 1) * PERIOD, 1.0) for k in range(14)])
            sent, due = sent + 1, due + 3 * PERIOD
            if core.offer(ActionChunk(now, sent, PERIOD, rows[:7], rows[7:], joint_names=profile.joint_names), now):
                last = now
        now = _pass(core, now, tick)
    # Between two passes, as a service call comes; staleness falls there by itself.
    asked = now - rng.uniform(0, tick) if cause == "service" else last + TIMEOUT
    while now - tick < asked and cause == "stale":
        now = _pass(core, now, tick)
    dq = core.reference().at(asked)[1]
    if cause == "service":
        core.stop(asked)
    for _ in range(3):
        now = _pass(core, now, tick)
    times = asked + np.arange(0.0, 0.6, 0.001)
    moves = [t for t in times if np.abs(core.reference().at(t)[1]).max() > STILL]
    return Stop(cause, float(np.abs(dq).max()), (moves[-1] - asked + 0.001) if moves else 0.0,
                specified(profile, dq, tick))


def _pass(core: ExecutorCore, now: float, tick: float) -> float:
    q, dq, _ = core.reference().at(now)
    core.tick(now, RobotState(now, q, dq, q, dq, in_control=True))
    return now + tick
