"""Figures of the evaluation against values known from elsewhere."""

import math

import numpy as np
import pytest

from vipra_ros.learning import metrics


@pytest.mark.parametrize(
    "successes, n, low, high",
    [
        # R: prop.test(x, n, correct = FALSE)
        (40, 50, 0.6696, 0.8876),
        (0, 50, 0.0, 0.0713),
        (50, 50, 0.9287, 1.0),
        (7, 10, 0.3968, 0.8922),
    ],
)
def test_wilson_interval(successes, n, low, high):
    assert metrics.wilson(successes, n) == pytest.approx((low, high), abs=1e-4)


def test_wilson_of_nothing_is_everything_and_nonsense_is_refused():
    assert metrics.wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 successes of 2"):
        metrics.wilson(3, 2)


def test_overlap():
    assert metrics.overlap((0.1, 0.5), (0.5, 0.9))
    assert not metrics.overlap((0.1, 0.4), (0.5, 0.9))


def test_jerk_of_a_cubic_is_its_third_derivative():
    period = 1 / 60
    t = np.arange(30) * period
    q = np.stack([2.0 * t**3 - t, np.full_like(t, 0.3)], -1)  # jerk 12 and 0 rad/s^3
    assert metrics.jerk(q, period) == pytest.approx(np.tile([12.0, 0.0], (27, 1)), abs=1e-6)
    rms, peak = metrics.jerk_figures([q, q], period)
    assert rms == pytest.approx(12.0 / math.sqrt(2)) and peak == pytest.approx(12.0)


def test_jerk_needs_four_samples():
    assert metrics.jerk(np.zeros((3, 7)), 0.1).shape == (0, 7)
    assert all(math.isnan(v) for v in metrics.jerk_figures([np.zeros((3, 7))], 0.1))


def test_resampling_keeps_cubics_exact_at_uneven_times():
    rng = np.random.default_rng(0)
    t = np.cumsum(rng.uniform(0.005, 0.02, 200))
    q, dq = (t**3 - t)[:, None], (3 * t**2 - 1)[:, None]
    even = metrics.resample(t, q, dq, 1 / 60)
    grid = t[0] + np.arange(len(even)) / 60
    assert even[:, 0] == pytest.approx(grid**3 - grid, abs=1e-9)
    # and the jerk of what was uneven comes out right
    assert metrics.jerk(even, 1 / 60) == pytest.approx(6.0, abs=1e-3)


def test_percentiles_ignore_what_was_not_measured():
    assert metrics.percentiles([1.0, math.nan, 3.0])["p50"] == 2.0
    assert math.isnan(metrics.percentiles([])["p99"])


def test_confusion_by_colour_shows_empty_rows_too():
    rows = [
        dict(colour="red", acted_on="red", success=True),
        dict(colour="red", acted_on="blue", success=False),
        dict(colour="blue", acted_on=None, success=False),
    ]
    table = metrics.by_colour(rows, ("red", "green", "blue"))
    assert table["red"] == {"n": 2, "success": 1, "acted_on": {"red": 1, "green": 0, "blue": 1, "none": 0}}
    assert table["green"]["n"] == 0 and table["green"]["acted_on"]["none"] == 0
    assert table["blue"]["acted_on"]["none"] == 1


def test_boundary_step_compares_rows_due_at_the_same_time():
    period, ramp = 0.1, np.arange(1, 15)[:, None] * np.ones(8)
    old = (0.0, 0.0, ramp * 0.1)  # row k is due at (k + 1) period
    same = (0.3, 0.45, ramp * 0.1 + 0.3)  # continues the same line
    jump = (0.3, 0.45, ramp * 0.1 + 0.35)
    assert metrics.boundary_steps([old, same], period) == pytest.approx([0.0])
    assert metrics.boundary_steps([old, jump], period) == pytest.approx([0.05])
    far = (2.0, 2.0, ramp)  # the old plan had ended long before
    assert len(metrics.boundary_steps([old, far], period)) == 0


def test_rows_executed_counts_each_instant_once():
    period, rows = 0.1, np.zeros((14, 8))
    one = (0.0, 0.2, rows)  # rows due at 0.1 .. 0.7, the first comes too late
    assert metrics.rows_executed([one], 7, period, end=10.0) == 6
    assert metrics.rows_executed([one], 7, period, end=0.45) == 3
    two = (0.4, 0.6, rows)  # takes over at 0.6; its own rows run until 1.1
    assert metrics.rows_executed([one, two], 7, period, end=10.0) == 4 + 6
