"""The policy on another address drives the simulated arm; its server hangs, dies and comes back in the middle.

All of it real: `vipra serve` as a process on 127.0.0.23, `vipra up policy robot:=sim engine:=remote`, an operator.
What is asserted is the order of the executor's states; how long a busy machine takes for each is not.
"""

import os
import re
import signal
import socket
import subprocess
import sys

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("vipra_ros.msg", reason="messages are not built; run make setup")

from vipra_ros.msg import ExecutorStatus, PolicyStatus

from vipra_ros.nodes.session import Session
from vipra_ros.nodes.system import System

HOST = "127.0.0.23"
#: s for what waits for other processes of a busy machine.
LONG = 120.0


class Served:
    """`vipra serve`, at the same address and port every time."""

    def __init__(self, checkpoint):
        with socket.create_server((HOST, 0)) as free:
            self.port = free.getsockname()[1]
        self.uri = f"ws://{HOST}:{self.port}"
        words = ["serve", str(checkpoint), "--host", HOST, "--port", str(self.port), "--threads", "1"]
        self._command = [sys.executable, "-m", "vipra_ros.cli", *words]

    def __enter__(self):
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        return self

    def __exit__(self, *exc):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def run(micro_checkpoint, unused_ros_domain, tmp_path):
    """(session, served, the executor's states and reasons as they changed): the arm moves by chunks of the server."""
    states = []

    def note(status):
        if not states or states[-1][0] != status.state_text:
            states.append((status.state_text, "; ".join(status.reasons)))

    assert os.environ["ROS_DOMAIN_ID"] == str(unused_ros_domain)
    served = Served(micro_checkpoint)
    with served, System(log=tmp_path / "system.log", engine="remote", server=served.uri) as system:
        session = Session(system.domain, system.check, on_status=note)
        try:
            session.wait_ready()
            session.home()
            session.instruct("reach above the red cube")
            session.arm()
            follows(session)
            del states[:-1]
            yield session, served, states
        finally:
            session.close()


def follows(session, chunks=2):
    """Wait until the executor runs, and has taken `chunks` more."""
    until = session.executor_status.accepted + chunks
    session.until(
        lambda: session.executor_status.state == ExecutorStatus.RUNNING and session.executor_status.accepted >= until,
        LONG, "the arm following the server",
    )  # fmt: skip


def misses(session):
    """Wait for the policy node to name the server that does not answer."""
    session.until(
        lambda: session.policy_status.state == PolicyStatus.WAITING
        and any(HOST in reason for reason in session.policy_status.reasons),
        LONG, "the word of the policy node on the server",
    )  # fmt: skip


def stalls(session, seen, since):
    """Wait for the executor's own watchdog, after the first `since` of the states `seen`."""
    session.until(lambda: any(name == "ARMED" for name, _ in seen[since:]), LONG, "the stop of the watchdog")
    reasons = next(why for name, why in seen[since:] if name == "ARMED")
    assert re.search(r"no acceptable chunk for|newest observation is", reasons), reasons


def test_the_server_dies_and_comes_back_and_the_operator_continues(run):
    session, served, states = run
    assert session.policy_status.engine == f"remote {served.uri}"

    served.__exit__()  # SIGKILL in the middle of a motion
    misses(session)
    served.__enter__()
    stalls(session, states, 1)
    follows(session)  # ARMED is ready for the next good chunk: nobody has to do anything

    count = len(states)
    served.process.send_signal(signal.SIGSTOP)  # connected, and silent
    stalls(session, states, count)
    misses(session)
    session.call("stop")
    session.until(lambda: session.executor_status.state == ExecutorStatus.IDLE, LONG, "the operator's stop")
    served.process.send_signal(signal.SIGCONT)
    session.until(lambda: session.policy_status.state == PolicyStatus.PAUSED, LONG, "a policy that waits for the arm")
    assert session.executor_status.state == ExecutorStatus.IDLE  # a server that is back moves no arm that was stopped
    session.arm()
    follows(session)

    wanted = iter(("RUNNING", "ARMED", "RUNNING", "ARMED", "IDLE", "RUNNING"))
    missing = next(wanted)
    names = [name for name, _ in states]
    for state in names:
        if state == missing:
            missing = next(wanted, "")
    assert not missing, f"no {missing} at its place in {names}"
    assert "FAULT" not in names and "HOLD" not in names
