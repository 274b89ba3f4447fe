"""`vipra up`: real processes started, watched and ended together."""

import functools
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest

#: Says its name and then sleeps; `stubborn` ignores SIGINT, a number ends by itself with that status.
CHILD = """
import signal, sys, time
sys.stdout.reconfigure(errors="replace")
print("here is", sys.argv[1], "pid", __import__("os").getpid(), flush=True)
if sys.argv[2] == "stubborn":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
try:
    time.sleep(60 if sys.argv[2] in ("calm", "stubborn") else 0.5)
except KeyboardInterrupt:
    sys.exit(0)
sys.exit(int(sys.argv[2]))
"""


class Run:
    """A `System` of dummy processes in a process of its own."""

    def __init__(self, folder, processes, required, finishing, commands, pipe):
        child = folder / "child.py"
        child.write_text(CHILD)
        code = textwrap.dedent(f"""
            import shlex, sys
            from vipra_ros.up import System
            system = System({required!r}, {finishing!r}, {commands!r})
            for name, manner in {processes!r}:
                system.add_process(name, shlex.join(["exec", sys.executable, {str(child)!r}, name, manner]))
            sys.exit(system.run())
        """)
        self.log = folder / "log.txt"
        self.names = [name for name, _ in processes]
        with self.log.open("w") as out:
            self.reader = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=out) if pipe else None
            into = self.reader.stdin if pipe else out
            self.process = subprocess.Popen([sys.executable, "-c", code], stdout=into, stderr=out)
        if pipe:
            into.close()

    def wait_for(self, text, seconds=20.0):
        until = time.monotonic() + seconds
        while text not in self.log.read_text():
            assert time.monotonic() < until and self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    def wait_started(self):
        for name in self.names:
            self.wait_for(f"[{name}] here is {name} pid")

    def pid(self, name):
        return int(self.log.read_text().split(f"here is {name} pid ")[1].split()[0])

    def left(self):
        """The processes that still run."""
        return [name for name in self.names if f"here is {name} pid" in self.log.read_text()
                and os.path.exists(f"/proc/{self.pid(name)}/cmdline")]


@pytest.fixture
def run(tmp_path):
    runs = []

    def start(processes, required=(), finishing=(), commands=False, pipe=False):
        runs.append(Run(tmp_path, processes, required, finishing, commands, pipe))
        return runs[-1]

    yield start
    for r in runs:
        if r.process.poll() is None:
            r.process.kill()
        for name in r.left():
            os.kill(r.pid(name), signal.SIGKILL)


def test_ctrl_c_ends_all_within_three_seconds_even_a_stubborn_one(run):
    r = run([("executor-1", "calm"), ("policy-2", "stubborn")], ["executor-1"])
    r.wait_started()
    began = time.monotonic()
    r.process.send_signal(signal.SIGINT)
    assert r.process.wait(timeout=10) == 130
    assert time.monotonic() - began < 3.0
    assert r.left() == []
    text = r.log.read_text()
    assert "[INFO] [executor-1]: process started with pid [" in text
    assert "[INFO] [executor-1]: process has finished" in text
    assert "[WARNING] [policy-2]: still runs 2.0 s after SIGINT: sending SIGKILL" in text


def test_ctrl_z_ends_all_and_freezes_nothing(run):
    r = run([("executor-1", "calm"), ("policy-2", "calm")], ["executor-1"])
    r.wait_started()
    for task in os.listdir(f"/proc/{r.process.pid}/task"):  # the terminal signals the readers, too
        for child in open(f"/proc/{r.process.pid}/task/{task}/children").read().split():
            os.kill(int(child), signal.SIGTSTP)
    r.process.send_signal(signal.SIGTSTP)
    r.process.wait(timeout=10)
    assert r.left() == []
    text = r.log.read_text()
    assert "SIGTSTP: ending all processes" in text and text.count("process has finished") == 2


def test_a_process_that_begins_after_ctrl_c_gets_it_too():
    from vipra_ros.up import System

    # What runs in the background of a script inherits that SIGINT is ignored.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    late, system = subprocess.Popen(["sleep", "60"], start_new_session=True, preexec_fn=listen), System([])
    system._terminating, system._processes = True, {"late-1": {"pid": late.pid}}
    system._system_print(f"late-1 started (pid={late.pid})\n")
    try:
        assert late.wait(timeout=5) == -signal.SIGINT
    finally:
        late.kill()


def test_ctrl_c_while_processes_still_start(run):
    r = run([(f"a-{i}", "calm") for i in range(4)])
    r.wait_for("process started")
    r.process.send_signal(signal.SIGINT)
    assert r.process.wait(timeout=10) == 130
    time.sleep(0.1)
    assert r.left() == []


def test_the_end_of_a_needed_process_ends_the_system(run):
    r = run([("executor-1", "calm"), ("policy-2", "calm")], ["executor-1"])
    r.wait_started()
    os.kill(r.pid("executor-1"), signal.SIGKILL)
    began = time.monotonic()
    assert r.process.wait(timeout=10) == 128 + signal.SIGKILL
    assert time.monotonic() - began < 3.0 and r.left() == []
    assert "[ERROR] [executor-1]: process has died" in r.log.read_text()
    assert "the system needs executor-1" in r.log.read_text()


def test_a_needed_process_that_ends_well_is_still_the_end(run):
    r = run([("sim-1", "0"), ("executor-2", "calm")], ["sim-1", "executor-2"])
    assert r.process.wait(timeout=20) == 1 and r.left() == []


@pytest.mark.parametrize("status", [0, 1])
def test_when_the_job_is_done_all_end_with_its_status(run, status):
    r = run([("executor-1", "calm"), ("demonstrator-2", str(status))], ["executor-1"], ["demonstrator-2"])
    assert r.process.wait(timeout=20) == status and r.left() == []
    assert "demonstrator-2 has done its work: ending all processes" in r.log.read_text()


@pytest.mark.parametrize("commands", [False, True])
def test_the_end_of_another_process_is_only_reported(run, commands):
    r = run([("executor-1", "calm"), ("policy-2", "3")], ["executor-1"], commands=commands)
    r.wait_for("[ERROR] [policy-2]: process has died")
    time.sleep(0.5)
    died = next(line for line in r.log.read_text().splitlines() if "has died" in line)
    assert died.endswith("exit code 3]") != commands and ("child.py" in died) == commands
    assert r.process.poll() is None and r.left() == ["executor-1"]
    r.process.send_signal(signal.SIGTERM)
    assert r.process.wait(timeout=10) == 143 and r.left() == []


def test_nothing_is_left_when_the_manager_itself_is_killed(run):
    r = run([("executor-1", "calm"), ("policy-2", "calm")], ["executor-1"])
    r.wait_started()
    r.process.kill()
    r.process.wait()
    until = time.monotonic() + 3.0
    while r.left() and time.monotonic() < until:
        time.sleep(0.05)
    assert r.left() == []


def test_a_reader_that_is_gone_keeps_nothing_from_ending(run):
    """`vipra up ... | tee log`, and Ctrl-C: the terminal ends tee too, and a print fails in the signal's handler."""
    r = run([("executor-1", "calm"), ("policy-2", "stubborn")], ["executor-1"], pipe=True)
    r.wait_started()
    r.reader.kill()
    r.reader.wait()
    r.process.send_signal(signal.SIGINT)
    assert r.process.wait(timeout=10) == 130
    assert r.left() == []


def test_a_word_that_the_terminal_cannot_show_ends_nothing(run, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    r = run([("ex\u00e9cutor-1", "calm")], ["ex\u00e9cutor-1"])
    time.sleep(2.0)
    assert r.process.poll() is None
    r.process.send_signal(signal.SIGINT)
    assert r.process.wait(timeout=10) == 130


def test_the_real_system_starts_and_ends(tmp_path):
    """`vipra up sim`: the simulated controller, the executor connected to it through franky, Ctrl-C."""
    for module in ("rclpy", "franky", "mujoco"):
        pytest.importorskip(module)
    host = f"127.1.{os.getpid() // 250 % 250}.{os.getpid() % 250 + 1}"
    log = tmp_path / "log.txt"
    environment = {**os.environ, "ROS_DOMAIN_ID": str(os.getpid() % 100 + 1),
                   "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}

    def started():
        return [int(pid) for pid in re.findall(r"process started with pid \[(\d+)\]", log.read_text())]

    with log.open("w") as out:
        up = subprocess.Popen([sys.executable, "-m", "vipra_ros.cli", "up", "sim", f"sim_host:={host}"],
                              stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        until = time.monotonic() + 60
        while f"connected to fr3 at {host}" not in log.read_text():
            assert time.monotonic() < until and up.poll() is None, log.read_text()
            time.sleep(0.1)
        began = time.monotonic()
        up.send_signal(signal.SIGINT)
        assert up.wait(timeout=20) == 130, log.read_text()
        assert time.monotonic() - began < 3.0
        assert len(started()) == 2 and not any(os.path.exists(f"/proc/{pid}") for pid in started())
        assert "[executor-2] [INFO]" in log.read_text()
    finally:
        if up.poll() is None:
            up.kill()
        for pid in started():
            if os.path.exists(f"/proc/{pid}"):
                os.killpg(pid, signal.SIGKILL)
