"""The probe finds what the kept tokens hold, and nothing where they hold nothing."""

import numpy as np
import pytest
import torch
from test_pretrain import POLICY, write_labels

from vipra_ros.learning import prefix_probe, pretrain
from vipra_ros.learning.prefix_probe import explained, hidden_states


def parts(m=240, noise=0.0, seed=0):
    draws = np.random.default_rng(seed)
    target = draws.normal(size=(m, 3)) * [1.0, 0.3, 0.0]
    holds = target @ draws.normal(size=(3, 40)) + noise * draws.normal(size=(m, 40))
    return target, holds.astype(np.float32), draws.normal(size=(m, 40)).astype(np.float32), np.arange(m) < 180


def test_the_layer_that_holds_the_target_is_found():
    target, holds, empty, fit = parts()
    assert explained([empty, holds, empty], target, fit) > 0.95
    assert -0.2 < explained([empty], target, fit) < 0.2


def test_the_choice_looks_at_fitted_rows_only():
    target, holds, empty, fit = parts()
    liar = empty.copy()  # holds the target on the rows that are only read
    liar[~fit] = holds[~fit]
    assert explained([liar, holds], target, fit) > 0.95
    # Leave-one-out in closed form is leaving one out.
    x = (holds - holds[fit].mean(0)) / (holds[fit].std(0) + 1e-6)
    gram, y, penalty = x[fit][:30] @ x[fit][:30].T / 40, target[fit][:30], 0.3
    inverse = np.linalg.inv(gram + penalty * np.eye(30))
    rest = np.arange(30) != 7
    by_hand = y[7] - gram[7, rest] @ np.linalg.solve(gram[np.ix_(rest, rest)] + penalty * np.eye(29), y[rest])
    assert np.allclose(by_hand, (inverse @ y)[7] / inverse[7, 7])


def test_too_few_rows_or_no_motion_say_nothing():
    target, holds, _, fit = parts()
    assert np.isnan(explained([holds[:20]], target[:20], np.arange(20) < 15))
    assert np.isnan(explained([holds], 0 * target + 1.0, fit))


@pytest.fixture
def job(data, quantiser, tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setattr(pretrain, "run", lambda job, *_: jobs.append(job))
    monkeypatch.setattr(prefix_probe, "FEWEST", 2)
    (tmp_path / "micro.yaml").write_text(f"vq: {quantiser}\nholdout: 0.3\nevaluate_on: 16\npolicy: {{{POLICY}}}\n"
                                         "loop: {steps: 4, batch: 8, bf16: false}\n")
    labels = write_labels(tmp_path / "labels", data)

    def make(**change):
        pretrain.train(data, labels, tmp_path / f"run{len(jobs)}", tmp_path / "micro.yaml", change)
        return jobs[-1]

    return make


def test_pretraining_probes_one_early_row_of_each_episode(job, data):
    one = job(probe_episodes=3, early_frames=2)
    index, fit, joints = one.probed
    assert fit.sum() == 3 and (~fit).any() and len(set(one.first[index])) == len(index)
    assert (index - one.first[index] < 2).all()
    assert not np.isin(index[fit], one.held).any() and np.isin(index[~fit], one.held).all()
    assert np.array_equal(joints, data.numeric("observation.state")[one.labels.future[index]])
    assert np.isfinite(one.evaluate()["probe_future_joints_r2"])
    assert job().probed is None and "probe_future_joints_r2" not in job().evaluate()


def test_only_kept_tokens_are_read_and_padding_is_not(job):
    one = job(probe_episodes=2)
    batch = one.example(np.array([0, 5]))
    layers = hidden_states(one.model.eval(), [batch])
    width, tokens = one.model.config.backbone.width, one.model.config.vision_tokens
    assert [layer.shape for layer in layers] == [(2, tokens * width)] * (1 + len(one.model.trunk.layers))
    pad = torch.zeros(2, 3, dtype=batch.before.dtype)
    batch.before, batch.before_mask = torch.cat([pad, batch.before], 1), torch.cat([pad.bool(), batch.before_mask], 1)
    for plain, padded in zip(layers, hidden_states(one.model, [batch, batch]), strict=True):
        assert np.allclose(np.concatenate([plain, plain]), padded, atol=1e-5)
    assert not any(layer._forward_hooks for layer in one.model.trunk.layers)
