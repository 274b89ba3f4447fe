"""The flow-matching convention: t = 0 noise, t = 1 action, straight paths, mass of time at the noisy end."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vipra_ros.model import flow


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 0.98))
def test_velocity_is_the_derivative_of_the_path(seed, t):
    generator = torch.Generator().manual_seed(seed)
    noise, action = torch.randn(2, 14, 8, generator=generator, dtype=torch.float64)
    step = 1e-3
    here, there = (flow.interpolate(noise, action, torch.tensor(v, dtype=torch.float64)) for v in (t, t + step))
    assert torch.allclose((there - here) / step, flow.velocity_target(noise, action), atol=1e-9)


def test_path_runs_from_noise_to_action():
    noise, action = torch.randn(2, 14, 8)
    assert torch.equal(flow.interpolate(noise, action, torch.tensor(0.0)), noise)
    end = flow.interpolate(noise, action, torch.tensor(1.0))
    assert torch.allclose(end, action + flow.NOISE_FLOOR * noise, atol=1e-6)


def test_euler_follows_a_straight_path_exactly():
    """The true field of one pair is constant, so any number of steps lands on the same point."""
    noise, action = torch.randn(2, 14, 8, dtype=torch.float64)
    for steps in (1, 3, 10):
        end = flow.euler(lambda x, t: flow.velocity_target(noise, action), noise, steps)
        assert torch.allclose(end, action + flow.NOISE_FLOOR * noise, atol=1e-12)


def test_euler_on_a_known_field_and_the_times_it_asks():
    asked = []

    def field(x, t):
        asked.append(t)
        return -x

    end = flow.euler(field, torch.ones(1, dtype=torch.float64), 10)
    assert torch.allclose(end, torch.tensor(0.9**10, dtype=torch.float64))
    assert asked == [k / 10 for k in range(10)]


def test_gaussian_data_come_out_of_the_exact_field():
    """Marginal field of N(m, v) data: Euler carries standard normal noise to mean m and variance v."""
    mean, variance, k = 2.0, 0.25, 1 - flow.NOISE_FLOOR

    def field(x, t):
        a, b = t, 1 - k * t
        spread = a * a * variance + b * b
        expected_action = mean + a * variance / spread * (x - a * mean)
        expected_noise = b / spread * (x - a * mean)
        return expected_action - k * expected_noise

    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    end = flow.euler(field, noise, 200)
    assert abs(end.mean() - mean) < 0.02
    assert abs(end.var() - variance) < 0.02


def test_time_is_beta_with_its_mass_at_the_noisy_end():
    t = flow.sample_time((200_000,), torch.Generator().manual_seed(0))
    assert t.min() >= 0 and t.max() <= flow.TIME_LIMIT
    # b ~ Beta(1.5, 1) has mean 3/5 and P(b <= x) = x^1.5.
    assert abs(t.mean() - 0.999 * 0.4) < 2e-3
    for x in (0.25, 0.5, 0.75):
        below = (1 - t / 0.999 <= x).float().mean()
        assert abs(below - x**1.5) < 4e-3
    assert (t < 0.5).float().mean() > 0.6


def test_time_features_tell_euler_steps_apart():
    t = torch.arange(10) / 10
    for band in ("paper", "wide"):
        features = flow.time_features(t, 96, band)
        assert features.shape == (10, 96) and features.abs().max() <= 1
        assert torch.cdist(features, features).fill_diagonal_(9).min() > 0.05
    near = torch.tensor([0.5, 0.505])
    paper, wide = (flow.time_features(near, 96, band) for band in ("paper", "wide"))
    assert (wide[0] - wide[1]).norm() > 10 * (paper[0] - paper[1]).norm()
