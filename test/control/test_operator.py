"""What the operator asks for reaches the arm, whenever it is asked, and an answer says what became of it."""

import threading

import numpy as np
import pytest

from vipra_ros.control.actions import HOME_ROWS
from vipra_ros.control.executor import ExecutorSettings
from vipra_ros.control.guard import State
from vipra_ros.control.profile import load_profile

HOME = load_profile("fr3").home_q


def paused(t):
    """Still for 0.4 s, then joint 1 moves; for chunks of a rig at 100 s."""
    return HOME + np.array([0.5 * max(0.0, t - 100.4), 0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("how", ("hold", "deadman", "stop"))
def test_a_stop_in_a_pause_takes_back_what_comes_behind_it(make_rig, how):
    """The reference is at rest and there is nothing to brake, but the arm has been given the rest of the plan."""
    rig = make_rig(ExecutorSettings(deadman_timeout=0.1))
    rig.core.deadman(rig.now)
    rig.arm()
    assert rig.offer(paused, execute=14)
    for _ in range(15):
        rig.core.deadman(rig.now)
        rig.tick()
    assert rig.sink.waypoints[-1].q[0] - HOME[0] > 0.1 and not rig.core.reference().at(rig.now)[1].any()
    if how != "deadman":
        assert getattr(rig.core, how)(rig.now).success
    rig.run(0.3)
    assert rig.core.machine.state is (State.IDLE if how == "stop" else State.HOLD)
    assert rig.sink.stops >= 1


def test_a_stop_that_was_asked_for_before_the_plan_began_takes_it_back(make_rig):
    """Its time was read before it waited for the pass that began the motion."""
    rig = make_rig()
    rig.arm()
    assert rig.offer(lambda t: HOME + np.array([0.5 * (t - 100.0), 0, 0, 0, 0, 0, 0]), execute=14)
    asked = rig.now + 0.009
    rig.tick()
    assert rig.core.hold(asked).success and rig.sink.stops == 1


def test_an_arm_that_cannot_be_told_is_not_said_to_have_stopped(make_rig):
    rig = make_rig()
    rig.arm()

    def lost(*_):
        raise RuntimeError("connection lost")

    rig.sink.stop = lost
    for command in ("stop", "stop"):
        result = getattr(rig.core, command)(rig.now)
        assert not result.success and "connection lost" in result.message and "emergency stop" in result.message
    rig = make_rig()
    rig.arm()
    rig.sink.stop = lost
    epoch = rig.core.epoch
    assert not rig.core.reset(rig.now).success and rig.core.epoch == epoch


def test_a_slow_way_home_is_planned_within_a_pass_and_arrives(make_rig):
    rig = make_rig(ExecutorSettings(speed=0.05), q0=HOME - np.array([0, 0, 0, 0, 0, 0, 2.2]))
    result = rig.core.home(rig.now)
    seconds = float(result.message.split()[-2])
    assert seconds > 50.0 and len(rig.core.timeline.rows) <= HOME_ROWS + 2
    rig.run(seconds + 2.0, dt=0.1)
    assert rig.core.machine.state is State.IDLE and rig.core.machine.faults == ()
    np.testing.assert_allclose(rig.samples[-1], HOME, atol=5e-3)
    assert rig.wrong() == []


def test_recovery_waits_for_the_pose_of_an_arm_that_was_connected_anew(make_rig):
    rig = make_rig()
    rig.arm()
    rig.error = "connection lost"
    rig.tick()
    assert rig.core.machine.state is State.FAULT
    rig.offset[:] = np.nan
    rig.tick()

    def reconnect():
        rig.error, rig.offset = "", np.zeros(7)
        threading.Timer(0.05, rig.tick).start()  # the loop's next pass
        return ""

    rig.core._recover_robot = reconnect
    assert rig.core.recover(rig.now).success


def test_arming_again_after_the_limits_held_the_arm_does_not_count_those_rows_again(make_rig):
    rig, period = make_rig(ExecutorSettings(blending="none")), 1 / 30
    rig.arm()
    for n in range(60):
        rows = np.tile(np.append(HOME, 1.0), (14, 1))
        rows[:, 0] += 0.8 * (-1) ** n if n else 0.3
        rig.offer(stamp=rig.now, step_period=period, actions=rows, lookahead=rows[:0])
        rig.run(4 * period, dt=0.02)
        if rig.core.machine.state is State.HOLD:
            break
    assert rig.core.machine.state is State.HOLD, rig.core.status
    rig.run(0.3)
    before = rig.core.telemetry.limited
    rig.arm()
    rig.run(0.1)
    assert rig.core.machine.state is State.ARMED and rig.core.telemetry.limited == before


@pytest.mark.parametrize("latency", (0.001, 0.003, 0.006))
@pytest.mark.parametrize("phase", (0.0, 0.0035, 0.005, 0.0085))
def test_the_hand_follows_though_a_new_chunk_comes_with_every_row(make_rig, latency, phase):
    """Chunks just behind the boundary of a row take it out of the queue before a pass of the loop has seen it run."""
    period, rig = 0.04, make_rig()
    rig.arm()
    rig.tick()
    due, wished = rig.now + 0.02 - phase, rig.now + 0.5
    for n in range(40):
        while rig.now + 0.01 < due + n * period + latency:
            rig.tick()
        wish = -1.0 if due + n * period > wished else 1.0
        rows = np.tile(np.append(HOME, wish), (4, 1))
        rig.ids += 1
        at = due + n * period
        chunk = rig.chunk(stamp=at, step_period=period, actions=rows, lookahead=rows[:0])
        assert rig.core.offer(chunk, at + latency)
    assert rig.core.hand.commands == [1.0, -1.0]
