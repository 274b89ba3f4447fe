"""`vipra faults --sim`: break things on purpose while the arm moves, and see what becomes of it.

A simulated controller, the executor node and a policy (`puppet.py`) are processes of their own. Each row of the table
injects one fault into a moving arm and measures when the executor says so, and when the commanded velocity is zero.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from vipra_ros.config import ConfigError
from vipra_ros.control.profile import load_profile
from vipra_ros.msg import ExecutorStatus
from vipra_ros.sim.server import TableServer

#: s a fault is watched, s for things to come up, rad/s below which the command counts as zero.
WATCHED, START, STILL = 5.0, 60.0, 1e-4
#: rad/s below which the simulated arm itself stands.
STANDS = 0.01
#: The simulator shares the processors with what it tests.
PATIENT = dict(overrun_fault=3.0, state_timeout=2.0, tracking_limit=0.5, realtime_config="ignore")


@dataclass
class Row:
    """One line of the table; ms from the injection, None where it did not happen."""

    fault: str
    detected: float | None
    stopped: float | None
    state: str
    reason: str
    operator: str
    outside: int  # commanded samples outside position or velocity limits
    as_expected: bool = True


class Bench:
    """Controller, executor, policy and an operator, in a ROS domain of their own."""

    def __init__(self, folder: Path):
        self.folder, self.profile, pick = folder, load_profile("fr3"), random.Random()
        domain = int(os.environ.get("ROS_DOMAIN_ID") or pick.randint(1, 100))
        self.host = f"127.{pick.randint(1, 250)}.{pick.randint(0, 250)}.{pick.randint(2, 250)}"
        self.environment = {**os.environ, "ROS_DOMAIN_ID": str(domain), "OMP_NUM_THREADS": "1",
                            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "PYTHONUNBUFFERED": "1"}
        self.context = rclpy.Context()
        rclpy.init(args=[], context=self.context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("faults", context=self.context)
        self.statuses: list[tuple[float, ExecutorStatus]] = []
        self.commands: list[tuple[float, np.ndarray, np.ndarray]] = []
        self.node.create_subscription(ExecutorStatus, "executor/status", self._status, 50)
        self.node.create_subscription(JointState, "executor/joint_command", self._command, 200)
        self.calls = {k: self.node.create_client(Trigger, f"executor/{k}") for k in ("arm", "stop", "recover")}
        self.spinner = SingleThreadedExecutor(context=self.context)
        self.spinner.add_node(self.node)
        self.thread = threading.Thread(target=self.spinner.spin, daemon=True)
        self.thread.start()
        self.server: TableServer | None = None
        self.executor = self.policy = None

    def __enter__(self) -> Bench:
        self.start_controller()
        self.start_executor()
        self.start_policy()
        return self

    def __exit__(self, *exc: object) -> None:
        for process in (self.policy, self.executor):
            if process and process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
        if self.server:
            self.server.__exit__(None, None, None)
        self.spinner.shutdown()
        self.thread.join(2.0)
        rclpy.try_shutdown(context=self.context)

    # --- processes -----------------------------------------------------------------------------------------

    def start_controller(self) -> None:
        """The simulated controller, at the same address every time."""
        self.server = TableServer(self.host).__enter__()

    def start_executor(self, name: str = "executor", **changes: object) -> subprocess.Popen:
        """The node; the one of the bench unless `name` is another."""
        own = dict(host=self.host, hand="false", incident_folder=self.folder / "incidents")
        values = {**PATIENT, **own, **changes}
        words = [w for k, v in values.items() for w in ("-p", f"{k}:={v}")]
        process = self._spawn(f"{name}.log", "-m", "vipra_ros.cli", "node", "executor", "--ros-args", *words)
        if name == "executor":
            self.statuses.clear()
            self.executor = process
        return process

    def start_policy(self) -> None:
        """The puppet."""
        self.policy = self._spawn("policy.log", "-m", "vipra_ros.nodes.puppet", stdin=subprocess.PIPE)

    def _spawn(self, log: str, *words: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, *words], env=self.environment, text=True, stdin=stdin,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

        def keep() -> None:  # not by the process itself, whose disk may be made full
            with open(self.folder / log, "a") as out:
                for line in process.stdout:
                    out.write(line)
                    out.flush()

        threading.Thread(target=keep, daemon=True).start()
        return process

    def said(self, words: str, log: str = "executor.log") -> bool:
        """Whether a process has printed `words`."""
        return (self.folder / log).exists() and words in (self.folder / log).read_text(errors="replace")

    def tell(self, words: str) -> None:
        """Spoil the policy."""
        self.policy.stdin.write(words + "\n")
        self.policy.stdin.flush()

    # --- operator ------------------------------------------------------------------------------------------

    @property
    def status(self) -> ExecutorStatus | None:
        """The newest."""
        return self.statuses[-1][1] if self.statuses else None

    def call(self, name: str) -> bool:
        """Ask the executor; whether it agreed."""
        self.until(self.calls[name].service_is_ready, START, f"service executor/{name}")
        future = self.calls[name].call_async(Trigger.Request())
        self.until(future.done, 30.0, f"an answer of executor/{name}")
        return future.result().success

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait; RuntimeError when it does not happen."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise RuntimeError(f"{what} did not come in {seconds:.0f} s; see the logs in {self.folder}")
            time.sleep(0.02)

    def run(self) -> None:
        """From any state to an arm that moves."""
        self.until(lambda: self.status is not None, START, "the executor")
        end = time.monotonic() + START
        while self.status.state != ExecutorStatus.RUNNING or not self._moves():
            if time.monotonic() > end:
                raise RuntimeError(f"the arm does not move: {self.status.state_text} {list(self.status.reasons)} "
                                   f"{self.status.last_rejection}; see the logs in {self.folder}")
            if self.status.state == ExecutorStatus.FAULT:
                self.call("recover")
            if self.status.state in (ExecutorStatus.IDLE, ExecutorStatus.HOLD):
                self.call("arm")
            time.sleep(0.3)
        time.sleep(random.uniform(0.3, 0.8))

    def _moves(self) -> bool:
        return bool(self.commands) and float(np.abs(self.commands[-1][2]).max()) > 0.02

    def _status(self, message: ExecutorStatus) -> None:
        self.statuses.append((time.monotonic(), message))

    def _command(self, message: JointState) -> None:
        self.commands.append((time.monotonic(), np.array(message.position), np.array(message.velocity)))

    # --- one row -------------------------------------------------------------------------------------------

    def measure(self, fault: str, inject: Callable[[], None], operator: str, expect: tuple[str, ...],
                seconds: float = WATCHED) -> Row:
        """Inject into a moving arm and watch."""
        self.run()
        before, began = self.status, time.monotonic()
        inject()
        time.sleep(seconds)
        statuses = [(t, s) for t, s in self.statuses if t > began]
        noticed = [t for t, s in statuses if s.state not in (ExecutorStatus.RUNNING, ExecutorStatus.ARMED)
                   or s.rejected > before.rejected or (s.state == ExecutorStatus.ARMED and s.reasons)]
        commands = [c for c in self.commands if c[0] > began]
        moving = [t for t, _, dq in commands if np.abs(dq).max() > STILL]
        last = statuses[-1][1] if statuses else None
        goes_on = last is not None and last.state == ExecutorStatus.RUNNING
        stopped = bool(moving) and not goes_on and commands[-1][0] - moving[-1] > 0.3
        state = last.state_text if last else "gone"
        limit = 1.001 * self.profile.limits[0]
        outside = sum(bool((np.abs(dq) > limit).any() or (q < self.profile.lower - 1e-3).any()
                           or (q > self.profile.upper + 1e-3).any()) for _, q, dq in commands)
        reason = "; ".join(last.reasons) if last and last.reasons else (last.last_rejection if last and noticed else "")
        return Row(fault, 1000 * (noticed[0] - began) if noticed else None,
                   1000 * (moving[-1] - began) if stopped else None, state, reason[:160], operator, outside,
                   state in expect and not outside)


def table(bench: Bench, say: Callable[[str], None], only: str = "") -> list[Row]:
    """Every fault, or those named by words of `only`, in order; what was broken is mended before the next."""
    rows: list[Row] = []

    def add(*args: object, mend: Callable[[], None] = lambda: None, **keywords: object) -> None:
        if only and not any(word in str(args[0]) for word in only.split(",")):
            return
        say(str(args[0]))
        try:
            rows.append(bench.measure(*args, **keywords))
        except RuntimeError as error:
            rows.append(Row(str(args[0]), None, None, "not measured", str(error), "", 0, False))
        mend()

    def well() -> None:
        bench.tell("well")

    def cont() -> None:
        bench.policy.send_signal(signal.SIGCONT)

    add("policy SIGKILL", lambda: bench.policy.kill(), "start the policy; no arming needed", ("ARMED",),
        mend=bench.start_policy)
    add("policy SIGSTOP", lambda: bench.policy.send_signal(signal.SIGSTOP), "look why the policy hangs", ("ARMED",),
        mend=cont)
    for words, name, operator, expect in (
        ("nan", "policy answers NaN", "reload the checkpoint", ("ARMED",)),
        ("delay 2.0", "images 2 s late", "look at the cameras", ("ARMED",)),
        ("delay 0.3", "images 0.3 s late", "nothing", ("RUNNING",)),
        ("drop 0.3", "30 % of chunks lost", "nothing", ("RUNNING",)),
        ("twice", "every chunk twice", "nothing", ("RUNNING",)),
        ("freeze", "image stamps frozen", "look at the cameras", ("ARMED",)),
        ("jump 1.0", "policy's clock +1 s", "synchronise the clocks", ("ARMED",)),
        ("jump -1.0", "policy's clock -1 s", "synchronise the clocks", ("ARMED",)),
    ):
        add(name, lambda w=words: bench.tell(w), operator, expect, mend=well)
    second: list[subprocess.Popen] = []
    puppet = bench.policy

    def another() -> None:
        bench.start_policy()
        second.append(bench.policy)
        bench.policy = puppet

    add("second policy", another, "end one of them", ("RUNNING",), seconds=30.0,
        mend=lambda: [_end(p) for p in second])
    add("second executor", lambda: second.append(
        bench.start_executor("second", connect_timeout=1.0, arm_on_start="false")), "end one of them",
        ("RUNNING",), seconds=30.0, mend=lambda: [_end(p) for p in second])

    def controller_dies() -> None:
        bench.server.__exit__(None, None, None)

    add("controller ends", controller_dies, "start it, executor/recover, executor/arm", ("FAULT",),
        mend=bench.start_controller)

    def full_disk() -> None:
        resource.prlimit(bench.executor.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        controller_dies()

    add("controller ends, disk of the flight recorder full", full_disk, "make room; as above", ("FAULT",),
        mend=bench.start_controller)
    if bench.said("could not be written"):
        rows[-1].reason += "; the log says that the incident could not be written"
    rested: list[float] = []

    def restarted() -> None:
        _end(bench.executor)
        began = last = time.monotonic()
        while time.monotonic() - last < 0.3 and time.monotonic() - began < WATCHED:
            if bench.server.look(lambda world: float(np.abs(world.dq).max())) > STANDS:
                last = time.monotonic()
            time.sleep(0.005)
        rested.append(1000 * (last - began))
        bench.start_executor()
        bench.until(lambda: bench.status is not None, START, "the executor")

    add("executor SIGKILL, started again", restarted, "executor/arm", ("IDLE",), seconds=1.0)
    if rested:
        rows[-1].stopped = rested[0]  # nobody commands: the arm itself, as measured
    return rows


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def run(sim: bool = False, only: str = "", json_path: str = "") -> int:
    """Print the table; 1 when a row is not as expected."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not sim:
        raise ConfigError("vipra faults breaks things on purpose; add --sim, there is no way to do it to a real arm")
    folder, console = Path(tempfile.mkdtemp(prefix="vipra-faults-")), Console(highlight=False, soft_wrap=True)
    with Bench(folder) as bench:
        rows = table(bench, lambda text: console.print(Text(f"... {text}")), only)
    shown = Table(box=None, padding=(0, 1), header_style="bold")
    for name in ("fault", "detected ms", "stopped ms", "then", "outside", "operator"):
        shown.add_column(name, justify="right" if "ms" in name or name == "outside" else "left")
    for r in rows:
        shown.add_row(r.fault, *("-" if x is None else f"{x:.0f}" for x in (r.detected, r.stopped)), r.state,
                      str(r.outside), r.operator, style="" if r.as_expected else "red")
    console.print(shown)
    for r in rows:
        console.print(Text(f"  {r.fault}: {r.reason or 'nothing to say'}"))
    console.print(Text(f"logs: {folder}"))
    if json_path:
        Path(json_path).parent.mkdir(parents=True, exist_ok=True)
        Path(json_path).write_text(json.dumps([asdict(r) for r in rows], indent=1))
    return int(not all(r.as_expected for r in rows))
