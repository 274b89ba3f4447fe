"""`vipra bench loop` through real nodes for a few seconds: what it hears, and that its figures are of one run."""

import json
import math

import numpy as np
import pytest

pytest.importorskip("rclpy")

from builtin_interfaces.msg import Time
from std_msgs.msg import Header
from vipra_ros.msg import ExecutorStatus

from vipra_ros.nodes import bench_loop
from vipra_ros.nodes.bench_control import Driver, over
from vipra_ros.nodes.quality import LATCHED
from vipra_ros.nodes.spinner import Spinner, lone_node
from vipra_ros.policy.checkpoint import Checkpoint
from vipra_ros.policy.shipped import resolve


def test_a_copy_looks_at_both_cameras_and_has_the_rate(tmp_path):
    config = Checkpoint.load(bench_loop.at_rate(resolve("models/tiny"), tmp_path / "copy", 22.0)).config
    assert (config.rate, config.cameras, config.policy.cameras) == (22.0, ("front", "wrist"), 2)


def test_chunks_count_from_arming_to_the_end_of_their_episode():
    """Those made while the arm goes home do not, and the way home is no gap."""
    chunks = [(1e9 * t, 1e9 * t + 5e7, 1.0) for t in (10.5, 11.0, 11.5, 13.0, 20.2, 21.9, 23.0)]
    first, second = bench_loop.within(chunks, [(10.4, 12.0), (20.0, 22.0)])
    assert (1e-9 * first[:, 0]).tolist() == [10.5, 11.0, 11.5]
    assert np.diff(second[:, 1]) == pytest.approx([1.7e9])  # a stall of more than a second is one
    assert [len(x) for x in bench_loop.within([], [(0.0, 1.0)])] == [0]


def test_figures_of_the_executor_are_of_the_whole_interval():
    def status(t, accepted, state=ExecutorStatus.RUNNING, **fields):
        stamp = Time(sec=int(t), nanosec=round(t % 1 * 1e9))
        return ExecutorStatus(header=Header(stamp=stamp), accepted=accepted, state=state, **fields)

    said = [status(99.0, 3, boundary_step=9.0), status(100.5, 4, boundary_step=math.nan, stall_fraction=1.0),
            status(101.0, 5, boundary_step=0.3), status(101.1, 5, boundary_step=0.3),
            status(106.0, 6, boundary_step=0.1, stall_fraction=0.5, action_rate=20.0),
            status(107.0, 6, state=ExecutorStatus.HOLD, stall_fraction=1.0), status(109.0, 6, action_rate=22.0),
            status(111.0, 7, boundary_step=8.0, stall_fraction=1.0)]
    found = over(said, [(100.0, 110.0)])
    assert (found["statuses"], found["stall_fraction"], found["stall_fraction_worst"]) == (2, 0.25, 0.5)
    assert found["action_rate"] == 21.0
    assert (found["boundaries"], found["boundary_mean"], found["boundary_max"]) == (2, 0.2, 0.3)
    assert over(said, [(110.5, 112.0)])["stall_fraction"] is None  # no window lies in it


def test_every_message_of_the_loop_is_timed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_loop, "WARM", 2.0)
    monkeypatch.setattr(bench_loop, "SCENE", 5.0)
    bench_loop.run(rates=[15.0], seconds=4.0, json_path=str(tmp_path / "loop.json"))
    assert "from chunk to chunk" in (said := capsys.readouterr().out)
    assert all(len(line) <= 80 for line in said.splitlines())
    found = json.loads((tmp_path / "loop.json").read_text())["rates"]["15"]
    # A starved machine makes few; the gap from one episode to the next is none of them.
    assert found["chunks"] > 1 and found["accepted"] > 0
    assert found["chunks"] - found["scenes"] <= found["n"]["cadence_ms"] < found["chunks"]
    for name, values in found.items():
        if name.endswith("_ms") and isinstance(values, list):
            assert len(values) == 3 and values == sorted(values) and 0 <= values[2] < 20_000, name
            assert found["n"][name] > 0, name
    # A chunk is heard after it was sent, and was sent after it was inferred.
    assert found["stamp_to_heard_ms"][0] > found["stamp_to_chunk_ms"][0] > found["inference_last_64_ms"][0]
    assert {"sim", "policy", "executor", "controller"} <= set(found["cpu"])


def test_the_bench_of_the_loop_hears_every_status(unused_ros_domain):
    driver = Driver(unused_ros_domain)
    node = lone_node("executor", unused_ros_domain)
    out = node.create_publisher(ExecutorStatus, "executor/status", LATCHED)
    try:
        assert driver.status is None
        for accepted in (1, 2):
            out.publish(ExecutorStatus(accepted=accepted))
            driver.until(lambda n=accepted: driver.status and driver.status.accepted == n, 20.0, "status")
        assert [s.accepted for s in driver.statuses] == [1, 2]
    finally:
        driver.close()
        Spinner(node).close()
