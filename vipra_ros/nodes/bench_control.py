"""`vipra bench control`: how even the executor's loop is at 22 and 50 actions a second, beside two cameras.

Simulator and executor run as always: real franky, the simulated controller at 1 kHz, the loop at its default 100 Hz.
The policy is this process: it decodes every picture and sends chunks of a smooth path at the action rate asked for.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from rclpy.qos import qos_profile_sensor_data
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, JointState
from std_srvs.srv import Trigger

from vipra_ros.control.chunk import ActionChunk
from vipra_ros.control.profile import load_profile
from vipra_ros.control.status import WINDOW
from vipra_ros.json_file import json_writer
from vipra_ros.machine import machine
from vipra_ros.msg import ActionChunk as ActionChunkMessage
from vipra_ros.msg import ExecutorStatus
from vipra_ros.nodes.convert import chunk_message, nanoseconds
from vipra_ros.nodes.quality import COMMAND, LATCHED
from vipra_ros.nodes.spinner import Spinner, lone_node
from vipra_ros.nodes.system import System, processor_time
from vipra_ros.policy.pictures import from_jpeg

CAMERAS, CAMERA_RATE = ("front", "wrist"), 30.0
LOOP, AHEAD = 100.0, 0.1
#: s of a chunk, of its executed rows, and between two chunks: those of 14, 7 and 5 rows at 15 Hz.
HORIZON, EXECUTE, EVERY = 14 / 15, 7 / 15, 5 / 15
#: rad and Hz of the path about the home pose; s until the executor is up, and of each rate that are not counted.
SIZE, SWING, START, WARM = 0.2, 0.2, 60.0, 3.0
#: s after which the executor serves another policy: one of another rate is another one.
LEASE = 3.5
#: ms, upper ends of the histogram's bins of the period.
BINS = (5, 8, 9, 9.5, 10.5, 11, 12, 15, 20, 30, 50, 1000)
PARAMETERS = f"""/**/executor:
  ros__parameters:
    control_rate: {LOOP}
    overrun_fault: 3.0
    state_timeout: 2.0
"""


class Driver:
    """Policy, operator and ears of the bench."""

    def __init__(self, domain: int):
        self.node = node = lone_node("bench_control", domain)
        self.profile, self.ids, self.pictures = load_profile("fr3"), 0, dict.fromkeys(CAMERAS, 0)
        self.stamps: deque[float] = deque(maxlen=200_000)
        self.statuses: deque[ExecutorStatus] = deque(maxlen=50_000)
        node.create_subscription(ExecutorStatus, "executor/status", lambda m: self.statuses.append(m), LATCHED)
        node.create_subscription(JointState, "executor/joint_command", self._command, 500)
        for camera in CAMERAS:
            node.create_subscription(CompressedImage, f"camera/{camera}/image_raw/compressed",
                                     lambda m, c=camera: self._picture(c, m), qos_profile_sensor_data)
        self._chunks = node.create_publisher(ActionChunkMessage, "policy/chunk", COMMAND)
        self._arm = node.create_client(Trigger, "executor/arm")
        self._spinner = Spinner(node)

    @property
    def status(self) -> ExecutorStatus | None:
        """The newest."""
        return self.statuses[-1] if self.statuses else None

    def until(self, condition, seconds: float, what: str) -> None:
        """RuntimeError when `condition` does not come true."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise RuntimeError(f"no {what} in {seconds:.0f} s; executor: {self.status and self.status.state_text}")
            time.sleep(0.02)

    def arm(self) -> None:
        """Until it is armed."""
        self.until(self._arm.service_is_ready, START, "executor")

        def armed() -> bool:
            future = self._arm.call_async(Trigger.Request())
            end = time.monotonic() + 2.0
            while not future.done() and time.monotonic() < end:
                time.sleep(0.02)
            return future.done() and future.result().success

        self.until(armed, START, "arming")

    def drive(self, rate: float, seconds: float) -> None:
        """Chunks of the path, rows 1 / rate s apart."""
        period, due, end = 1 / rate, 0.0, time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            if now >= due:
                due = now + EVERY
                self._send(period)
            time.sleep(min(0.005, period / 4))

    def close(self) -> None:
        """End the node."""
        self._spinner.close()

    def _send(self, period: float) -> None:
        stamp = self.node.get_clock().now().nanoseconds - round(AHEAD * 1e9)
        execute = round(EXECUTE / period)
        times = 1e-9 * stamp + period * np.arange(1, round(HORIZON / period) + 1)
        swing = np.array([1, 0.3, 1, 0.3, 1, 0.5, 1]) * np.sin(2 * np.pi * SWING * times)[:, None]
        rows = np.column_stack([self.profile.home_q + SIZE * swing, np.ones(len(times))])
        self.ids += 1
        chunk = ActionChunk(
            stamp=1e-9 * stamp, chunk_id=self.ids, step_period=period, actions=rows[:execute],
            lookahead=rows[execute:], joint_names=self.profile.joint_names, epoch=self.status.epoch,
            policy_id=f"bench {1 / period:g} Hz")
        self._chunks.publish(chunk_message(chunk, Time(nanoseconds=stamp).to_msg()))

    def _command(self, message: JointState) -> None:
        self.stamps.append(message.header.stamp.sec + 1e-9 * message.header.stamp.nanosec)

    def _picture(self, camera: str, message: CompressedImage) -> None:
        from_jpeg(message.data)
        self.pictures[camera] += 1


def run(rates: list[float] | None = None, seconds: float = 30.0, json_path: str = "") -> None:
    """Measure every rate and print what came of it."""
    save = json_writer(json_path)
    results = {"machine": machine(), "loop_hz": LOOP, "seconds": seconds, "rates": {}}
    with System(system="sim", parameters=PARAMETERS, camera_rate=str(CAMERA_RATE)) as system:
        driver = Driver(system.domain)
        try:
            driver.until(lambda: driver.status and all(driver.pictures.values()), START, "pictures")
            for rate in rates or [22.0, 50.0]:
                time.sleep(LEASE)
                driver.arm()
                results["rates"][f"{rate:g}"] = found = _measure(driver, system.pid, rate, seconds)
                _print(rate, found)
        finally:
            driver.close()
    save(results)


def _measure(driver: Driver, pid: int, rate: float, seconds: float) -> dict:
    driver.drive(rate, WARM)
    driver.stamps.clear()
    was, before, shown, began = driver.status, spent_by(pid), dict(driver.pictures), time.time()
    driver.drive(rate, seconds)
    end, after, status = time.time(), spent_by(pid), driver.status
    passed = end - began
    periods = 1e3 * np.diff(np.array(driver.stamps))
    counts = np.histogram(periods, (0, *BINS))[0]
    return {
        "n": len(periods), "period_ms": np.percentile(periods, (50, 95, 99, 100)).round(2).tolist(),
        "jitter_ms": np.percentile(np.abs(periods - 1e3 / LOOP), (50, 95, 99, 100)).round(2).tolist(),
        "histogram": {f"<{b:g}": int(c) for b, c in zip(BINS, counts)},
        "cpu": {k: round((v - before.get(k, 0.0)) / passed, 2) for k, v in after.items()},
        "pictures_hz": {c: round((driver.pictures[c] - shown[c]) / passed, 1) for c in CAMERAS},
        "state": status.state_text, "overruns": int(status.overruns - was.overruns),
        "rejected": int(status.rejected - was.rejected),
        "last_rejection": status.last_rejection if status.rejected > was.rejected else "",
        **over(list(driver.statuses), [(began, end)]),
    }


def over(statuses: Sequence[ExecutorStatus], spans: Sequence[tuple[float, float]]) -> dict:
    """What the executor said while it was RUNNING within `spans`, each (begin, end) in s of the ROS clock.

    Rates and shares are of the WINDOW s before a status: those whose window lies in its span count, `statuses` of them,
    and are None when there are none. A boundary step is that of the last chunk: one counts for each chunk accepted.
    """
    timed, whole, steps = [(1e-9 * nanoseconds(s.header.stamp), s) for s in statuses], [], []
    for begin, end in spans:
        inside = [(t, s) for t, s in timed if begin <= t <= end and s.state == ExecutorStatus.RUNNING]
        whole += [s for t, s in inside if t - WINDOW >= begin]
        steps += [s.boundary_step for (_, before), (_, s) in pairwise(inside) if s.accepted > before.accepted]
    steps = [x for x in steps if np.isfinite(x)]

    def of(name: str, how, digits: int = 3) -> float | None:
        return round(float(how([getattr(s, name) for s in whole])), digits) if whole else None

    return {
        "statuses": len(whole), "action_rate": of("action_rate", np.mean, 1),
        "limiter_active": of("limiter_active", np.mean), "stall_fraction": of("stall_fraction", np.mean),
        "stall_fraction_worst": of("stall_fraction", np.max), "boundaries": len(steps),
        "boundary_mean": round(float(np.mean(steps)), 4) if steps else None,
        "boundary_max": round(float(np.max(steps)), 4) if steps else None,
    }


def share(value: float | None) -> str:
    """A share for people to read."""
    return "-" if value is None else f"{value:.0%}"


def spent_by(session: int) -> dict[str, float]:
    """s of processor time of each node of the session's system, of the simulated controller, and of ourselves."""
    spent, family = {"bench": time.process_time()}, {session}
    for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda p: int(p.name)):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) not in family:
                continue
            family.add(int(folder.name))
            used = processor_time(int(folder.name))
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        name = words[words.index("node") + 1] if "node" in words else ""
        if name := "controller" if "vipra_ros.sim.table" in words else name:
            spent[name] = spent.get(name, 0.0) + used
    return spent


def _print(rate: float, found: dict) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    period, jitter = (" / ".join(f"{x:.1f}" for x in found[k]) for k in ("period_ms", "jitter_ms"))
    console.print(f"{rate:g} actions/s asked for, {found['action_rate']} done; {found['state']}, n {found['n']}")
    console.print(f"  loop period p50 / p95 / p99 / max {period} ms; jitter {jitter} ms; overruns {found['overruns']}")
    console.print("  cores: " + ", ".join(f"{k} {v:.2f}" for k, v in found["cpu"].items()))
    console.print(f"  pictures/s {found['pictures_hz']}; limiter {share(found['limiter_active'])}, "
                  f"stalled {share(found['stall_fraction'])}, boundary at most {found['boundary_max']} rad "
                  f"(n {found['boundaries']})")
    most = max(found["histogram"].values()) or 1
    for name, count in found["histogram"].items():
        console.print(f"  {name + ' ms':>8} {count:6} {'#' * round(40 * count / most)}")
