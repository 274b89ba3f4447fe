"""The bench of `vipra faults --sim`: a simulated controller, an executor, a policy, a camera and an operator.

Controller, executor and policy (`puppet.py`) are processes of their own, so that each can be killed, stopped and
started; the camera is here. `measure` injects one fault into a moving arm and watches what is said and commanded.
"""

from __future__ import annotations

import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from vipra_ros.control.profile import load_profile
from vipra_ros.graph import yaml_scalar
from vipra_ros.msg import ExecutorStatus, PolicyStatus
from vipra_ros.nodes.fault_camera import Camera, SimulatedClock
from vipra_ros.nodes.puppet import CAMERA
from vipra_ros.nodes.quality import LATCHED
from vipra_ros.nodes.spinner import Spinner, lone_node
from vipra_ros.nodes.system import own_domain
from vipra_ros.sim.server import TableServer
from vipra_ros.up import end_with_parent

#: s a fault is watched, for things to come up, and that an arm may take to move again.
WATCHED, START, AGAIN = 5.0, 60.0, 30.0
#: rad/s below which the command counts as zero, and for how long (s) it must be to have stopped.
STILL, REST = 1e-4, 0.2
#: rad/s above which the arm is commanded to move, and s in which it does where it moves at all.
MOVING, RECENT = 0.02, 0.5
#: rad/s below which the simulated arm itself stands.
STANDS = 0.01
#: The simulator shares the processors with what it tests.
PATIENT = dict(overrun_fault=3.0, state_timeout=2.0, tracking_limit=0.5, realtime_config="ignore")
MOVES = (ExecutorStatus.ARMED, ExecutorStatus.RUNNING)


def nothing(bench: Bench) -> None:
    """Does nothing."""


@dataclass(frozen=True)
class Fault:
    """One row to measure.

    Attributes:
        inject: breaks something while the arm moves.
        expect: state at the end of `seconds` s of watching.
        says: words that executor, policy or the injection must have said; "" asks for none.
        operator: what the operator does about it.
        prepare, mend: before the arm moves; after the watching.
        alone: the arm must move again by itself once it is mended, else the operator recovers and arms.
    """

    name: str
    inject: Callable[[Bench], None]
    expect: str
    says: str = ""
    operator: str = "nothing"
    prepare: Callable[[Bench], None] = nothing
    mend: Callable[[Bench], None] = nothing
    alone: bool = True
    seconds: float = WATCHED


@dataclass
class Row:
    """One line of the table; ms from the injection, None where it did not happen.

    Attributes:
        detected: until executor, policy or the injection said the words; None where none are asked for.
        stopped: until the command rested first, of the arm itself where nobody commands.
        again: s from the mending to an arm that moves, and `by` whom; None where it moved when it was mended.
        outside: commanded samples outside position or velocity limits, of `samples`.
    """

    fault: str
    detected: float | None = None
    stopped: float | None = None
    state: str = ""
    reason: str = ""
    operator: str = ""
    again: float | None = None
    by: str = ""
    outside: int = 0
    samples: int = 0
    as_expected: bool = False


class Bench:
    """See the module's text; in a ROS domain of its own.

    Attributes:
        began: monotonic s of the injection. noticed, rested, mended: the same, of injections that see to it themselves.
        remarks: what they saw. wrong: what they saw and must not be.
    """

    def __init__(self, folder: Path):
        self.folder, self.profile, pick = folder, load_profile("fr3"), random.Random()
        domain = own_domain()
        self.host = f"127.{pick.randint(1, 250)}.{pick.randint(0, 250)}.{pick.randint(2, 250)}"
        self.environment = {**os.environ, "ROS_DOMAIN_ID": str(domain), "OMP_NUM_THREADS": "1",
                            "PYTHONUNBUFFERED": "1"}
        self.node = lone_node("faults", domain)
        self.statuses: list[tuple[float, ExecutorStatus]] = []
        self.policies: list[tuple[float, PolicyStatus]] = []
        self.commands: list[tuple[float, np.ndarray, np.ndarray]] = []
        self.node.create_subscription(ExecutorStatus, "executor/status", self._status, 50)
        self.node.create_subscription(PolicyStatus, "policy/status", self._policy, LATCHED)
        self.node.create_subscription(JointState, "executor/joint_command", self._command, 200)
        self.calls = {k: self.node.create_client(Trigger, f"executor/{k}") for k in ("arm", "stop", "recover")}
        self.simulated: SimulatedClock | None = None
        self.camera = Camera(self.node, CAMERA, lambda: self.simulated.now() if self.simulated else time.time())
        self.spinner = Spinner(self.node)
        self.server: TableServer | None = None
        self.executor = self.policy = None
        self._children: list[subprocess.Popen] = []
        self._clear()

    def __enter__(self) -> Bench:
        self.start_controller()
        self.camera.__enter__()
        self.executor, self.policy = self.start_executor(), self.start_policy()
        return self

    def __exit__(self, *exc: object) -> None:
        self.camera.__exit__()
        if self.simulated:
            self.simulated.__exit__()
        for process in self._children:
            end(process)
        if self.server:
            self.server.__exit__(None, None, None)
        self.spinner.close()

    # --- processes -----------------------------------------------------------------------------------------

    def start_controller(self) -> None:
        """The simulated controller, at the same address every time."""
        self.server = TableServer(self.host).__enter__()

    def start_executor(self, log: str = "executor.log", **changes: object) -> subprocess.Popen:
        """The executor node."""
        own = dict(host=self.host, incident_folder=str(self.folder / "incidents"), use_sim_time=bool(self.simulated))
        given = {**PATIENT, **own, **changes}
        words = [w for k, v in given.items() for w in ("-p", f"{k}:={yaml_scalar(v)}")]
        if log == "executor.log":
            self.statuses.clear()
        return self._spawn(log, "-m", "vipra_ros.cli", "node", "executor", "--ros-args", *words)

    def start_policy(self, log: str = "policy.log") -> subprocess.Popen:
        """The puppet. It speaks whether anybody is ready or not: it is the executor that is tested."""
        words = ("-p", "follow_executor:=false", "-p", "instruction:=fault table",
                 "-p", f"use_sim_time:={yaml_scalar(bool(self.simulated))}")
        return self._spawn(log, "-m", "vipra_ros.nodes.puppet", "--ros-args", *words)

    def _spawn(self, log: str, *words: str) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, *words], env=self.environment, text=True, stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   preexec_fn=lambda: end_with_parent(signal.SIGKILL))  # one may be stopped

        def keep() -> None:  # not by the process itself, whose disk may be made full
            with open(self.folder / log, "a") as out:
                for line in process.stdout:
                    out.write(line)
                    out.flush()

        threading.Thread(target=keep, daemon=True).start()
        self._children.append(process)
        return process

    def said(self, words: str, log: str = "executor.log") -> str:
        """The last line that a process has printed with `words` in it, or ""."""
        path = self.folder / log
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return next((x for x in reversed(lines) if words in x), "")

    def tell(self, words: str, policy: subprocess.Popen | None = None) -> None:
        """Spoil the policy."""
        policy = policy or self.policy
        policy.stdin.write(words + "\n")
        policy.stdin.flush()

    # --- operator ------------------------------------------------------------------------------------------

    @property
    def status(self) -> ExecutorStatus | None:
        """The newest."""
        return self.statuses[-1][1] if self.statuses else None

    def call(self, name: str) -> str:
        """Ask the executor; why it did not agree, or ""."""
        self.until(self.calls[name].service_is_ready, START, f"service executor/{name}")
        future = self.calls[name].call_async(Trigger.Request())
        self.until(future.done, 30.0, f"an answer of executor/{name}")
        return "" if future.result().success else future.result().message

    def until(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        """Wait; RuntimeError when it does not happen."""
        limit = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > limit:
                raise RuntimeError(f"{what} did not come in {seconds:.0f} s; see the logs in {self.folder}")
            time.sleep(0.02)

    def run(self, seconds: float = START, operator: bool = True) -> None:
        """From any state to an arm that moves; without the operator nobody is called."""
        self.until(lambda: self.status is not None, START, "the executor")
        limit, why = time.monotonic() + seconds, ""
        while self.status.state != ExecutorStatus.RUNNING or not self._moves():
            if time.monotonic() > limit:
                raise RuntimeError(f"the arm does not move: {self.status.state_text} {list(self.status.reasons)} "
                                   f"{why or self.status.last_rejection}; see the logs in {self.folder}")
            if operator and self.status.state == ExecutorStatus.FAULT:
                why = self.call("recover")
            if operator and self.status.state in (ExecutorStatus.IDLE, ExecutorStatus.HOLD):
                why = self.call("arm")
            time.sleep(0.3 if operator else 0.02)

    def speed(self) -> float:
        """rad/s of the fastest joint of the simulated arm itself."""
        return self.server.look(lambda world: float(np.abs(world.dq).max()))

    def rest(self, seconds: float = WATCHED) -> None:
        """Wait until the arm itself has come to rest, and remember when."""
        last = time.monotonic()
        limit = last + seconds
        while time.monotonic() - last < 0.3 and time.monotonic() < limit:
            if self.speed() > STANDS:
                last = time.monotonic()
            time.sleep(0.005)
        self.rested = last

    def mark(self) -> None:
        """The fault begins now, not with the call of `inject`."""
        self.began = time.monotonic()

    def _moves(self) -> bool:
        return self._moved(time.monotonic() - RECENT) is not None

    def _moved(self, begin: float, end: float = math.inf) -> float | None:
        """Monotonic s of the first motion commanded between the two."""
        return next((t for t, _, dq in list(self.commands) if begin <= t < end and np.abs(dq).max() > MOVING), None)

    def _status(self, message: ExecutorStatus) -> None:
        self.statuses.append((time.monotonic(), message))

    def _policy(self, message: PolicyStatus) -> None:
        self.policies.append((time.monotonic(), message))

    def _command(self, message: JointState) -> None:
        self.commands.append((time.monotonic(), np.array(message.position), np.array(message.velocity)))

    def _clear(self) -> None:
        self.noticed, self.rested, self.mended, self.remarks, self.wrong = None, None, None, [], []
        del self.statuses[:-1], self.policies[:-1], self.commands[:-1]

    # --- one row -------------------------------------------------------------------------------------------

    def measure(self, fault: Fault) -> Row:
        """Inject into a moving arm, watch, mend, and see that it moves again."""
        row = Row(fault.name, operator=fault.operator)
        try:
            fault.prepare(self)
            self.run()
            time.sleep(random.uniform(0.3, 0.8))
            self._clear()
            before = self.status, self.policies[-1][1]
            self.mark()
            fault.inject(self)
            time.sleep(max(0.0, self.began + fault.seconds - time.monotonic()))
            self._judge(row, fault, *before)
            fault.mend(self)
            if fault.mend is not nothing:
                self.mended = self.mended or time.monotonic()
            self.run(AGAIN, operator=not fault.alone)
            if self.mended and self._moved(self.mended - RECENT, self.mended) is None:
                row.again = (self._moved(self.mended) or time.monotonic()) - self.mended
                row.by = "itself" if fault.alone else "operator"
        except RuntimeError as error:
            row.as_expected, row.reason = False, "; ".join(filter(None, (row.reason, str(error))))
        return row

    def _judge(self, row: Row, fault: Fault, was: ExecutorStatus, policy: PolicyStatus) -> None:
        commands = [c for c in self.commands if c[0] > self.began]
        heard = self._heard(was, policy)
        noticed = self.noticed or next((t for t, text in heard if fault.says and fault.says in text), None)
        stopped = self.rested or _first_rest(commands)
        row.detected = 1000 * (noticed - self.began) if noticed else None
        row.stopped = 1000 * (stopped - self.began) if stopped else None
        row.state = self.status.state_text if self.status else "gone"
        row.samples, row.outside = len(commands), sum(self._outside(q, dq) for _, q, dq in commands)
        # Figures change from one status to the next, the words are the same.
        texts = {re.sub(r"[\d.]+", "", x): x for x in reversed([*(text for _, text in heard), *self.remarks])}
        row.reason = "; ".join([*self.wrong, *reversed(texts.values())])
        row.as_expected = (row.state == fault.expect and fault.says in row.reason and not row.outside
                           and not self.wrong)

    def _heard(self, was: ExecutorStatus, policy: PolicyStatus) -> list[tuple[float, str]]:
        """(monotonic s, words) that executor and policy had to say of it."""
        heard = []
        for t, s in self.statuses:
            if t <= self.began:
                continue
            heard += [(t, r) for r in s.reasons if r not in was.reasons]
            if s.rejected > was.rejected:
                heard.append((t, s.last_rejection))
            elif s.state not in MOVES and not s.reasons and s.epoch == was.epoch:
                heard.append((t, s.state_text))
        for t, p in self.policies:
            if t > self.began:
                heard += [(t, f"policy: {r}") for r in p.reasons if r not in policy.reasons]
                if (lost := sum(p.frames_lost) - sum(policy.frames_lost)) > 0:
                    heard.append((t, f"policy: images lost, {lost}"))
        return sorted(heard, key=lambda x: x[0])

    def _outside(self, q: np.ndarray, dq: np.ndarray) -> bool:
        p = self.profile
        fast = np.abs(dq) > 1.001 * p.limits[0]
        return bool((fast | (q < p.lower - 1e-3) | (q > p.upper + 1e-3)).any())


def _first_rest(commands: list[tuple[float, np.ndarray, np.ndarray]]) -> float | None:
    """When the commanded velocity was zero for the first time, and stayed so for REST."""
    since = None
    for t, _, dq in commands:
        since = (t if since is None else since) if np.abs(dq).max() < STILL else None
        if since is not None and t - since >= REST:
            return since
    return None


def end(process: subprocess.Popen) -> None:
    """Kill a child, stopped or not."""
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.kill()
    process.wait()
