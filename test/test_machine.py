"""What figures say of the machine and of the process that measured them."""

import subprocess
import sys

import numpy as np

from vipra_ros.machine import peak_memory


def test_the_peak_of_a_process_is_its_own_and_not_its_parent_s():
    code = "from vipra_ros.machine import peak_memory as p; print(p()); b = bytearray(60 << 20); print(p())"
    alone = np.ones(40 << 20)  # 320 MB of ours
    before, after = map(float, subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert peak_memory() > 300 and before < 200
    assert 55 < after - before < 80
    del alone
