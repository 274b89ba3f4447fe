"""One process an arm."""

import os
import subprocess
import sys

import pytest

from vipra_ros.robot.claim import Claim, Claimed

HOST = f"arm-of-{os.getpid()}"
HOLD = "import sys, time; from vipra_ros.robot.claim import Claim; c = Claim(sys.argv[1]); print(1, flush=True); " \
    "time.sleep(60)"


def test_the_second_is_refused_and_told_who_has_it():
    first = Claim(HOST)
    with pytest.raises(Claimed, match=f"process {os.getpid()} of this machine drives the arm at {HOST}; end it"):
        Claim(HOST)
    for _ in range(100):  # one that tries for half a minute is told by whom it is kept out, at the end too
        with pytest.raises(Claimed, match=f"process {os.getpid()} "):
            Claim(HOST)
    Claim(HOST + "b").release()  # another arm
    first.release()
    Claim(HOST).release()


def test_a_process_that_was_killed_gives_it_back():
    owner = subprocess.Popen([sys.executable, "-c", HOLD, HOST], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout.readline()
        with pytest.raises(Claimed, match=f"process {owner.pid} "):
            Claim(HOST)
    finally:
        owner.kill()
        owner.wait()
    Claim(HOST).release()
