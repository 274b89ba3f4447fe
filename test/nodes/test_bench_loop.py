"""`vipra bench loop` through real nodes for a few seconds: what it hears, and that its figures are of one run."""

import json

import pytest

pytest.importorskip("rclpy")

from vipra_ros.nodes import bench_loop
from vipra_ros.policy.checkpoint import Checkpoint
from vipra_ros.policy.shipped import resolve


def test_a_copy_looks_at_both_cameras_and_has_the_rate(tmp_path):
    config = Checkpoint.load(bench_loop.at_rate(resolve("models/tiny"), tmp_path / "copy", 22.0)).config
    assert (config.rate, config.cameras, config.policy.cameras) == (22.0, ("front", "wrist"), 2)


def test_every_message_of_the_loop_is_timed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_loop, "WARM", 2.0)
    monkeypatch.setattr(bench_loop, "SCENE", 3.0)
    bench_loop.run(rates=[15.0], seconds=4.0, json_path=str(tmp_path / "loop.json"))
    assert "from chunk to chunk" in (said := capsys.readouterr().out)
    assert all(len(line) <= 80 for line in said.splitlines())
    found = json.loads((tmp_path / "loop.json").read_text())["rates"]["15"]
    assert found["n"] > 3 and found["accepted"] > 3
    for name, values in found.items():
        if name.endswith("_ms") and isinstance(values, list):
            assert len(values) == 3 and values == sorted(values) and 0 < values[2] < 20_000, name
    # A chunk is heard after it was sent, and was sent after it was inferred.
    assert found["stamp_to_heard_ms"][0] > found["inference_ms"][0]
    assert {"sim", "policy", "executor", "controller"} <= set(found["cpu"])
