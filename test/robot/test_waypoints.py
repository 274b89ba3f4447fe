"""Motions begin with a waypoint that the arm's generator reaches in its time."""

import numpy as np
import pytest

from vipra_ros.control.chunk import RobotState, Waypoint
from vipra_ros.control.profile import load_profile
from vipra_ros.robot.waypoints import LEAST_GAP, ON_TIME, TAKEOVER, Feasible

PROFILE = load_profile("fr3")
HOME = PROFILE.home_q
T = 1 / 15


def rows(speed: float, count: int = 7) -> list[Waypoint]:
    """All joints at `speed` (rad/s) from home on, then at rest in 0.3 s."""
    way = [Waypoint((k + 1) * T, HOME + speed * (k + 1) * T, np.full(7, speed)) for k in range(count)]
    end = way[-1]
    return [*way, Waypoint(end.time + 0.3, end.q + speed * 0.15, np.zeros(7))]


def at(time: float, q: np.ndarray, dq: np.ndarray) -> RobotState:
    return RobotState(time, q, dq, q, dq, in_control=True)


@pytest.fixture
def feasible() -> Feasible:
    return Feasible(PROFILE)


def test_near_waypoints_are_left_out(feasible):
    way = rows(0.5)
    chosen = feasible.choose(way, at(0.0, HOME, np.full(7, 0.5)), 0.0)
    assert chosen[0].time > LEAST_GAP >= chosen[0].time - T
    assert chosen == way[way.index(chosen[0]):]


def test_an_arm_that_is_ahead_goes_to_a_waypoint_it_can_wait_for(feasible):
    way, q = rows(0.9), HOME.copy()
    q[3] += 0.06  # 67 ms ahead: to arrive at a near row in time it would have to turn back
    state = at(0.0, q, np.full(7, 0.9))
    first = next(w for w in way if w.time > LEAST_GAP)
    begin = q + 0.9 * TAKEOVER
    assert feasible.lateness(begin, state.dq, first, first.time - TAKEOVER) > 0.05
    chosen = feasible.choose(way, state, 0.0)
    assert feasible.lateness(begin, state.dq, chosen[0], chosen[0].time - TAKEOVER) < ON_TIME
    assert chosen[-1] is way[-1]


def test_one_waypoint_is_left_when_there_is_no_time_for_more(feasible):
    way = rows(0.5)
    assert feasible.choose(way, at(1.0, HOME, np.zeros(7)), 10.0) == way[-1:]


def test_without_a_state_of_the_arm_only_the_times_count(feasible):
    lost = at(0.0, np.full(7, np.nan), np.full(7, np.nan))
    for state in (None, lost):
        assert feasible.choose(rows(0.5), state, 0.0)[0].time == pytest.approx(2 * T)


def test_the_unreachable_is_infinitely_late(feasible):
    nowhere = Waypoint(1.0, np.full(7, np.nan), np.zeros(7))
    assert feasible.lateness(np.zeros(7), np.zeros(7), nowhere, 1.0) == np.inf


def test_a_row_that_the_arm_cannot_wait_for_is_left_to_the_next(feasible):
    joint, way = np.eye(7)[5], []
    for time, q, dq in ((0.2, -0.18, -0.9), (0.29, -0.23, -0.9), (0.6, -0.4, 0.0)):  # the second: slowly, yet fast
        way.append(Waypoint(time, HOME + q * joint, dq * joint))
    assert feasible.lateness(way[0].q, way[0].dq, way[1], 0.09) > 0.1
    assert feasible.choose(way, at(0.0, HOME, -0.9 * joint), 0.0) == [way[0], way[2]]


def test_the_way_to_a_far_waypoint_keeps_the_law_of_the_near_ones(feasible):
    """Towards the limit of joint 6 the robot must slow down; the generator alone would be fast and brake late."""
    joint, q0, way = np.eye(7)[5], HOME.copy(), []
    q0[5] = PROFILE.q_max[5] - 0.30
    for k, q in enumerate((0.06, 0.11, 0.15, 0.18, 0.20, 0.21)):
        way.append(Waypoint((k + 1) * T, q0 + q * joint, (0.9 - 0.15 * k) * joint))
    way.append(Waypoint(7 * T, q0 + 0.215 * joint, 0 * joint))
    chosen = feasible.choose(way, at(0.0, q0, 1.1 * joint), 0.0)
    time, q, dq = TAKEOVER, q0 + 1.1 * TAKEOVER * joint, 1.1 * joint
    for waypoint in chosen:
        feasible.lateness(q, dq, waypoint, waypoint.time - time)
        assert feasible.speed() < 1.0
        time, q, dq = waypoint.time, waypoint.q, waypoint.dq


def test_faster_than_the_arm_is_left_out(feasible):
    way = rows(0.5)
    way[3] = Waypoint(way[3].time, way[3].q, np.full(7, 1.5))
    assert way[3] not in feasible.choose(way, at(0.0, HOME, np.full(7, 0.5)), 0.0)
