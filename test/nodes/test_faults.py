"""The fault table is for the simulated arm alone; two rows of it."""

import json

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


def test_a_word_that_names_no_fault():
    with pytest.raises(ConfigError, match="names no fault"):
        faults.run(sim=True, only="nonsense")


def test_rows_that_need_no_restart(tmp_path, unused_ros_domain):
    """NaN is refused, a publisher that cannot be heard is named; the arm stops and goes on by itself."""
    faults.run(sim=True, only="NaN,quality", json_path=str(tmp_path / "rows.json"))
    nan, quality = json.loads((tmp_path / "rows.json").read_text())
    assert "not finite" in nan["reason"] and "quality of service" in quality["reason"]
    for row in (nan, quality):
        assert row["as_expected"] and row["state"] == "ARMED" and row["by"] == "itself", row
        assert row["detected"] < 3000 and row["stopped"] < 5000 and row["samples"] > 50 and row["outside"] == 0, row
