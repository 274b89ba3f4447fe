"""Motions begin with a waypoint that the arm's generator reaches in its time."""

import numpy as np
import pytest

from vipra_ros.control.chunk import RobotState, Waypoint
from vipra_ros.control.profile import load_profile
from vipra_ros.robot.waypoints import LEAST_GAP, ON_TIME, TAKEOVER, Feasible

PROFILE = load_profile("fr3")
T = 1 / 15


def rows(speed: float, count: int = 7) -> list[Waypoint]:
    """All joints at `speed` (rad/s) from 0 on, then at rest in 0.3 s."""
    way = [Waypoint((k + 1) * T, np.full(7, speed * (k + 1) * T), np.full(7, speed)) for k in range(count)]
    end = way[-1]
    return [*way, Waypoint(end.time + 0.3, end.q + speed * 0.15, np.zeros(7))]


def at(time: float, q: np.ndarray, dq: np.ndarray) -> RobotState:
    return RobotState(time, q, dq, q, dq, in_control=True)


@pytest.fixture
def feasible() -> Feasible:
    return Feasible(PROFILE.arm_limits)


def test_near_waypoints_are_left_out(feasible):
    way = rows(0.5)
    chosen = feasible.choose(way, at(0.0, np.zeros(7), np.full(7, 0.5)), 0.0)
    assert chosen[0].time > LEAST_GAP >= chosen[0].time - T
    assert chosen == way[way.index(chosen[0]):]


def test_an_arm_that_is_ahead_goes_to_a_waypoint_it_can_wait_for(feasible):
    way, q = rows(0.9), np.zeros(7)
    q[3] = 0.06  # 67 ms ahead: to arrive at a near row in time it would have to turn back
    state = at(0.0, q, np.full(7, 0.9))
    first = next(w for w in way if w.time > LEAST_GAP)
    begin = q + 0.9 * TAKEOVER
    assert feasible.lateness(begin, state.dq, first, first.time - TAKEOVER) > 0.05
    chosen = feasible.choose(way, state, 0.0)
    assert feasible.lateness(begin, state.dq, chosen[0], chosen[0].time - TAKEOVER) < ON_TIME
    assert chosen[-1] is way[-1]


def test_one_waypoint_is_left_when_there_is_no_time_for_more(feasible):
    way = rows(0.5)
    assert feasible.choose(way, at(1.0, np.zeros(7), np.zeros(7)), 10.0) == way[-1:]


def test_without_a_state_of_the_arm_only_the_times_count(feasible):
    lost = at(0.0, np.full(7, np.nan), np.full(7, np.nan))
    for state in (None, lost):
        assert feasible.choose(rows(0.5), state, 0.0)[0].time == pytest.approx(3 * T)


def test_the_unreachable_is_infinitely_late(feasible):
    nowhere = Waypoint(1.0, np.full(7, np.nan), np.zeros(7))
    assert feasible.lateness(np.zeros(7), np.zeros(7), nowhere, 1.0) == np.inf


def test_a_row_that_the_arm_cannot_wait_for_is_left_to_the_next(feasible):
    """Seen on the way to a cube: 0.23 rad/s more in 67 ms is possible, in 70 ms the arm comes by too early."""
    joint, way = np.eye(7)[5], []
    for time, q, dq in ((0.22, -0.118, -0.65), (0.29, -0.170, -0.88), (0.545, -0.285, 0.0)):
        way.append(Waypoint(time, q * joint, dq * joint))
    assert feasible.lateness(way[0].q, way[0].dq, way[1], 0.067) < 1e-3
    assert feasible.lateness(way[0].q, way[0].dq, way[1], 0.070) > 0.1
    assert feasible.choose(way, at(0.0, np.zeros(7), -0.42 * joint), 0.0) == [way[0], way[2]]


def test_faster_than_the_arm_is_left_out(feasible):
    way = rows(0.5)
    way[3] = Waypoint(way[3].time, way[3].q, np.full(7, 1.5))
    assert way[3] not in feasible.choose(way, at(0.0, np.zeros(7), np.full(7, 0.5)), 0.0)
