"""Every watchdog trips in time, says why, and the arm stops within its limits. Time is made up."""

import dataclasses

import numpy as np
import pytest

from vipra_ros.control.executor import ExecutorSettings
from vipra_ros.control.guard import State
from vipra_ros.control.profile import load_profile
from vipra_ros.control.validate import Reason

HOME = load_profile("fr3").home_q


def sweep(t):
    """A path fast enough to be worth stopping, rad at s."""
    return HOME + 0.3 * np.sin(2.0 * (t - 100.0)) * np.array([1, 0, 0, 0.3, 0, 0.5, 1])


def running(make_rig, **changes):
    """A rig that has followed a sweep for a while and is in motion."""
    rig = make_rig(ExecutorSettings(**changes))
    rig.core.deadman(rig.now)
    rig.arm()
    for _ in range(4):
        rig.core.deadman(rig.now)
        assert rig.offer(sweep)
        rig.run(0.15)
    assert rig.core.machine.state is State.RUNNING
    assert np.abs(rig.core.reference().at(rig.now)[1]).max() > 0.1
    return rig


def settle(rig, limit=0.6):
    """Seconds until the commanded velocity is zero."""
    start = rig.now
    while not rig.core.reference().state(rig.now).at_rest:
        rig.tick()
        assert rig.now - start < limit, "does not come to rest"
    return rig.now - start


def test_silent_policy_stops_and_a_fresh_chunk_resumes(make_rig):
    rig = running(make_rig, chunk_timeout=0.3)
    begin = rig.now
    while rig.core.machine.state is State.RUNNING:
        rig.tick()
        assert rig.now - begin < 0.5
    settle(rig)
    rig.tick()
    assert rig.core.machine.state is State.ARMED
    assert "no acceptable chunk for 0.3" in rig.core.status.reasons[-1]
    assert rig.offer(lambda t: rig.core.reference().at(rig.now)[0])
    rig.tick()
    assert rig.core.machine.state is State.RUNNING and rig.core.status.reasons == ()
    assert rig.wrong() == []


def test_without_any_watchdog_the_plan_itself_ends_at_rest(make_rig):
    rig = running(make_rig, chunk_timeout=30.0, observation_timeout=30.0)
    assert settle(rig, 7 / 15 + 0.4) > 0.2
    assert rig.wrong() == []


def test_old_observations_stop(make_rig):
    rig = running(make_rig, observation_timeout=0.5, chunk_timeout=5.0, max_observation_age=5.0)
    stamp, begin = rig.now, rig.now
    while rig.core.machine.state is State.RUNNING:
        rig.offer(sweep, stamp=stamp, execute=7)
        rig.tick()
        assert rig.now - begin < 0.6
    assert "newest observation is 0.5" in rig.core.status.reasons[-1]


def test_lost_robot_state_is_a_fault(make_rig):
    rig = running(make_rig, state_timeout=0.1)
    rig.state_time = rig.now
    begin = rig.now
    while rig.core.machine.state is not State.FAULT:
        rig.tick()
        assert rig.now - begin < 0.12
    assert rig.core.status.reasons[-1].startswith("robot state lost: the last robot state is 0.1")
    settle(rig)
    assert rig.wrong() == []
    rig.tick()
    assert rig.sink.stops == 1


def test_loop_overrun_counts_then_faults(make_rig):
    rig = running(make_rig)
    rig.tick(0.06)
    assert (rig.core.status.overruns, rig.core.machine.state) == (1, State.RUNNING)
    rig.tick(0.51)
    assert rig.core.machine.state is State.FAULT and "paused 0.510 s" in rig.core.status.reasons[-1]
    settle(rig)
    assert rig.wrong() == []


def test_tracking_error_must_last(make_rig):
    rig = running(make_rig)
    rig.offset = np.array([0, 0, 0, 0.3, 0, 0, 0])
    rig.run(0.05)
    rig.offset = np.zeros(7)
    rig.run(0.05)
    assert rig.core.machine.state is State.RUNNING
    rig.offset = np.array([0, 0, 0, 0.3, 0, 0, 0])
    rig.run(0.12)
    assert rig.core.machine.state is State.FAULT and "0.300 rad from its command" in rig.core.status.reasons[-1]


def test_robot_error_and_non_finite_state_are_faults(make_rig):
    rig = running(make_rig)
    rig.error = "joint_reflex"
    rig.tick()
    assert rig.core.status.reasons == ("robot error: joint_reflex; look at the arm, then call executor/recover",)
    assert rig.sink.stops == 1
    rig = running(make_rig)
    rig.core.tick(rig.now, dataclasses.replace(rig.state(), q=np.full(7, np.nan)))
    assert rig.core.status.reasons[-1].startswith("robot state not finite: q = [nan")


def test_dead_man(make_rig):
    rig = make_rig(ExecutorSettings(deadman_timeout=0.2))
    assert "dead-man" in rig.core.arm(rig.now).message
    going = rig.core.home(rig.now)
    assert not going.success and "dead-man" in going.message and rig.core.machine.state is State.IDLE
    rig = running(make_rig, deadman_timeout=0.2)
    rig.core.deadman(rig.now)
    rig.run(0.25)
    assert (
        rig.core.machine.state in (State.STOPPING, State.HOLD)
        and "dead-man silent for 0.2" in rig.core.status.reasons[-1]
    )
    settle(rig)
    rig.tick()
    assert rig.core.machine.state is State.HOLD
    assert rig.offer(sweep).reason is Reason.NOT_READY
    rig.core.deadman(rig.now)
    rig.arm()
    assert rig.wrong() == []


def test_limiter_activity_holds(make_rig):
    rig = make_rig(ExecutorSettings(start_action="blend", limiter_share=0.8, limiter_window=2.0))
    rig.arm()
    home, flips = rig.profile.home_q, np.array([0.8, 0, 0.8, 0, 0.8, 0, 0.8])
    while rig.core.machine.state is not State.HOLD:
        rig.offer(lambda t: home + flips * (1 if int(t * 5) % 2 else -1))
        rig.run(0.1)
        assert rig.now < rig.start + 5
    assert "limits kept the arm far from" in rig.core.status.reasons[-1]
    assert rig.wrong() == []


def test_a_sink_that_fails_is_a_fault(make_rig):
    rig = running(make_rig)

    def broken(waypoints, now):
        raise OSError("cable")

    rig.sink.stream = broken
    rig.offer(sweep)
    rig.tick()
    assert rig.core.machine.state is State.FAULT
    assert rig.core.status.reasons == (
        "commands cannot be sent: OSError: cable; look at the arm, then call executor/recover",
    )
    assert rig.sink.stops == 1


def test_recovery_starts_over_and_discards_chunks_in_flight(make_rig):
    rig = running(make_rig)
    old = rig.chunk(sweep)
    rig.error = "cartesian_reflex"
    rig.tick()
    assert not rig.core.arm(rig.now).success
    rig.core._recover_robot = lambda: "joint brakes are closed"
    assert "brakes" in rig.core.recover(rig.now).message and rig.core.machine.state is State.FAULT
    rig.core._recover_robot, rig.error = (lambda: ""), ""
    assert rig.core.recover(rig.now).success
    rig.tick()
    assert rig.core.machine.state is State.IDLE and rig.core.epoch == 1
    rig.arm()
    assert rig.core.offer(old, rig.now).reason is Reason.EPOCH
    rig.run(0.3)
    assert rig.core.machine.state is State.ARMED, "never resumes by itself"


@pytest.mark.parametrize("command, end", [("stop", State.IDLE), ("hold", State.HOLD)])
def test_operator_stop_is_as_fast_as_specified(make_rig, command, end):
    for wait in range(8):
        rig = running(make_rig)
        rig.run(0.01 * wait, 0.01)
        speed = np.abs(rig.core.reference().at(rig.now)[1]).max()
        assert getattr(rig.core, command)(rig.now).success
        assert settle(rig) <= rig.core.limiter.stop_time(speed) + 0.011
        rig.tick()
        assert rig.core.machine.state is end and rig.wrong() == []
