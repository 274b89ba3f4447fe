"""In place of a person: demonstrates tasks in the simulated scene with an emulated leader arm.

It has what a person has: the leader in its hands, the arm and what gello and executor say about it before its
eyes, and the commands of recorder, executor and scene. Everything between is real: servo bus, gello node,
executor, arm. It ends after the last episode.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from vipra_ros.config import param, share
from vipra_ros.control.guard import State
from vipra_ros.control.profile import load_profile
from vipra_ros.msg import ExecutorStatus
from vipra_ros.nodes.parameters import declare
from vipra_ros.nodes.quality import LATCHED
from vipra_ros.nodes.run import serve
from vipra_ros.srv import ResetScene
from vipra_ros.teleop.demonstration import PERIOD, demonstrate
from vipra_ros.teleop.emulate import emulated
from vipra_ros.teleop.gello import load_gello
from vipra_ros.teleop.motions import Puppet

#: rad; where the leader lies before a person takes it: the arm must not move before it is brought to the arm.
LYING = np.array([0.25, -0.2, 0.0, 0.3, 0.0, 0.0, 0.3])
#: s for the start of the other nodes, for one of their answers, for an arm to stop or to come home.
START_TIMEOUT, ANSWER_TIMEOUT, STOP_TIMEOUT, HOME_TIMEOUT = 120.0, 10.0, 5.0, 25.0
#: s between aligned and the first move, after a success (staying there belongs to it), and for a success to show
#: after the last pose: the arm is behind.
BEFORE, AFTER_SUCCESS, PATIENCE = 0.5, 0.8, 2.0


@dataclass(frozen=True)
class DemonstratorSettings:
    """Parameters of the node."""

    com_port: str = param(doc="path at which the emulated leader's serial port is to appear")
    gello_config: str = param("", doc="YAML file of the leader arm; empty: the shipped config/gello.yaml")
    gello_arm: str = param("", doc="section of that file; empty: the one with our namespace, or the only one")
    profile: str = param("fr3", doc="robot profile of the follower")
    episodes: int = param(1, doc="demonstrations, each with the next seed of the scene", low=1)
    record: bool = param(True, doc="start and end a recording around each demonstration")


class Trouble(RuntimeError):
    """The demonstration cannot go on; one line with what was seen."""


class DemonstratorNode(Node):
    """See the module's text."""

    def __init__(self) -> None:
        super().__init__("demonstrator")
        self.settings = s = declare(self, DemonstratorSettings)
        self.profile = load_profile(s.profile)
        config = load_gello(s.gello_config or share("config", "gello.yaml"), s.gello_arm, self.get_namespace())
        self.leader = Puppet(np.clip(self.profile.home_q + LYING, self.profile.lower, self.profile.upper))
        self.servos = emulated(config, self.leader, s.com_port)
        self.failure: Exception | None = None
        self.successes = self.done = 0
        self._outcome: dict = {}
        self._gello: dict = {}
        self._executor: ExecutorStatus | None = None
        self._measured: np.ndarray | None = None
        self.create_subscription(String, "sim/outcome", self._on_outcome, LATCHED)
        self.create_subscription(String, "gello/status", self._on_gello, LATCHED)
        self.create_subscription(ExecutorStatus, "executor/status", self._on_executor, LATCHED)
        self.create_subscription(JointState, "joint_states", self._on_joints, qos_profile_sensor_data)
        names = [f"executor/{n}" for n in ("arm", "stop", "home", "recover")]
        names += [f"recorder/{n}" for n in ("start", "success", "failure")] * s.record
        self._triggers = {n: self.create_client(Trigger, n) for n in names}
        self._reset = self.create_client(ResetScene, "sim/reset")
        self._ending = threading.Event()
        self.finished = threading.Event()
        self._thread = threading.Thread(target=self._run, name="person", daemon=True)

    def __enter__(self) -> DemonstratorNode:
        self.servos.__enter__()
        self.get_logger().info(f"an emulated leader arm is at {self.servos.port}")
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ending.set()
        self._thread.join(timeout=2.0)
        self.servos.__exit__(*exc)

    # --- what it sees --------------------------------------------------------------------------------------

    def _on_outcome(self, message: String) -> None:
        self._outcome = json.loads(message.data)

    def _on_gello(self, message: String) -> None:
        self._gello = json.loads(message.data)

    def _on_executor(self, message: ExecutorStatus) -> None:
        self._executor = message

    def _on_joints(self, message: JointState) -> None:
        place = dict(zip(message.name, message.position))
        if all(n in place for n in self.profile.joint_names):
            self._measured = np.array([place[n] for n in self.profile.joint_names])

    def _in(self, *states: State) -> bool:
        return self._executor is not None and self._executor.state in states

    def _seen(self) -> str:
        status, gello = self._executor, self._gello.get("text", "not heard of")
        executor = f"{status.state_text} {'; '.join(status.reasons)}".strip() if status else "not heard of"
        return f"executor {executor}, gello {gello}"

    # --- what it does --------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._until(lambda: bool(self._outcome and self._gello and self._executor), START_TIMEOUT, "the start")
            task, seed = self._outcome["task"], int(self._outcome["seed"])
            for number in range(self.settings.episodes):
                if number:
                    self._lay_out(task, seed + number)
                self._episode(task, seed + number)
                self.done += 1
            self.get_logger().info(f"{self.successes} of {self.done} demonstrations succeeded")
        except Exception as error:
            if not self._ending.is_set():
                self.failure = error
        self.finished.set()

    def _episode(self, task: str, seed: int) -> None:
        """Take the leader to the arm, record, demonstrate, say how it went."""
        ready = (State.ARMED, State.RUNNING)
        self._until(lambda: self._in(*ready) and self._measured is not None, START_TIMEOUT, "an armed executor")
        self._until(lambda: self._gello["state"] in ("aligning", "following"), START_TIMEOUT, "the leader's readings")
        self._sleep(BEFORE)
        end = self.leader.go(self.servos.now, self._measured, opening=1.0)
        self._until(lambda: self.servos.now > end and self._gello["state"] == "following", ANSWER_TIMEOUT, "following")
        plan = demonstrate(self.profile, task, seed, self.leader(self.servos.now)[0])
        self.get_logger().info(f"demonstrates: {plan.instruction} ({plan.seconds:.1f} s, seed {seed})")
        if self.settings.record:
            self._call("recorder/start")
        self._sleep(BEFORE)
        begin = self.servos.now
        end = self.leader.play(begin, plan.rows, PERIOD)
        success, why = self._watch(end + PATIENCE)
        if self.settings.record:
            self._call(f"recorder/{'success' if success else 'failure'}")
        self.successes += success
        said = f"done in {self.servos.now - begin:.1f} s" if success else why
        lag = [f"{1e3 * self._gello[k]:.0f}" for k in ("lag_p50", "lag_p95") if self._gello.get(k)]
        self.get_logger().info(f"{plan.instruction}: {said}" + (f", lag {'/'.join(lag)} ms" if lag else ""))

    def _watch(self, end: float) -> tuple[bool, str]:
        """Until the scene says success and a moment longer, or `end`; success, or why not."""
        done = np.inf
        while self.servos.now < min(end, done + AFTER_SUCCESS):
            self._sleep(0.02)
            if self._outcome.get("success"):
                done = min(done, self.servos.now)
            if not self._in(State.RUNNING) or self._gello.get("state") != "following":
                return False, f"interrupted: {self._seen()}"
        return bool(self._outcome.get("success")), "not done: the scene does not say success"

    def _lay_out(self, task: str, seed: int) -> None:
        """Arm home, the next scene, arm ready again."""
        if self._in(State.FAULT):
            self._call("executor/recover")
        self._call("executor/stop")
        self._until(lambda: self._in(State.IDLE), STOP_TIMEOUT, "a stop")
        self.leader.go(self.servos.now, self.leader(self.servos.now)[0] + 0.5 * LYING, opening=1.0)
        self._insist("executor/home")
        self._until(lambda: self._in(State.IDLE) and self._executor.reasons
                    and "at home" in self._executor.reasons[-1], HOME_TIMEOUT, "the way home")
        answer = self._ask(self._reset, ResetScene.Request(task=task, seed=seed), "sim/reset")
        if not answer.success:
            raise Trouble(f"sim/reset: {answer.message}")
        self._until(lambda: self._outcome.get("seed") == seed, ANSWER_TIMEOUT, "the next scene")
        self._insist("executor/arm")

    # --- waiting and asking --------------------------------------------------------------------------------

    def _insist(self, name: str) -> None:
        """Ask until granted: after a motion the arm swings a little, and the executor wants it still."""
        end = time.monotonic() + STOP_TIMEOUT
        while True:
            try:
                return self._call(name)
            except Trouble:
                if time.monotonic() > end:
                    raise
                self._sleep(0.2)

    def _call(self, name: str) -> None:
        answer = self._ask(self._triggers[name], Trigger.Request(), name)
        if not answer.success:
            raise Trouble(f"{name}: {answer.message}")

    def _ask(self, client, request, name: str):
        self._until(client.service_is_ready, START_TIMEOUT, f"service {name}")
        future = client.call_async(request)
        self._until(future.done, ANSWER_TIMEOUT, f"an answer of {name}")
        return future.result()

    def _until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise Trouble(f"{what} did not come in {seconds:.0f} s; {self._seen()}")
            self._sleep(0.02)

    def _sleep(self, seconds: float) -> None:
        if self._ending.wait(seconds) or not rclpy.ok():
            raise Trouble("interrupted")


def main(args: list[str] | None = None) -> None:
    """Run until the last episode is over, SIGINT or SIGTERM; status 1 unless all demonstrations succeeded."""
    node, _ = serve(args, "demonstrator", DemonstratorNode, lambda node: node.finished.is_set())
    if node.failure is not None:
        print(f"demonstrator: {node.failure}", flush=True)
    if node.failure is not None or node.finished.is_set() and node.successes < node.settings.episodes:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
