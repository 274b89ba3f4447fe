"""Velocities streamed to the arm: what is asked for, and that an arm that hears nothing more stops."""

import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("franky")
pytest.importorskip("franky_sim")

from vipra_ros.control.executor import ExecutorCore, ExecutorSettings
from vipra_ros.control.limits import Limiter
from vipra_ros.control.profile import load_profile
from vipra_ros.control.reference import Reference
from vipra_ros.control.sinks import PreviewHand
from vipra_ros.robot import velocity
from vipra_ros.robot.velocity import VelocityArm

PROFILE = load_profile("fr3")
HOST = "127.0.7.31"
SIMULATION = """
import sys, time
from vipra_ros.sim.server import TableServer
with TableServer(sys.argv[1]) as server:
    print("up", flush=True)
    while server.failure is None:
        time.sleep(0.2)
"""


@pytest.mark.parametrize("joint", range(7))
@pytest.mark.parametrize("upwards", [True, False])
def test_a_motion_that_is_never_renewed_stays_inside_the_robots_own_limits(joint, upwards):
    limit = PROFILE.q_max[joint] if upwards else PROFILE.q_min[joint]
    for room in np.linspace(0.03, 1.0, 40):
        q = PROFILE.home_q.copy()
        q[joint] = limit - room if upwards else limit + room
        down, up = velocity.room_speed(PROFILE, q, velocity.ALONE)
        speed = (up if upwards else down)[joint]
        end = q.copy()
        end[joint] += (1 if upwards else -1) * speed * velocity.ALONE
        low, high = PROFILE.velocity_bounds(end)
        assert speed <= 1e-9 + (high[joint] if upwards else -low[joint])
        assert PROFILE.q_min[joint] <= end[joint] <= PROFILE.q_max[joint]


def test_no_joint_is_kept_from_braking_by_the_step_of_another():
    dq = np.array([1.0, 0, 0, -0.5, 0, 0, 0])
    still = Reference.rest(10.0, PROFILE.home_q)
    asked = velocity.command(PROFILE, still, PROFILE.home_q, dq, PROFILE.home_q, 10.0)
    assert np.all(np.abs(asked - dq) <= velocity.STEP * PROFILE.arm_limits[1] + 1e-12)
    assert asked[0] == pytest.approx(1.0 - velocity.STEP * PROFILE.arm_limits[1][0])


def test_a_joint_measured_near_its_limit_is_slow_there_wherever_it_is_commanded_to_be():
    """Seen: where velocities are integrated by two, q had run 0.3 rad ahead of q_d, into the limit."""
    measured = PROFILE.home_q.copy()
    measured[5] = PROFILE.q_max[5] - 0.1
    target = PROFILE.home_q + np.eye(7)[5]
    speeds = [
        velocity.command(PROFILE, Reference.rest(10.0, target), PROFILE.home_q, np.full(7, 0.5), where, 10.0)[5]
        for where in (PROFILE.home_q, measured)
    ]
    assert speeds[0] > 0.7
    assert speeds[1] <= velocity.room_speed(PROFILE, measured, velocity.ALONE)[1][5] < 0.31


def test_the_reference_comes_near_limits_more_slowly_when_the_last_hop_reacts_late():
    q = PROFILE.home_q.copy()
    q[3] = PROFILE.q_max[3] - 0.3
    soon, late = Limiter(PROFILE), Limiter(PROFILE, reaction=VelocityArm.reaction)
    assert late._allowed(q, 1 / 15)[1][3] < 0.8 * soon._allowed(q, 1 / 15)[1][3]
    assert late._allowed(q, 1 / 15)[0] == pytest.approx(soon._allowed(q, 1 / 15)[0])


def test_the_arm_follows_and_stops_by_itself_when_the_loop_dies():
    process = subprocess.Popen([sys.executable, "-c", SIMULATION, HOST], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().strip() == "up"
        arm = VelocityArm(PROFILE, HOST, "ignore")
        arm._clock = lambda: arm._robot.state.time.to_sec()  # a simulated clock falls behind the wall
        settings = ExecutorSettings(sink="velocity", overrun_fault=5.0, state_timeout=5.0)
        core = ExecutorCore(PROFILE, settings, arm, PreviewHand())
        deadline = time.monotonic() + 3.0
        while np.abs(arm.state().dq).max() > 0.01 and time.monotonic() < deadline:
            time.sleep(0.05)
        state = arm.state()
        core.tick(state.time, state)
        assert core.home(state.time).success
        begin, miss = state.time, []
        core._reference = core.limiter.extend(
            core.reference(), begin, [begin + 1.0], core.reference().at(begin)[0][None] + 0.3, np.zeros((1, 7))
        )
        while (state := arm.state()).time < begin + 0.6:
            arm.follow(core.reference(), state, state.time)
            miss.append(np.abs(state.q_d - core.reference().at(state.time)[0]).max())
            time.sleep(0.01)
        assert np.abs(state.dq_d).max() > 0.2 and max(miss) < 0.03
        end = arm._clock() + velocity.HOLD + 0.4  # nobody calls follow any more
        while arm._clock() < end:
            time.sleep(0.02)
        assert np.abs(arm.state().dq).max() < 0.02 and not arm.state().error
        arm.close()
    finally:
        process.kill()
        process.wait()
