"""`vipra bench stop`: how long the arm takes to stop, in fake time at the core and for real through the node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np

from vipra_ros.control.chunk import ActionChunk
from vipra_ros.control.profile import load_profile
from vipra_ros.control.stops import CAUSES, PERIOD, SLOWEST, TIMEOUT, Stop, measure, ramp, specified
from vipra_ros.json_file import json_writer
from vipra_ros.machine import machine
from vipra_ros.up import end_with_parent

#: rad/s below which the command published counts as zero, s a real stop is watched, Hz of the loop.
STILL, WATCHED, RATE = 1e-4, 1.0, 100.0
#: s for the node to come up.
START = 30.0
#: A policy that never rests: a product of matrices on every processor, from a process that gives way as a policy does.
BUSY = """
import os, threading, numpy
from vipra_ros.nodes.run import give_way
give_way()
x = numpy.eye(1024, dtype=numpy.float32)
def multiply():
    while True:
        numpy.matmul(x, x)
threads = [threading.Thread(target=multiply) for _ in os.sched_getaffinity(0)]
for thread in threads:
    thread.start()
print("ready", flush=True)
"""
#: One processor a thread: a product takes none of its own.
ALONE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Stopper:
    """A policy and an operator for an executor in dry run, which is a process of its own."""

    def __init__(self, chunk_timeout: float):
        from std_srvs.srv import Trigger

        from vipra_ros.nodes.system import own_domain

        self.profile, domain = load_profile("fr3"), own_domain()
        values = dict(dry_run="true", control_rate=RATE, chunk_timeout=chunk_timeout, start_ramp=0.0, start_speed=1.0,
                      overrun_fault=5.0, state_timeout=5.0, incident_keep=0)
        given = [word for k, v in values.items() for word in ("-p", f"{k}:={v}")]
        environment = {**os.environ, "ROS_DOMAIN_ID": str(domain)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vipra_ros.cli", "node", "executor", "--ros-args", *given],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=lambda: end_with_parent(signal.SIGINT))
        self._request, self._spinner = Trigger.Request, None
        try:
            self._connect(domain)
        except BaseException:
            self.close()
            raise

    def _connect(self, domain: int) -> None:
        from sensor_msgs.msg import JointState
        from std_srvs.srv import Trigger

        from vipra_ros.msg import ActionChunk as ActionChunkMessage
        from vipra_ros.msg import ExecutorStatus
        from vipra_ros.nodes.spinner import Spinner, lone_node

        self.node = lone_node("bench_stop", domain)
        self.log: list[tuple[float, np.ndarray, np.ndarray]] = []
        self.ids, self.state = 0, -1
        self.node.create_subscription(JointState, "executor/joint_command", self._heard, 200)
        self.node.create_subscription(ExecutorStatus, "executor/status", self._status, 10)
        self._chunks = self.node.create_publisher(ActionChunkMessage, "policy/chunk", 1)
        self._calls = {k: self.node.create_client(Trigger, f"executor/{k}") for k in ("arm", "stop", "home")}
        self._spinner = Spinner(self.node)
        end = time.monotonic() + START
        while not (self.log and self._calls["stop"].service_is_ready() and self._chunks.get_subscription_count()):
            if time.monotonic() > end:
                raise RuntimeError(f"the executor did not come up in {START:.0f} s; try: vipra node executor "
                                   "--ros-args -p dry_run:=true")
            time.sleep(0.05)

    def close(self) -> None:
        """End both."""
        if self._spinner:
            self._spinner.close()
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def stop(self, cause: str, rng: np.random.Generator) -> Stop | None:
        """One stop from a random velocity; None when it did not come to move."""
        for _ in range(2):  # home again
            self._call("stop")
            time.sleep(0.3)
        self._call("home")
        self._until(lambda: self.state == 0, 20.0)
        self._call("arm")
        velocity, length = ramp(self.profile, rng), rng.uniform(0.3, 0.6)
        begin, due = time.monotonic(), 0.0
        sent = time.time()
        while (passed := time.monotonic() - begin) < length:
            if passed >= due:
                self._send(velocity)
                sent, due = time.time(), due + 2 * PERIOD
            time.sleep(0.005)
        if cause == "service":
            asked = time.time()
            self._calls["stop"].call_async(self._request())
        else:
            asked = sent + TIMEOUT
        time.sleep(max(0.0, asked - time.time()) + WATCHED)
        log = [entry for entry in self.log if entry[0] >= asked - 0.03]
        before = [dq for t, _, dq in log if t <= asked]
        moves = [t for t, _, dq in log if np.abs(dq).max() > STILL]
        if not before or np.abs(before[-1]).max() < SLOWEST:
            return None
        until = next((t for t, _, _ in log if t > moves[-1]), moves[-1])
        return Stop(cause, float(np.abs(before[-1]).max()), until - asked,
                    specified(self.profile, before[-1], 1 / RATE))

    def _send(self, velocity: np.ndarray) -> None:
        from vipra_ros.nodes.convert import chunk_message

        q = self.log[-1][1]
        rows = np.array([np.append(q + velocity * (k + 1) * PERIOD, 1.0) for k in range(14)])
        self.ids += 1
        now = self.node.get_clock().now()
        chunk = ActionChunk(stamp=1e-9 * now.nanoseconds, chunk_id=self.ids, step_period=PERIOD, actions=rows[:7],
                            lookahead=rows[7:], joint_names=self.profile.joint_names, policy_id="bench")
        self._chunks.publish(chunk_message(chunk, now.to_msg()))

    def _call(self, name: str) -> None:
        future = self._calls[name].call_async(self._request())
        self._until(future.done, 5.0)
        time.sleep(0.15)  # the state published is that of the last pass

    def _until(self, condition, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            time.sleep(0.01)

    def _heard(self, message) -> None:
        stamp = message.header.stamp
        entry = (stamp.sec + 1e-9 * stamp.nanosec, np.array(message.position), np.array(message.velocity))
        self.log = [*self.log[-1000:], entry] if len(self.log) > 2000 else self.log
        self.log.append(entry)

    def _status(self, message) -> None:
        self.state = message.state


@contextmanager
def busy(wanted: bool) -> Iterator[subprocess.Popen | None]:
    """With all processors busy meanwhile, if wanted.

    Raises:
        RuntimeError: they were not, for the process that was to keep them busy has ended.
    """
    if not wanted:
        yield None
        return
    process = subprocess.Popen([sys.executable, "-c", BUSY], env={**os.environ, **ALONE}, stdout=subprocess.PIPE,
                               preexec_fn=lambda: end_with_parent(signal.SIGKILL))
    try:
        began = process.stdout.readline()
        if began:
            yield process
        if not began or process.poll() is not None:
            raise RuntimeError(f"the load ended with status {process.wait()}, so nothing was busy; its reason is above")
    finally:
        process.kill()
        process.wait()


def real(count: int, seed: int) -> list[Stop]:
    """`count` stops of each cause through the node, topics and services."""
    stops, rng = [], np.random.default_rng(seed)
    for cause in CAUSES if count else ():
        stopper, left = Stopper(TIMEOUT if cause == "stale" else 1.5), 2 * count
        try:
            found: list[Stop] = []
            while len(found) < count and left:
                one, left = stopper.stop(cause, rng), left - 1
                found += [one] if one else []
        finally:
            stopper.close()
        stops += found
    return stops


def figures(stops: list[Stop]) -> dict:
    """p50, p99 and max in s, the specification of the same, and by how much a stop exceeded its own at worst."""
    seconds, own = np.array([s.seconds for s in stops]), np.array([s.specified for s in stops])
    speeds = [s.speed for s in stops]
    return dict(n=len(stops), speed=[min(speeds), max(speeds)],
                seconds=np.percentile(seconds, (50, 99, 100)).tolist(),
                specified=np.percentile(own, (50, 99, 100)).tolist(), worst_excess=float(np.max(seconds - own)),
                exceeded=int(np.sum(seconds > own)))


def run(stops: int = 200, real_stops: int = 0, seed: int = 0, json_path: str = "") -> None:
    """Measure and print a row a cause: at the core, through the node, and through it while all processors are busy."""
    from rich.console import Console
    from rich.table import Table

    save, on = json_writer(json_path), machine()
    lanes = {"core": measure(stops, seed)}  # in fake time
    for lane, load in (("node", False), ("node, busy", True)):
        with busy(load and real_stops > 0):
            lanes[lane] = real(real_stops, seed)
    table = Table(box=None, padding=(0, 1), header_style="bold")
    for name in ("lane", "from", "n", "rad/s", "p50 ms", "p99 ms", "max ms", "specified", "exceeded", "by ms"):
        table.add_column(name, justify="left" if name in ("lane", "from") else "right")
    results = {}
    for lane, found in lanes.items():
        for cause in CAUSES:
            if not (chosen := [s for s in found if s.cause == cause]):
                continue
            f = results.setdefault(lane, {})[cause] = figures(chosen)
            table.add_row(lane, cause, str(f["n"]), f"{f['speed'][0]:.2f}-{f['speed'][1]:.2f}",
                          *(f"{1000 * x:.0f}" for x in f["seconds"]), f"{1000 * f['specified'][2]:.0f}",
                          str(f["exceeded"]), f"{1000 * f['worst_excess']:+.0f}")
    Console().print(table)
    save(dict(machine=on, results=results, stops={k: [asdict(s) for s in v] for k, v in lanes.items()}))
