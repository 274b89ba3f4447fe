"""What keeps the processors busy while stops are timed, and what becomes of an executor nobody can talk to."""

import os
import subprocess
import sys
import time

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("vipra_ros.msg", reason="messages are not built; run make setup")

from vipra_ros.nodes import bench_stop


def test_processors_are_busy_or_it_is_said(monkeypatch):
    with bench_stop.busy(True):
        pass  # it has said that it computes
    with bench_stop.busy(False):
        pass
    monkeypatch.setattr(bench_stop, "BUSY", "import no_such_module")
    with pytest.raises(RuntimeError, match="nothing was busy"), bench_stop.busy(True):
        raise AssertionError("measured beside nothing")
    monkeypatch.setattr(bench_stop, "BUSY", "print('ready', flush=True); input()")
    with pytest.raises(RuntimeError, match="nothing was busy"), bench_stop.busy(True) as load:
        load.kill()
        load.wait()


def test_an_executor_does_not_outlive_a_bench_that_cannot_begin(monkeypatch, unused_ros_domain):
    left = []

    def fails(self, domain):
        left.append(self._process.pid)
        raise ValueError("no node")

    monkeypatch.setattr(bench_stop.Stopper, "_connect", fails)
    with pytest.raises(ValueError, match="no node"):
        bench_stop.Stopper(1.0)
    with pytest.raises(ProcessLookupError):
        os.kill(left[0], 0)


def test_an_executor_does_not_outlive_a_killed_bench(unused_ros_domain):
    code = """
import os
from vipra_ros.nodes.bench_stop import Stopper
def killed(self, domain):
    print(self._process.pid, flush=True)
    os.kill(os.getpid(), 9)
Stopper._connect = killed
Stopper(1.0)
"""
    pid = int(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True).stdout)
    end = time.monotonic() + 60.0
    while _runs(pid):
        assert time.monotonic() < end
        time.sleep(0.05)


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
