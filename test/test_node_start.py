"""A node that is told to end while it is still importing ends at once, and not as a crash."""

import os
import signal
import subprocess
import sys
import time

import pytest


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM))
@pytest.mark.parametrize("name", ("executor", "sim", "policy"))
def test_a_signal_during_the_imports(name, number, tmp_path, unused_ros_domain):
    pytest.importorskip("rclpy")
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "vipra_ros.cli", "node", name],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**os.environ, "ROS_DOMAIN_ID": str(unused_ros_domain)},
    )
    seen = []
    for line in process.stderr:  # one per import that has ended: rclpy's are the first after our own
        seen.append(line)
        if "rclpy" in line:
            break
    time.sleep(0.05)
    process.send_signal(number)
    _, rest = process.communicate(timeout=20)
    assert process.returncode == 0, rest[-2000:]
    assert "Traceback" not in rest
