"""The fault table is for the simulated arm alone; two rows of it."""

import json
import time

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("franky")
pytest.importorskip("franky_sim")
pytest.importorskip("vipra_ros.msg", reason="messages are not built; run make setup")

from vipra_ros.msg import ExecutorStatus, PolicyStatus

from vipra_ros.config import ConfigError
from vipra_ros.control.profile import load_profile
from vipra_ros.nodes import fault_bench, faults


def test_a_real_arm_is_never_meant():
    with pytest.raises(ConfigError, match="add --sim"):
        faults.run(sim=False)


def test_a_word_that_names_no_fault():
    with pytest.raises(ConfigError, match="names no fault"):
        faults.run(sim=True, only="nonsense")


def test_rows_that_need_no_restart(tmp_path, unused_ros_domain):
    """NaN is refused, a publisher that cannot be heard is named; the arm stops and goes on by itself."""
    faults.run(sim=True, only="NaN,quality", json_path=str(tmp_path / "rows.json"))
    found = json.loads((tmp_path / "rows.json").read_text())
    nan, quality = found["rows"]
    assert found["machine"]["cores"] > 0
    assert "not finite" in nan["reason"] and "quality of service" in quality["reason"]
    for row in (nan, quality):
        assert row["as_expected"] and row["state"] == "ARMED" and row["by"] == "itself", row
        assert row["detected"] < 3000 and row["stopped"] < 5000 and row["samples"] > 50 and row["outside"] == 0, row


class Bench(fault_bench.Bench):
    """Without processes: its arm moves, stands while the fault lasts, and moves when it is over."""

    def __init__(self):
        self.statuses, self.policies, self.commands = [], [(0.0, PolicyStatus())], []
        self.profile = load_profile("fr3")
        self._clear()

    def command(self, speed, since=0.0):
        self.commands += [(time.monotonic() + k / 100 - since, np.zeros(7), np.full(7, speed)) for k in range(50)]

    def hear(self, *reasons):
        self.statuses.append((time.monotonic(), ExecutorStatus(state_text="ARMED", reasons=reasons)))

    def run(self, seconds=0.0, operator=True):
        self.hear()
        self.command(0.1)


def measured(inject, **changes):
    bench = Bench()
    bench._outside = lambda q, dq: False
    return bench.measure(fault_bench.Fault("x", inject, "ARMED", **{"seconds": 0.0, **changes}))


def stands(bench):
    bench.began -= 2.0  # of which the arm stood more than one
    bench.commands.clear()
    bench.command(0.0, since=1.5)
    bench.hear("no chunk; look")


def test_how_long_a_mended_arm_takes_to_move_again():
    """From the mending inside the injection too; of an arm that was not mended or moved all along there is nothing."""
    def stands_and_is_mended(bench):
        stands(bench)
        bench.mended = time.monotonic() - 0.8
        bench.command(0.1, since=0.3)

    assert measured(stands, mend=lambda b: None).again == pytest.approx(0.0, abs=0.2)
    assert measured(stands_and_is_mended).again == pytest.approx(0.5, abs=0.05)
    assert measured(stands).again is None
    moves = measured(lambda b: b.command(0.1, since=0.5), mend=lambda b: None)
    assert (moves.again, moves.by) == (None, "")


def test_what_was_not_heard_was_not_detected():
    def speaks(bench):
        stands(bench)
        bench.remarks.append("no chunk, seen by the injection itself")

    row = measured(speaks)
    assert row.detected is None and "seen by the injection" in row.reason
    assert measured(speaks, says="no chunk").detected == pytest.approx(2000, abs=100)
    assert measured(lambda b: b.remarks.append("no chunk"), says="no chunk").detected is None
