"""When the next observation is due."""

import math

import pytest

from vipra_ros.policy.scheduler import LEAST_GAP, Latency, Scheduler, replan_steps

P = 1 / 15


@pytest.mark.parametrize("latency, steps", [(0.0, 6), (P, 5), (P + 1e-6, 4), (0.13, 4), (0.2, 5), (2.0, 45)])
def test_replan_steps_leave_room_for_the_latency(latency, steps):
    assert replan_steps(7, latency, P) == steps


def test_first_observation_is_due_at_once_and_after_a_reset_again():
    s = Scheduler(7, P)
    assert s.due() == -math.inf
    s.published(10.0, 0.1)
    assert s.due() > 10.0
    s.reset()
    assert s.due() == -math.inf


def test_async_chunk_arrives_before_the_rows_run_out():
    s, stamp, latency = Scheduler(7, P), 100.0, 0.12
    for _ in range(50):
        s.published(stamp, latency)
        following = s.due()
        assert following + latency <= stamp + 6 * P + 1e-9  # one row is left when it arrives
        assert following >= stamp + P - 1e-9
        stamp = following


def test_a_slower_answer_moves_the_next_observation_forward():
    s = Scheduler(7, P)
    for _ in range(10):
        s.published(0.0, 0.05)
    quick = s.due()
    for _ in range(64):
        s.published(0.0, 0.12)
    assert s.due() < quick


def test_a_busy_machine_is_not_asked_ever_sooner():
    """Without a least gap a slow answer shortens the gap, which makes the next answer slower."""
    s = Scheduler(7, P)
    for latency in (0.1, 0.2, 0.3, 0.6):
        for _ in range(64):
            s.published(0.0, latency)
        assert s.due() >= LEAST_GAP * latency - 1e-9


def test_sync_waits_until_the_executor_has_no_rows():
    s = Scheduler(7, P, mode="sync")
    s.published(5.0, 0.2)
    assert s.due(None) == math.inf
    assert s.due(6.0) == 6.0


def test_rate_paces_and_impossible_ones_are_refused():
    s = Scheduler(7, P, rate=5.0)
    s.published(1.0, 0.1)
    assert s.due() == pytest.approx(1.0 + 4 * P)  # the latency asks for later than the rate does
    s = Scheduler(7, P, rate=2.5)
    s.published(1.0, 0.1)
    assert s.due() == pytest.approx(1.4)  # and here the rate does
    with pytest.raises(ValueError, match="run out"):
        Scheduler(7, P, rate=2.0)
    with pytest.raises(ValueError, match="async or sync"):
        Scheduler(7, P, mode="fast")
    assert Scheduler(7, P, mode="sync", rate=0.5).due() == -math.inf


def test_latency_percentiles_over_a_window():
    l = Latency(window=10)  # noqa: E741
    assert math.isnan(l.percentile(50))
    for v in [9.0] * 5 + [1.0] * 10:
        l.add(v)
    assert l.percentile(95) == 1.0
