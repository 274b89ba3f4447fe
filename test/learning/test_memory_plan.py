"""The plan of the 7B trainings' memory against what is known in closed form."""

import pytest
import torch

from vipra_ros.config import ConfigError
from vipra_ros.learning import memory_plan

D, LAYERS, FFN = 4096, 32, 11008


@pytest.fixture(scope="module")
def counted():
    return memory_plan.count("pretrain")


def test_weights_of_the_paper(counted):
    layer = 4 * D**2 + 3 * D * FFN + 2 * D
    # Tables and heads of text, vision (with two ends) and latent actions (with one end), and the last norm.
    rest = 2 * D * (32000 + 8194 + 9) + D
    assert (counted.layer, counted.rest, counted.weights) == (layer, rest, LAYERS * layer + rest)
    assert counted.batch == 320 and counted.tokens == 32 + 3 * 257 + 3 + 4 + 14 * 17 + 6


def test_what_a_layer_keeps(counted):
    inputs = LAYERS * counted.tokens * D * 2
    # Beside the layers' inputs: mask, rotary table, logits of 257 vision codes in float32 and their softmax.
    assert inputs < counted.saved < 1.3 * inputs
    # Computed again: at least queries, keys, values, output, gate, up and their product.
    assert counted.again > counted.tokens * (4 * D + 3 * FFN) * 2


def test_bytes_are_what_autograd_keeps():
    """y = relu(x W) keeps x for W's gradient and y for the relu's; the weight is the model's own."""
    model = torch.nn.Linear(8, 16, bias=False)
    x = torch.zeros(4, 8)
    assert memory_plan.kept_bytes(lambda: model(x).relu().sum(), model) == 4 * (4 * 8 + 4 * 16)


def test_the_table(counted, capsys, tmp_path):
    rows = {n: memory_plan.plan(counted, n) for n in memory_plan.GPUS}
    assert rows[1]["state"] == pytest.approx(16 * counted.weights / 1e9) and rows[1]["batch"] == 0
    assert rows[8]["state"] == pytest.approx(rows[1]["state"] / 8)
    for n, r in rows.items():
        assert r["state"] + r["gathered"] + r["batch"] * r["observation"] <= 80 - memory_plan.RESERVED or not r["batch"]
        assert not r["batch"] or n * r["batch"] * r["passes"] == counted.batch
        assert r["batch"] <= r["fit"]
    assert memory_plan.plan(counted, 1, 141.0)["batch"] > 0, "one H200 holds it"
    memory_plan.main("finetune", json_path=str(tmp_path / "plan.json"))
    said = capsys.readouterr().out.splitlines()
    assert max(map(len, said)) <= 80 and len(said) == 3 + len(memory_plan.GPUS) and "none" in said[3]
    with pytest.raises(ConfigError, match="choose pretrain or finetune"):
        memory_plan.count("latent")
