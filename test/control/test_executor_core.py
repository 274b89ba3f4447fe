"""The core on ordinary days: what a chunk becomes, and what the operator gets."""

import dataclasses
import re

import numpy as np
import pytest

from vipra_ros.config import build, load, share
from vipra_ros.control import kinematics
from vipra_ros.control.actions import absolute
from vipra_ros.control.executor import ExecutorSettings
from vipra_ros.control.guard import State
from vipra_ros.control.limits import Limiter
from vipra_ros.control.profile import load_profile
from vipra_ros.control.reference import Limited, Reference
from vipra_ros.control.sinks import PreviewHand
from vipra_ros.control.validate import Reason
from vipra_ros.control.workspace import WorkspaceCheck

T = 1 / 15
HOME = load_profile("fr3").home_q


def sine(t):
    """0.2 rad at 0.25 Hz on four joints."""
    return HOME + 0.2 * np.sin(2 * np.pi * 0.25 * (t - 100.0)) * np.array([1, 0, 1, 1, 0, 1, 0])


@pytest.mark.parametrize(
    "mode, latency, every, worst",
    [("async", 0.0, 7, 2e-3), ("async", 0.12, 5, 2e-3), ("async", 0.113, 4, 2e-3), ("sync", 0.0, 7, 1.25e-2)],
)
def test_a_smooth_path_is_followed(make_rig, mode, latency, every, worst):
    rig = make_rig(ExecutorSettings(mode=mode))
    rig.arm()
    waiting, errors = [], []
    for k in range(60 * 6):
        if k % (4 * every) == 0:
            waiting.append((rig.now + latency, rig.chunk(sine)))
        while waiting and waiting[0][0] <= rig.now + 1e-9:
            assert rig.core.offer(waiting.pop(0)[1], rig.now)
            rig.tick(0.0)
        rig.tick(1 / 60)
        if k > 120:
            errors.append(np.abs(rig.core.reference().at(rig.now)[0] - sine(rig.now)).max())
    status = rig.core.status
    assert max(errors) < worst
    assert status.stall_fraction == 0.0 and status.rejected == 0
    assert status.action_rate == pytest.approx(15.0, abs=0.2)
    assert status.chunk_rate == pytest.approx(15 / every, abs=0.1)
    assert status.obs_to_action_p50 == pytest.approx(latency, abs=0.02)
    assert status.boundary_step < (1e-2 if mode == "async" else 0.05)
    assert rig.wrong() == []


def test_late_steps_are_counted_and_stalls_measured(make_rig):
    rig = make_rig()
    rig.arm()
    for _ in range(6):
        chunk = rig.chunk(sine)
        rig.run(0.2)
        assert rig.core.offer(chunk, rig.now)
        rig.run(7 * T - 0.2)
    status = rig.core.status
    assert status.late == 6 * 3 and status.stall_fraction > 0.3
    assert rig.wrong() == []


def test_a_chunk_that_is_just_too_late_is_told_by_how_much(make_rig):
    rig = make_rig()
    rig.arm()
    chunk = rig.chunk(sine)
    rig.run(7 * T - 0.01)  # its last row is still to come, but too near to plan a way to it
    verdict = rig.core.offer(chunk, rig.now)
    assert verdict.reason is Reason.LATE
    excess = re.search(r"the last of 7 rows comes (0\.\d{3}) s too late", verdict.text)
    assert 0.0 < float(excess[1]) < 0.03


def test_a_far_start_is_refused_or_approached_slowly(make_rig):
    far = HOME + np.array([0, 0, 0, 0, 0, 0, 0.8])
    rig = make_rig()
    rig.arm()
    verdict = rig.offer(lambda t: far)
    assert verdict.reason is Reason.START and "0.80 rad away at fr3_joint7" in verdict.text
    rig.run(0.2)
    assert np.ptp(np.array(rig.samples), axis=0).max() == 0.0
    rig = make_rig(ExecutorSettings(start_action="blend"))
    rig.arm()
    for _ in range(20):
        assert rig.offer(lambda t: far)
        rig.run(0.2)
    speed = np.abs(np.diff(np.array(rig.samples), axis=0)).max(1) / 0.001
    assert speed[:2500].max() < 0.31 * rig.core.limiter.velocity.min()
    assert np.abs(rig.samples[-1] - far).max() < 1e-3 and rig.wrong() == []


def test_the_first_steps_are_slow(make_rig):
    rig = make_rig(ExecutorSettings(start_ramp=1.0))
    rig.arm()
    rig.offer(lambda t: HOME + np.array([0, 0, 0, 0, 0, 0, 0.45]))
    rig.run(0.3)
    assert np.abs(rig.core.reference().at(rig.now)[1]).max() < 0.6


def test_joint_deltas_add_up(make_rig):
    rig = make_rig(ExecutorSettings(action_space="joint_delta"))
    rig.arm()
    step = np.array([0.02, 0, 0, 0.01, 0, 0, -0.02])
    for _ in range(3):
        rows = np.column_stack([np.tile(step, (7, 1)), np.ones(7)])
        assert rig.core.offer(
            dataclasses.replace(rig.chunk(), action_space="joint_delta", actions=rows, lookahead=np.zeros((0, 8))),
            rig.now,
        )
        rig.run(7 * T, T / 7)
    rig.run(0.5)
    # without lookahead the last step coasts out its speed: at most one stopping way, v^2 / 2a
    assert rig.samples[-1] == pytest.approx(HOME + 21 * step, abs=0.3**2 / 3.4 / 2 + 2e-3)


def test_end_effector_deltas_go_straight(make_rig):
    rig = make_rig(ExecutorSettings(action_space="ee_delta", mode="sync"))
    rig.arm()
    before = kinematics.forward(rig.profile, HOME)
    for _ in range(3):
        rows = np.tile([0.004, 0.006, -0.008, 0, 0, 0.02, 1.0], (7, 1))
        assert rig.core.offer(
            dataclasses.replace(
                rig.chunk(), action_space="ee_delta", actions=rows, joint_names=(), lookahead=np.zeros((0, 7))
            ),
            rig.now,
        )
        rig.run(7 * T, T / 7)
    rig.run(0.5)
    after = kinematics.forward(rig.profile, rig.samples[-1])
    assert after[:3, 3] - before[:3, 3] == pytest.approx(21 * np.array([0.004, 0.006, -0.008]), abs=8e-3)
    assert kinematics.rotation_vector(after[:3, :3] @ before[:3, :3].T) == pytest.approx([0, 0, 0.42], abs=1e-2)
    assert rig.wrong() == []


def test_the_hand_has_hysteresis_and_dwell(make_rig):
    rig = make_rig(ExecutorSettings(gripper_dwell=0.5))
    rig.arm()
    for value in (1.0, 0.2, -0.2, -0.6, 0.1, 0.9, -0.9):
        rig.offer(gripper=value)
        rig.run(7 * T, T / 7)
    rig.run(0.2)
    assert rig.hand.commands == [1.0, -1.0, 1.0, -1.0]
    rig = make_rig(ExecutorSettings(gripper_dwell=0.5, blending="none"))
    rig.arm()
    for k in range(30):
        rig.offer(gripper=1.0 if k % 2 else -1.0)
        rig.run(T, T / 7)
    assert 3 <= len(rig.hand.commands) <= 5


def test_home_goes_through_the_limiter_and_ends_idle(make_rig):
    q0 = HOME + np.array([0.5, 0.2, -0.4, 0.3, 0.2, -0.3, 0.6])
    rig = make_rig(q0=q0)
    result = rig.core.home(rig.now)
    assert result.success
    rig.tick()
    assert rig.core.machine.state is State.RUNNING
    assert rig.offer(sine).reason is Reason.NOT_READY
    assert rig.core.arm(rig.now).message == "cannot arm in RUNNING; it is on its way home; wait until it stands (IDLE)"
    rig.run(float(result.message.split()[-2]) + 0.3)
    assert rig.core.machine.state is State.IDLE
    assert rig.samples[-1] == pytest.approx(HOME, abs=5e-3)
    assert rig.wrong() == [] and rig.sink.stops == 1


@pytest.mark.parametrize("place", [(0.18, 0.0, 0.4), (0.15, 0.3, 0.2), (0.35, -0.6, 0.2), (0.45, 0.1, -0.01)])
def test_an_arm_outside_the_workspace_can_go_home(make_rig, place):
    """Guided out of the box by hand, some cm on each side: it comes back in and never goes further out."""
    profile = load_profile("fr3")
    pose = kinematics.forward(profile, HOME)
    pose[:3, 3] = place
    rig = make_rig(q0=kinematics.ik(profile, pose, HOME))
    check = WorkspaceCheck(profile)
    before = check.excess(rig.q0[None])[0, 0]
    assert before > 0.01
    assert rig.core.home(rig.now).success
    rig.run(20.0)
    assert rig.core.machine.state is State.IDLE
    np.testing.assert_allclose(rig.samples[-1], HOME, atol=1e-3)
    assert check.excess(np.array(rig.samples))[:, 0].max() <= before + 1e-3


@pytest.mark.parametrize("setting, opened", [("open", True), ("keep", False)])
def test_the_hand_on_the_way_home(make_rig, setting, opened):
    """Also right after it closed, and from a pose that is home already."""
    rig = make_rig(ExecutorSettings(home_gripper=setting))
    rig.arm()
    rig.offer(lambda t: HOME, gripper=-1.0)
    rig.run(0.2)
    rig.core.stop(rig.now)
    rig.run(0.5)
    assert rig.core.hand.commands == [-1.0]
    assert rig.core.home(rig.now).success
    rig.run(2.0)
    assert rig.core.hand.commands == ([-1.0, 1.0] if opened else [-1.0])


def test_commands_are_refused_with_a_remedy(make_rig):
    rig = make_rig()
    assert "arm first" in rig.core.hold(rig.now).message
    assert "recover" in rig.core.recover(rig.now).message
    assert rig.offer().reason is Reason.NOT_READY
    rig.arm()
    rig.offer()
    rig.tick()
    for command in ("home", "reset", "arm"):
        assert getattr(rig.core, command)(rig.now).message.endswith("stop first")
    assert rig.core.status.rejected == 0 and "IDLE" in rig.core.status.last_rejection


def test_arming_needs_a_living_resting_arm(make_rig):
    rig = make_rig()
    rig.error = "joint_reflex"
    rig.tick()
    assert "joint_reflex" in rig.core.arm(rig.now).message
    rig.error = ""
    rig.core.tick(rig.now, dataclasses.replace(rig.state(), dq=np.full(7, 0.2)))
    assert "moves with 0.20 rad/s" in rig.core.arm(rig.now).message
    rig.tick()
    assert "no robot state" in rig.core.arm(rig.now + 1.0).message


@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("command", ["stop", "hold"])
def test_what_was_seen_before_a_stop_moves_nothing_behind_it(make_rig, mode, command):
    rig = make_rig(ExecutorSettings(mode=mode))
    rig.arm()
    assert rig.offer(execute=14, horizon=28)
    rig.run(0.2)
    thought = rig.chunk(execute=14, horizon=28)  # the network is at it while the operator stops and arms again
    rig.run(0.1)
    assert getattr(rig.core, command)(rig.now).success
    rig.run(0.2)
    rig.arm()
    verdict = rig.core.offer(thought, rig.now)
    assert verdict.reason is Reason.STALE and "before the arm was stopped" in verdict.text
    assert rig.offer()


def test_another_policy_waits_until_the_arm_stands(make_rig):
    """However short the lease: taken over in motion, the arm would be neither near nor slow."""
    rig = make_rig(ExecutorSettings(lease=0.2, chunk_timeout=1.0))
    rig.arm()
    assert rig.offer(execute=14, horizon=28, policy_id="one")
    rig.run(0.5)
    verdict = rig.offer(policy_id="two")
    assert verdict.reason is Reason.LEASE and "one moves the arm" in verdict.text
    assert rig.offer(execute=14, horizon=28, policy_id="one")
    rig.run(1.2)
    assert rig.core.machine.state is State.ARMED
    assert rig.offer(policy_id="two")


def test_a_wish_that_the_hand_has_not_begun_ends_with_the_motion(make_rig):
    class Busy(PreviewHand):
        """Closes for ever: an opening waits."""

        waiting = None

        def command(self, opening):
            if self.commands:
                self.waiting = opening
            else:
                super().command(opening)

        def cancel(self):
            self.waiting = None
            return super().cancel()

    rig = make_rig()
    rig.hand = rig.core.hand = hand = Busy()
    rig.arm()
    rig.offer(gripper=-1.0)
    rig.run(0.6)
    rig.offer(gripper=1.0)
    rig.run(0.3)
    assert hand.commands == [-1.0] and hand.waiting == 1.0 == rig.core.opening
    rig.core.stop(rig.now)
    assert hand.waiting is None and rig.core.opening == -1.0
    rig.run(0.5)
    rig.arm()
    rig.offer(gripper=1.0)
    rig.run(0.2)
    assert hand.waiting == 1.0, "the next policy's wish is a change again"


def test_a_wish_that_the_hand_forgot_is_said_again_by_the_row_that_runs(make_rig):
    class Forgetful(type(make_rig().core.hand)):
        """A hand that is connected anew."""

        lost = False

        def forgot(self):
            lost, self.lost = self.lost, False
            return lost

    rig = make_rig()
    rig.hand = rig.core.hand = hand = Forgetful()
    rig.arm()
    rig.offer(gripper=-1.0)
    rig.run(0.3)
    assert hand.commands == [-1.0]
    hand.lost = True
    rig.run(0.3)
    assert hand.commands == [-1.0, -1.0] and rig.core.opening == -1.0


def test_an_arm_with_an_error_is_recovered_in_idle(make_rig):
    rig = make_rig()
    rig.error = "joint_reflex"
    rig.tick()
    rig.core._recover_robot = lambda: setattr(rig, "error", "") or ""
    assert rig.core.machine.state is State.IDLE and rig.core.recover(rig.now).success
    rig.tick()
    rig.arm()
    assert "there is no fault" in rig.core.recover(rig.now).message


def test_an_arm_beyond_its_margin_is_led_back_by_end_effector_rows():
    profile = load_profile("fr3")
    base = HOME.copy()
    base[4] = profile.q_max[4] - 0.01  # pushed there by hand
    rows = np.zeros((14, 7))
    rows[:, 2] = 0.005
    q = absolute(profile, "ee_delta", rows, base, 0)
    z = kinematics.forward(profile, q)[:, 2, 3]
    assert z[-1] - z[0] == pytest.approx(13 * 0.005, abs=2e-3) and (q <= profile.upper + 1e-9).all()


def test_rows_out_of_reach_cost_little_and_leave_the_arm_at_the_edge():
    """All rows are converted while the operator's stop waits."""
    profile, out = load_profile("fr3"), np.zeros((128, 7))
    out[:, 0] = 0.03  # m forwards a row: nearly four metres
    out[118:, 0] = -0.03
    count, frames = 0, kinematics.frames

    def counted(*given):
        nonlocal count
        count += 1
        return frames(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinematics, "frames", counted)
        q = absolute(profile, "ee_delta", out, HOME, 0)
    assert count < 5 * len(out)
    x = kinematics.forward(profile, q)[:, 0, 3]
    assert x[:5] == pytest.approx(kinematics.forward(profile, HOME)[0, 3] + 0.03 * np.arange(1, 6), abs=1e-3)
    assert (np.diff(q[15:118], axis=0) == 0).all(), "it waits at the edge"
    assert x[117] - x[-1] == pytest.approx(10 * 0.03, abs=1e-3), "and the way back begins there"


def test_a_new_instruction_replaces_the_old_plan(make_rig):
    rig = make_rig()
    rig.arm()
    rig.offer(lambda t: HOME + 0.3 * (t - 100) * np.eye(7)[6])
    rig.run(0.2)
    assert rig.core.offer(dataclasses.replace(rig.chunk(lambda t: HOME), task_id=1, instruction="back"), rig.now)
    rig.run(0.1)
    assert rig.core.status.task_id == 1 and rig.core.status.instruction == "back"
    rig.run(0.8)
    assert rig.samples[-1] == pytest.approx(HOME, abs=2e-3) and rig.wrong() == []


def test_the_reference_is_seen_ahead(make_rig):
    rig = make_rig()
    rig.arm()
    rig.offer(sine)
    rig.tick()
    times, rows = rig.core.committed(rig.now, 4)
    assert len(times) == 4 and rows[:, :7] == pytest.approx(np.array([sine(t) for t in times]))
    points = rig.sink.waypoints
    assert len(points) >= 8 and np.all(points[-1].dq == pytest.approx(0, abs=1e-9)), "ends at rest"
    for p in points:
        assert p.q == pytest.approx(rig.core.reference().at(p.time)[0], abs=1e-12)


def test_an_arm_whose_generator_strays_is_brought_back(make_rig):
    rig = make_rig()
    rig.arm()
    rig.offer(sine)
    rig.run(0.1)
    sent = len(rig.streamed)
    state = rig.state()
    rig.core.tick(rig.now, dataclasses.replace(state, q_d=state.q_d + 0.015))
    assert len(rig.streamed) == sent
    rig.core.tick(rig.now, dataclasses.replace(state, q_d=state.q_d + 0.06))
    assert len(rig.streamed) == sent + 1, "once"
    rig.core.tick(rig.now, dataclasses.replace(state, q_d=state.q_d + 0.06))
    assert len(rig.streamed) == sent + 1


@pytest.mark.parametrize(
    "target, flag",
    [
        (HOME + np.array([0, 0, 0, 0, 0, 0, 5.0]), Limited.POSITION),
        (HOME + np.array([1.6, 0, 0, 0, 0, 0, 0]), Limited.WORKSPACE),
        (HOME + np.array([0, 0, 0, 0, 0, 0, 1.0]), Limited.REACH),
    ],
)
def test_the_limiter_says_what_it_did(target, flag):
    limiter = Limiter(load_profile("fr3"))
    reference = limiter.extend(Reference.rest(0.0, HOME), 0.0, [T], target[None], np.zeros((1, 7)))
    assert reference.segments[0].limited & flag


def test_a_path_a_little_beyond_the_limits_is_followed_a_little_behind():
    """A tenth more acceleration than allowed: rows are late one after the other, and none is a reason to turn back."""
    limiter, profile = Limiter(load_profile("fr3")), load_profile("fr3")
    push, joint = 1.1 * profile.limits[1][1], np.eye(7)[1]
    time = T * np.arange(1, 15)
    speed = np.minimum(push * time, 0.8) - np.minimum(push * np.maximum(0.0, time - 6 * T), 0.8)
    fine = np.linspace(0, time[-1], 2000)
    fine_speed = np.minimum(push * fine, 0.8) - np.minimum(push * np.maximum(0.0, fine - 6 * T), 0.8)
    way = np.concatenate([[0.0], np.cumsum(0.5 * (fine_speed[1:] + fine_speed[:-1]) * np.diff(fine))])
    q = HOME + np.interp(time, fine, way)[:, None] * joint
    reference = limiter.extend(Reference.rest(0.0, HOME), 0.0, time, q, speed[:, None] * joint)
    got = np.array([reference.at(t)[:2] for t in fine])
    off = np.abs(got[:, 0] - HOME - way[:, None] * joint)
    assert off.max() < 0.02
    assert got[fine < 6 * T, 1, 1].min() > -0.01, "it never turns back"


def test_sliding_along_the_table_is_possible(make_rig):
    """Targets under the table are lifted to its clearance, not refused: a push goes on."""
    profile = load_profile("fr3")
    start = kinematics.forward(profile, HOME).copy()
    start[:3, 3] = 0.45, -0.1, 0.01
    q = kinematics.ik(profile, start, HOME)
    rig = make_rig(q0=q)
    rig.arm()
    for k in range(8):
        goal = start.copy()
        goal[:3, 3] += 0, 0.02 * (k + 1), -0.03
        under = kinematics.ik(profile, goal, rig.core.reference().at(rig.now)[0])
        rig.offer(lambda t, under=under: under)
        rig.run(0.4)
    place = kinematics.forward(profile, rig.samples[-1])[:3, 3]
    assert place[1] > 0.03 and 0.005 <= place[2] < 0.012
    assert rig.wrong() == []


def test_shipped_settings_are_the_defaults():
    assert load(ExecutorSettings, share("config", "executor.yaml")) == ExecutorSettings()
    with pytest.raises(ValueError, match="chunk_timeout"):
        build(ExecutorSettings, {"chunk_timeout": -1.0})


def test_profiles_load_and_stricter_limits_win():
    for name in ("fr3", "panda"):
        profile = load_profile(name)
        assert profile.name == name and np.all(profile.limits[0] <= 0.6 * 2.0)
    tighter = load_profile("fr3").tightened(velocity=np.full(7, 1.0), q_max=np.full(7, 9.0))
    assert tighter.limits[0] == pytest.approx(0.6 * 0.83) and tighter.q_max == load_profile("fr3").q_max
    with pytest.raises(ValueError, match="unknown; use fr3, panda"):
        load_profile("kuka")


@pytest.mark.parametrize("compliant, expected", [(False, 0.0), (True, 0.2)])
def test_a_compliant_arm_begins_where_it_is_not_at_a_command_of_before(make_rig, compliant, expected):
    """Torques leave q_d behind: springs drawn to it would have jumped by 0.36 rad, as was seen."""
    rig = make_rig()
    rig.core.sink.compliant = compliant
    rig.offset = 0.2 * np.eye(7)[3]
    rig.tick()
    assert rig.core.reference().at(rig.now)[0][3] - rig.profile.home_q[3] == pytest.approx(expected)
