"""Statistics that are merged from parts: quantiles, precision, pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vipra_ros.data.statistics import (
    QUANTILES,
    ImageStatistics,
    NumericStatistics,
    StatisticsError,
    floored_std,
)

values = hnp.arrays(np.float64, st.tuples(st.integers(1, 40), st.just(3)), elements=st.floats(-1e3, 1e3))


@settings(max_examples=40, deadline=None)
@given(st.lists(values, min_size=1, max_size=5))
def test_parts_one_after_another_equal_the_whole(parts):
    whole = np.concatenate(parts)
    statistics = NumericStatistics(3, seed=1)
    for part in parts:
        statistics.update(part)
    got = statistics.result()
    assert np.allclose(got["mean"], whole.mean(0), atol=1e-9)
    assert np.allclose(got["std"], whole.std(0), atol=1e-6)
    assert np.array_equal(got["min"], whole.min(0)) and np.array_equal(got["max"], whole.max(0))
    assert got["count"].tolist() == [len(whole)]
    for name, q in QUANTILES.items():
        assert np.allclose(got[name], np.quantile(whole, q, axis=0))


def test_quantiles_of_more_than_the_sample_are_close_and_memory_is_bounded():
    rng = np.random.default_rng(0)
    statistics = NumericStatistics(1, sample=2000)
    for _ in range(50):
        statistics.update(rng.normal(5.0, 2.0, (1000, 1)))
    got = statistics.result()
    assert got["q50"][0] == pytest.approx(5.0, abs=0.2) and got["q99"][0] == pytest.approx(
        5 + 2 * 2.326, abs=0.5
    )
    assert len(statistics._rows[0]) == 2000


def test_a_large_offset_does_not_cost_precision():
    x = np.linspace(0, 1e-3, 1000)[:, None] + 1e6
    statistics = NumericStatistics(1)
    for part in np.array_split(x, 7):
        statistics.update(part)
    assert statistics.result()["std"][0] == pytest.approx(x.std(), rel=1e-5)


def test_values_that_are_not_finite_are_named():
    statistics = NumericStatistics(2)
    with pytest.raises(StatisticsError, match=r"action\[1, 0\] = nan"):
        statistics.update(np.array([[0, 0], [np.nan, 1]]), "action")
    with pytest.raises(StatisticsError, match="no values yet"):
        statistics.result()


def test_pixels():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 200, (8, 9, 3), dtype=np.uint8) for _ in range(5)]
    one, two = ImageStatistics(), ImageStatistics()
    for i, image in enumerate(images):
        (one if i % 2 else two).update(image)
    one.merge(two)
    got, all_pixels = one.result(5), np.concatenate([i.reshape(-1, 3) for i in images]) / 255.0
    assert got["mean"].shape == (3, 1, 1) and got["count"].tolist() == [5]
    assert np.allclose(got["mean"].ravel(), all_pixels.mean(0)) and np.allclose(
        got["std"].ravel(), all_pixels.std(0)
    )
    assert np.allclose(got["min"].ravel(), all_pixels.min(0)) and np.allclose(
        got["max"].ravel(), all_pixels.max(0)
    )
    assert np.allclose(got["q50"].ravel(), np.median(all_pixels, axis=0), atol=1 / 255)


def test_std_floor():
    assert floored_std(np.array([1e-9, 0.5]), 1e-3).tolist() == [1e-3, 0.5]
    with pytest.raises(StatisticsError, match="positive"):
        floored_std(np.ones(2), 0.0)
