"""`vipra gello emulate` as a process of its own, with our driver at its port."""

import contextlib
import os
import subprocess
import sys
import time

import pytest

pytest.importorskip("dynamixel_sdk")

from vipra_ros.config import ConfigError, share
from vipra_ros.control.profile import load_profile
from vipra_ros.teleop.bus import BusError, ServoBus
from vipra_ros.teleop.emulate import emulated
from vipra_ros.teleop.emulator import apply, schedule
from vipra_ros.teleop.gello import Tracker, load_gello
from vipra_ros.teleop.motions import motion

PROFILE, CONFIG = load_profile("fr3"), load_gello(share("config", "gello.yaml"))


def wait(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_faults_come_and_go_by_words(tmp_path):
    port = str(tmp_path / "port")
    command = [sys.executable, "-m", "vipra_ros.cli", "gello", "emulate", "--motion", "home", "--port", port]
    process = subprocess.Popen([*command, "--fault", "missing 3"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True, bufsize=1, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        while "missing 3: done" not in process.stdout.readline():
            pass
        bus = ServoBus(port, CONFIG.servo_ids, patience=1.5)
        with pytest.raises(BusError, match="no answer from servo 3"):
            bus.open()

        def say(words, answer):
            process.stdin.write(words + "\n")
            assert answer in process.stdout.readline()

        say("ok", "ok: done")
        with contextlib.suppress(BusError), bus:  # closing an unplugged port raises, after everything was seen
            q, opening = Tracker(CONFIG, PROFILE.q_min, PROFILE.q_max).update(bus.read().ticks)
            assert q == pytest.approx(PROFILE.home_q, abs=0.002) and opening == pytest.approx(1.0, abs=1e-3)
            for words, said in (("spoilt 5", "spoilt answer from servo 5"), ("overheated 2", "servo 2 .*let it cool")):
                say(words, f"{words}: done")
                with pytest.raises(BusError, match=said):
                    bus.read()
                say("ok", "done")
            say("dance", "'dance' is not understood; missing N")
            say("missing 9", "the servos are 1, 2, 3")
            say("unplug", "done")
            with pytest.raises(BusError) as gone:
                bus.read()
            seen = gone.value
        assert seen.gone
    finally:
        process.stdin.close()
        process.send_signal(2)
        process.wait(10)
    assert process.returncode == 0 and not os.path.lexists(port)


def test_the_expert_begins_at_a_word(tmp_path):
    port = str(tmp_path / "port")
    command = [sys.executable, "-m", "vipra_ros.cli", "gello", "emulate", "--motion", "reach", "--port", port]
    process = subprocess.Popen([*command, "--seed", "3"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        wait(lambda: os.path.exists(port))
        with ServoBus(port, CONFIG.servo_ids, patience=1.5) as bus:
            before = bus.read().ticks
            process.stdin.write("go\n")
            process.stdin.flush()
            wait(lambda: abs(bus.read().ticks - before).max() > 100)
    finally:
        process.send_signal(2)
        assert "go: " in process.communicate(timeout=10)[0]


def test_words_and_their_times():
    with emulated(CONFIG, motion("home", PROFILE.home_q)) as servos:
        coming = schedule(servos, ["3 plug", "1.5  unplug", "missing 2"])
        assert coming == [(0.0, "missing 2"), (1.5, "unplug"), (3.0, "plug")] and not servos.faults.missing
        for words, said in (("5", "'5' does not say what happens"), ("", "'' does not say"), ("delay x", "not under"),
                            ("20 unplg", "'unplg' is not understood"), ("missing 9", "the servos are 1, 2")):
            with pytest.raises(ConfigError, match=said):
                schedule(servos, [words])
        for words in ("delay 0.01", "garbage", "overloaded 8", "power"):
            assert apply(servos, words) == f"{words}: done"
        assert servos.faults.delay == 0.01 and servos.faults.alerts == {8: 0x20} and servos.faults.garbage
        for words in ("delay", "missing x", "ok ok"):
            with pytest.raises(ConfigError, match="is not understood"):
                apply(servos, words)
