"""What a benchmark says of the machine and of itself."""

import subprocess
import sys

from vipra_ros.machine import peak_mb


def test_the_peak_of_a_child_is_its_own():
    """Linux hands ru_maxrss on to what is started: a small child of a large parent would count as large."""
    much = bytearray(200 << 20)
    much[::4096] = b"x" * len(much[::4096])
    assert peak_mb() > 200
    code = "from vipra_ros.machine import peak_mb; print(peak_mb())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 1 < float(said) < 100
