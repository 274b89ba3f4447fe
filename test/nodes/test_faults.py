"""The fault table's own machinery on three of its faults: simulated controller, executor and policy as processes."""

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("franky")
pytest.importorskip("franky_sim")
pytest.importorskip("vipra_ros.msg", reason="messages are not built; run make setup")

from vipra_ros.config import ConfigError
from vipra_ros.nodes import faults


def test_a_real_arm_is_never_meant():
    with pytest.raises(ConfigError, match="add --sim"):
        faults.run(sim=False)


def test_a_killed_policy_and_a_dead_controller_end_in_the_state_they_should(tmp_path, unused_ros_domain):
    with faults.Bench(tmp_path) as bench:
        row = bench.measure("policy SIGKILL", bench.policy.kill, "start it", ("ARMED",), seconds=3.0)
        assert row.as_expected and "no acceptable chunk" in row.reason, row
        assert row.stopped is not None and row.stopped < row.detected + 500, row
        bench.start_policy()
        row = bench.measure("nothing", lambda: None, "", ("RUNNING",), seconds=1.0)
        assert row.as_expected and row.stopped is None, row
        row = bench.measure("controller", lambda: bench.server.__exit__(None, None, None), "", ("FAULT",), seconds=3.0)
        assert row.as_expected and row.detected is not None, row
        found = lambda: list((tmp_path / "incidents").glob("incident-*/metadata.yaml"))  # noqa: E731
        bench.until(found, 20.0, "the incident")
