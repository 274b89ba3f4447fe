"""Alignment, engagement and the chunks of the leader arm, against the real executor core on a fake clock."""

import math

import numpy as np
import pytest

from vipra_ros.control.chunk import RobotState
from vipra_ros.control.executor import ExecutorCore
from vipra_ros.control.guard import State
from vipra_ros.control.profile import load_profile
from vipra_ros.control.settings import ExecutorSettings
from vipra_ros.control.sinks import PreviewHand
from vipra_ros.teleop.follow import Follow, FollowSettings, Phase

PROFILE = load_profile("fr3")
HOME = PROFILE.home_q


class Sink:
    def stream(self, waypoints, now):
        pass

    def stop(self, now):
        pass


class Rig:
    """Leader, follower that does what it is told at once, executor; 100 Hz, the leader at 25 Hz."""

    def __init__(self, leader, delay=0.02, **settings):
        self.core = ExecutorCore(PROFILE, ExecutorSettings(), Sink(), PreviewHand())
        self.follow = Follow(PROFILE, FollowSettings(**settings), "gello-1")
        self.leader, self.delay, self.now, self.q = leader, delay, 0.0, HOME.copy()
        self.opening, self.reads, self.trail, self.verdicts, self.chunks = 1.0, True, [], [], []

    def run(self, seconds):
        for _ in range(round(seconds * 100)):
            tick = round(self.now * 100)
            if self.reads and tick % 4 == 0:
                self.follow.reading(self.now, self.leader(self.now), self.opening, 0.03)
            if self.reads and tick % 4 == round(self.delay * 100) % 4:
                chunk = self.follow.chunk(self.now)
                if chunk is not None:
                    self.chunks.append(chunk)
                    self.verdicts.append(self.core.offer(chunk, self.now))
            self.core.tick(self.now, RobotState(self.now, self.q, np.zeros(7), self.q, np.zeros(7)))
            reference = self.core.reference()
            if reference is not None:
                self.q = reference.at(self.now)[0]
                self.trail.append((self.now, *self.q, reference.at(self.now)[1][0]))
            self.follow.follower(self.now, self.q)
            self.follow.executor(self.now, self.core.machine.state, self.core.epoch)
            self.now += 0.01

    def arm(self):
        result = self.core.arm(self.now)
        assert result.success, result


def still(offset=0.0, joint=0):
    return lambda t: HOME + offset * np.eye(7)[joint]


def swing(t):
    return HOME + 0.15 * math.sin(2 * math.pi * t / 5) * np.array([1, 0, 0, 0.6, 0, 0.8, 1])


def test_nothing_is_sent_before_the_executor_is_armed_and_the_text_says_so():
    rig = Rig(still())
    rig.run(0.5)
    assert not rig.chunks and rig.follow.phase is Phase.WAITING
    assert "IDLE; call executor/arm" in rig.follow.text
    rig.arm()
    rig.run(0.5)
    assert rig.follow.phase is Phase.FOLLOWING and rig.core.machine.state is State.RUNNING


def test_a_leader_that_is_elsewhere_is_told_which_joint_and_how_much():
    rig = Rig(still(0.35, 3))
    rig.run(0.1)
    rig.arm()
    rig.run(1.0)
    assert not rig.chunks and rig.follow.phase is Phase.ALIGNING
    assert "fr3_joint4 is off by +0.35 rad" in rig.follow.text and "joint1" not in rig.follow.text
    rig.leader = still(-0.1, 3)
    rig.run(0.2)
    assert rig.follow.phase is Phase.FOLLOWING


def test_the_difference_at_the_start_fades_out_slowly():
    rig = Rig(still(0.18), engage_time=1.5)
    rig.run(0.1)
    rig.arm()
    rig.run(3.0)
    trail = np.array(rig.trail)
    assert trail[-1, 1] == pytest.approx(HOME[0] + 0.18, abs=1e-3)
    assert np.abs(trail[:, 8]).max() < 1.7 * 0.18 / 1.5  # a smooth step's peak is 1.5 times its mean
    first = np.asarray(rig.chunks[0].actions)
    assert np.abs(first[:, :7] - HOME).max() < 0.01


@pytest.mark.parametrize("lag_steps", [2, 3, 4])
def test_the_follower_is_the_leader_a_fixed_time_later(lag_steps):
    rig = Rig(swing, lag_steps=lag_steps)
    rig.run(0.1)
    rig.arm()
    rig.run(9.0)
    trail = np.array(rig.trail)
    late = trail[trail[:, 0] > 3.0]
    lag = lag_steps * 0.04
    wanted = np.array([swing(t - lag)[0] for t in late[:, 0]])
    assert np.abs(late[:, 1] - wanted).max() < 0.004
    velocity = np.diff(late[:, 8]) / 0.01
    assert np.abs(velocity).max() < (1.2 if lag_steps > 2 else 8.0)  # rad/s^2; the swing itself has 0.24
    assert all(rig.verdicts), [v for v in rig.verdicts if not v][:1]
    p50, p95 = rig.follow.lag
    assert p50 == pytest.approx(lag, abs=0.02) and p95 < lag + 0.04
    assert {len(c.actions) for c in rig.chunks} == {lag_steps + 1} and not len(rig.chunks[0].lookahead)
    assert rig.chunks[0].checkpoint == "gello" and rig.chunks[0].action_space == "joint_position"


def test_only_the_last_row_is_extrapolated_and_by_one_period():
    rig = Rig(lambda t: HOME + 0.3 * t * np.eye(7)[6])
    rig.run(0.1)
    rig.arm()
    rig.run(2.5)
    chunk = rig.chunks[-1]
    expected = HOME[6] + 0.3 * (chunk.stamp + 0.04 * np.arange(-2, 2))
    np.testing.assert_allclose(chunk.actions[:, 6], expected, atol=1e-6)


def test_a_silent_leader_stops_the_arm_and_must_be_aligned_again():
    rig = Rig(swing)
    rig.run(0.1)
    rig.arm()
    rig.run(3.0)
    sent, rig.reads = len(rig.chunks), False
    rig.follow.lost("unplugged")
    rig.run(2.0)
    assert rig.core.machine.state is State.ARMED and not rig.core.reference().moving(rig.now)
    assert len(rig.chunks) == sent and rig.follow.phase is Phase.LOST and rig.follow.text == "unplugged"
    rig.leader, rig.reads = still(0.4, 5), True
    rig.run(0.5)
    assert rig.follow.phase is Phase.ALIGNING and len(rig.chunks) == sent
    rig.leader = lambda t: rig.q + 0.05
    rig.run(0.5)
    assert rig.core.machine.state is State.RUNNING
    assert rig.chunks[-1].task_id == rig.chunks[sent - 1].task_id + 1


def test_late_reads_and_gaps_send_nothing():
    follow = Follow(PROFILE, FollowSettings(), "gello-1")

    def at(now, duration):
        follow.follower(now, HOME)
        follow.executor(now, State.RUNNING, 3)
        follow.reading(now - duration / 2, HOME, 0.0, duration)
        return follow.chunk(now)

    assert at(1.0, 0.03) is not None
    assert at(1.04, 0.2) is None and "took 0.200 s" in follow.text
    chunk = at(1.08, 0.03)
    assert chunk is not None and chunk.epoch == 3 and chunk.chunk_id == 2 and (chunk.actions[:, 7] == -1).all()
    assert follow.chunk(1.3) is None  # a reading of 0.2 s ago
    follow.follower(2.0, HOME + 1.0)
    follow.executor(2.0, State.RUNNING, 3)
    follow.reading(2.0, HOME, 0.0, 0.03)  # a gap: alignment is looked at again
    assert follow.chunk(2.0) is None and follow.phase is Phase.ALIGNING
    assert follow.chunk(2.6) is None and "joint_states" in follow.text


def test_rows_stay_within_the_follower_and_a_leader_beyond_is_followed_to_the_edge():
    rig = Rig(lambda t: HOME + 0.4 * t * np.eye(7)[5])
    rig.run(0.1)
    rig.arm()
    rig.run(7.0)
    assert np.max([c.actions[:, 5].max() for c in rig.chunks]) <= PROFILE.upper[5]
    assert all(rig.verdicts) and rig.core.machine.state in (State.RUNNING, State.HOLD)


def test_stop_ends_following_and_arming_begins_anew():
    rig = Rig(swing)
    rig.run(0.1)
    rig.arm()
    rig.run(2.0)
    rig.core.stop(rig.now)
    rig.run(1.0)
    sent = len(rig.chunks)
    assert rig.core.machine.state is State.IDLE and rig.follow.phase is Phase.WAITING
    rig.run(0.5)
    assert len(rig.chunks) == sent


def test_a_leader_put_down_does_not_open_a_hand_that_holds_something():
    rig = Rig(still())
    rig.run(0.1)
    rig.follow.hand(-1.0)  # it holds a part; the sprung trigger of the leader is open
    rig.arm()
    rig.run(1.0)
    assert rig.chunks and all((c.actions[:, -1] == -1.0).all() for c in rig.chunks)
    assert rig.follow.text == "the arm follows the leader; the hand stays closed until the trigger is pulled once"
    rig.opening = 0.0
    rig.run(0.5)
    assert rig.follow.text == "the arm follows the leader" and rig.core.opening == -1.0
    rig.opening = 1.0
    rig.run(1.0)
    assert rig.core.opening == 1.0, "taken over: the trigger opens it"
    rig.follow.hand(1.0)
    rig.core.stop(rig.now)
    rig.opening = 0.0
    rig.run(1.0)
    rig.arm()
    rig.run(0.5)
    assert rig.follow.text.endswith("the hand stays open until the trigger is let go once")
    assert (rig.chunks[-1].actions[:, -1] == 1.0).all()


@pytest.mark.parametrize("late", range(8))
def test_the_pull_that_takes_over_opens_the_hand_not_even_for_a_moment(late):
    rig = Rig(still(), delay=0.0, lag_steps=4)
    rig.run(0.1)
    rig.follow.hand(-1.0)
    rig.arm()
    rig.run(0.5 + late / 100)
    rig.opening = 0.0
    for _ in range(100):
        rig.run(0.01)
        assert rig.core.opening == -1.0
    assert rig.follow.text == "the arm follows the leader"
