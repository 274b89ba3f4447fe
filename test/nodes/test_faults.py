"""The fault table is for the simulated arm alone."""

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
