"""The stop: never later than v/a of the slowest joint and one pass of the loop."""

import numpy as np

from vipra_ros.control.profile import load_profile
from vipra_ros.control.stops import CAUSES, measure, specified


def test_every_stop_keeps_the_specification_and_the_bench_is_no_constant():
    stops = measure(12, seed=3)
    assert [sum(s.cause == c for s in stops) for c in CAUSES] == [12, 12]
    assert all(0.0 < s.seconds <= s.specified for s in stops), [s for s in stops if s.seconds > s.specified]
    fast = sorted(stops, key=lambda s: s.speed)
    assert fast[0].seconds < 0.6 * fast[-1].seconds and fast[-1].speed > 0.5


def test_the_specification_is_v_over_a():
    profile = load_profile("fr3")
    assert np.isclose(specified(profile, np.array([0, 0, 0.5, 0, 0, -0.8, 0]), 0.01), 0.8 / 3.486 + 0.01)
