"""The whole system once: simulated controller, franky, executor and policy node, driven by a session."""

import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy")

from vipra_ros.msg import ExecutorStatus

from vipra_ros.nodes import session as sessions
from vipra_ros.nodes.session import Session
from vipra_ros.nodes.system import SessionError, System, own_domain
from vipra_ros.sim import scene, tasks


def test_an_episode_through_the_real_nodes(micro_checkpoint, unused_ros_domain, tmp_path):
    assert os.environ["ROS_DOMAIN_ID"] == str(unused_ros_domain)
    images = []
    with System(micro_checkpoint, log=tmp_path / "system.log") as system:
        session = Session(system.domain, system.check, lambda camera, stamp, jpeg: images.append(camera))
        try:
            session.wait_ready()
            trace = session.episode("reach", 1234, seconds=2.5)
            record, goal = trace.record, tasks.sample_start("reach", 1234).goal
            assert session.outcome["seed"] == 1234 and record.instruction == goal.instruction
            assert {"front", "wrist"} == set(images)
            # the policy that stays at home held the arm there: chunks were taken, nothing stopped
            assert record.stopped == "" and record.chunks - record.rejected >= 3, session.seen()
            assert all(c[0] < c[1] < c[0] + 1.0 for c in trace.chunks)
            assert session.chunk.instruction == goal.instruction and record.rows > 10
            times, q, _ = (np.array(c) for c in zip(*trace.measured))
            assert np.abs(q - scene.HOME).max() < 0.1
            assert len(times) > 30  # 2.5 s at 100 Hz, less what a busy machine delivers late
            assert len(record.commanded) > 30
            with pytest.raises(SessionError, match="sim/reset: task 'juggle' is unknown"):
                session.reset("juggle", 1)
        finally:
            session.close()
    with pytest.raises(SessionError, match="the system ended with status"):
        system.check()
    with pytest.raises(ProcessLookupError):
        os.killpg(system.pid, 0)


def test_a_system_that_cannot_start_says_why(unused_ros_domain, tmp_path):
    with System("/none/such", log=tmp_path / "system.log", task="push") as system:
        session = Session(system.domain, system.check)
        try:
            with pytest.raises(SessionError, match="the system ended with status 1: vipra: .*none/such"):
                session.wait_ready(seconds=60.0)
        finally:
            session.close()


OTHER = """
import sys
from std_srvs.srv import Trigger
from vipra_ros.nodes.spinner import lone_node

node = lone_node("executor", int(sys.argv[1]), "left")
node.create_service(Trigger, "executor/arm", lambda request, response: response)
print("there", flush=True)
sys.stdin.read()
"""


def test_a_simulated_run_goes_nowhere_near_another_executor(monkeypatch, unused_ros_domain):
    """A service request reaches every server of its name: `executor/arm` would arm an arm of metal too."""
    domain = unused_ros_domain + 1
    monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
    assert own_domain() == domain  # nobody is there
    other = subprocess.Popen([sys.executable, "-c", OTHER, str(domain)], text=True, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        with pytest.raises(SessionError, match=f"an executor is in ROS domain {domain}.*unset ROS_DOMAIN_ID"):
            System("models/tiny")
        monkeypatch.delenv("ROS_DOMAIN_ID")
        assert 1 <= own_domain() <= 100 and os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    finally:
        other.kill()
        other.wait()


KILLED = """
import os, signal, sys
from vipra_ros.nodes.system import System

with System(system="sim", log=sys.argv[1]) as system:
    print(system.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_system_ends_when_whoever_started_it_is_killed(unused_ros_domain, tmp_path):
    said = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "system.log")], capture_output=True, text=True)
    pid, end = int(said.stdout), time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists(), (tmp_path / "system.log").read_text()


def test_a_system_that_ended_says_the_reason_of_its_node(tmp_path):
    system = System("nothing", log=tmp_path / "system.log")
    system._process = SimpleNamespace(poll=lambda: 1)
    system.log.write_text("[policy-2] [INFO] [1.0] [policy]: WAITING: camera front: no frame yet\n"
                          "[executor-1] executor: no arm at 172.16.0.2; activate FCI\n"
                          "[ERROR] [executor-1]: process has died [pid 5, exit code 1]\n"
                          "[INFO] [policy-2]: process has finished [pid 4, exit code 0]\n")
    with pytest.raises(SessionError, match=r"^executor-1 ended: executor: no arm at 172.16.0.2; activate"):
        system.check()


class Alone(Session):
    """A session without nodes, with an executor of one state; the scene succeeds only when the arm is told to stop."""

    def __init__(self, state=ExecutorStatus.IDLE):
        self.outcome, self.trace, self.finger = {}, None, 0.04
        self.executor_status, self.policy_status, self._alive = ExecutorStatus(state=state), None, lambda: None
        self.reset = lambda task, seed: "words"
        self._lock = self.node = nullcontext()
        self.home = self.instruct = self.arm = lambda *_: None

    now = property(lambda self: time.monotonic())

    def call(self, name):
        self.outcome = {"success": True, "acted_on": "red"}


def test_a_success_after_the_limit_is_none():
    record = Alone().episode("reach", 1, seconds=0.05).record
    assert not record.success and record.acted_on is None and np.isnan(record.time_to_success)


def test_an_arm_that_faults_while_it_stops_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(sessions, "HOME_TIMEOUT", 0.1)
    Alone(ExecutorStatus.FAULT).halt()
    with pytest.raises(SessionError, match="a stop did not happen"):
        Alone(ExecutorStatus.RUNNING).halt()


def test_a_hand_that_stays_closed_says_what_opens_it(monkeypatch):
    monkeypatch.setattr(sessions, "HAND_TIMEOUT", 0.05)
    alone = Alone()
    alone.finger = 0.0
    with pytest.raises(SessionError, match="home_gripper: open in params_file"):
        alone.open_hand()
