"""The last seconds before a fault as an MCAP bag: the writer behind the executor's flight recorder.

A thread of its own looks for a latched fault, waits until the arm has come to rest, copies the ring of
`control/flight.py` and writes it as one bag `incident-DATE-TIME` with the topics an episode has too. Whatever goes
wrong with the disk is said, and is no fault.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from vipra_ros.control.chunk import ActionChunk
from vipra_ros.control.flight import AFTER, Flight, FlightRecorder
from vipra_ros.control.profile import RobotProfile
from vipra_ros.control.settings import ExecutorSettings
from vipra_ros.data import messages
from vipra_ros.data.bag_writer import EpisodeWriter
from vipra_ros.data.messages import NS

PREFIX = "incident-"
#: The reference's acceleration, and the arm's own command, as JointState; what became of chunks, and the row of
#: figures without joints, as JSON.
ACCELERATION, ARM_COMMAND, VERDICT, FIGURES = (
    "flight/reference_acceleration", "flight/arm_command", "flight/verdict", "flight/figures",
)
#: s between two looks at the recorder, and s that a writer is given when the executor ends.
PERIOD, PATIENCE = 0.1, 5.0
#: Messages after which the writing thread lets the control loop have the interpreter.
BREATH = 50


def write(flight: Flight, folder: Path, profile: RobotProfile, fault_time: float, *, settings: ExecutorSettings,
          robot: str = "", clock_ns: int = 0) -> Path:
    """Write what was remembered; returns the bag's path.

    Args:
        fault_time: s, monotonic, of the pass in which the fault was seen.
        clock_ns: ns to add to monotonic time for the stamps.

    Raises:
        OSError, BagError: the disk does not take it; nothing is left behind.
    """
    stamp = round(fault_time * NS) + clock_ns
    name = PREFIX + datetime.fromtimestamp(stamp / NS, timezone.utc).strftime("%Y%m%d-%H%M%S-%f")[:-3]
    if shutil.disk_usage(folder).free < 4 * flight.rows.nbytes:  # an unfinished bag would only fill it up
        raise OSError(f"{shutil.disk_usage(folder).free // 10**6} MB are free at {folder}")
    bag = EpisodeWriter(folder, name)
    try:
        for i, (when, topic, kind, raw) in enumerate(
                sorted(_messages(flight, profile, clock_ns), key=lambda m: m[0])):
            bag.write(topic, kind, raw, when)
            if i % BREATH == 0:
                time.sleep(0.001)
        return bag.close(dict(
            kind="incident", robot=robot or profile.name, fault_ns=stamp, clock_ns=clock_ns,
            faults=[dict(code=f.code.value, text=f.text, ns=round(f.time * NS) + clock_ns) for f in flight.faults],
            limits={k: v.tolist() for k, v in zip(("velocity", "acceleration", "jerk"), profile.limits)},
            q_min=profile.lower.tolist(), q_max=profile.upper.tolist(), settings=dataclasses.asdict(settings),
        ))
    except BaseException:
        bag.erase()
        raise


def _messages(flight: Flight, profile: RobotProfile, clock_ns: int):
    """(ns, topic, type, CDR) of everything."""
    names, table = profile.joint_names, {k: flight.column(k) for k in (
        "q", "dq", "q_ref", "dq_ref", "ddq_ref", "q_d", "dq_d", "state", "limited", "opening", "width",
        "limiter_active", "tracking_error", "epoch")}
    times = np.round(flight.column("time") * NS).astype(np.int64) + clock_ns
    for i, when in enumerate(times.tolist()):
        if i % BREATH == 0:
            time.sleep(0.001)
        for topic, position, velocity in (("joint_states", "q", "dq"), ("executor/joint_command", "q_ref", "dq_ref"),
                                          (ARM_COMMAND, "q_d", "dq_d"), (ACCELERATION, "ddq_ref", "")):
            raw = messages.joint_state(when, names, table[position][i], table[velocity][i] if velocity else None)
            yield when, topic, messages.JOINT_STATE, raw
        figures = {k: _finite(table[k][i]) for k in ("state", "limited", "opening", "width", "limiter_active",
                                                     "tracking_error", "epoch")}
        yield when, FIGURES, messages.STRING, messages.string(json.dumps(figures))
    types = messages.typestore().types
    for change in flight.changes:
        when = round(change.time * NS) + clock_ns
        said = dict(state=change.state, text=change.text, reasons=change.reasons, error=change.error)
        yield when, "flight/change", messages.STRING, messages.string(json.dumps(said, ensure_ascii=False))
    for arrival, chunk, verdict in flight.chunks:
        when = round(arrival * NS) + clock_ns
        said = json.dumps(dict(chunk_id=int(chunk.chunk_id), verdict=verdict,
                               age=_finite(arrival - chunk.stamp)), ensure_ascii=False)
        yield when, VERDICT, messages.STRING, messages.string(said)
        try:
            yield when, "policy/chunk", messages.ACTION_CHUNK, _chunk(chunk, types, clock_ns)
        except Exception:  # it was refused because it holds anything; what became of it is said above
            continue


def _chunk(chunk: ActionChunk, types: dict, clock_ns: int) -> bytes:
    stamp = round(chunk.stamp * NS) + clock_ns
    header = types["std_msgs/msg/Header"](types["builtin_interfaces/msg/Time"](stamp // NS, stamp % NS), "")
    actions, ahead = np.asarray(chunk.actions, float), np.asarray(chunk.lookahead, float)
    size = actions.shape[1] if actions.ndim == 2 else 0
    message = types[messages.ACTION_CHUNK](
        header=header, chunk_id=chunk.chunk_id, policy_id=chunk.policy_id, task_id=chunk.task_id, epoch=chunk.epoch,
        instruction=chunk.instruction, checkpoint=chunk.checkpoint, action_space=chunk.action_space,
        joint_names=list(chunk.joint_names), step_period=float(chunk.step_period), horizon=chunk.horizon,
        execute_steps=len(actions), action_size=size, actions=actions.ravel(), lookahead=ahead.ravel())
    return messages.serialize(message, messages.ACTION_CHUNK)


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if np.isfinite(value) else None


class IncidentWriter:
    """Writes a bag after every fault that `flight` sees, from a thread of its own. A context manager.

    Args:
        settings: incident_folder and incident_keep among them.
        say: told of every bag, and of every one that could not be written.
        clock_ns: ns to add to monotonic time now; the difference of the two clocks when None.
    """

    def __init__(self, flight: FlightRecorder, profile: RobotProfile, settings: ExecutorSettings,
                 say: Callable[[str], None], robot: str = "", clock_ns: Callable[[], int] | None = None):
        self.flight, self.profile, self.settings, self._say, self._robot = flight, profile, settings, say, robot
        self._clock = clock_ns or (lambda: time.time_ns() - time.monotonic_ns())
        self.folder = folder(settings)
        self.written: list[Path] = []
        self.failures = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="incident", daemon=True)

    def __enter__(self) -> IncidentWriter:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """A fault that is not written down yet is written first."""
        self._ending.set()
        self._thread.join(timeout=PATIENCE)

    def _work(self) -> None:
        done = 0
        while True:
            ended = self._ending.wait(PERIOD)
            if self.flight.incidents != done:
                done, moment = self.flight.incidents, self.flight.fault_time
                if not ended:
                    self._ending.wait(AFTER)
                self._write(moment)
            if ended:
                return

    def _write(self, moment: float) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            flight = self.flight.copy()
            path = write(flight, self.folder, self.profile, moment, settings=self.settings,
                         robot=self._robot, clock_ns=self._clock())
            self.written.append(path)
            # The one line about a fault that a terminal shows.
            why = "; ".join(map(str, flight.faults)) or "recovered already"
            self._say(f"fault: {why}; the last seconds before it are in {path}; look with: vipra incident {path}")
            kept = sorted(p for p in self.folder.glob(f"{PREFIX}*") if p.is_dir())
            for old in kept[: -self.settings.incident_keep]:
                shutil.rmtree(old, ignore_errors=True)
                old.with_name(f"{old.name}.png").unlink(missing_ok=True)  # its plot
        except Exception as error:  # a full disk, rights, a defect: never the executor's trouble
            self.failures += 1
            self._say(f"the incident could not be written ({type(error).__name__}: {error}); make room in "
                      f"{self.folder}, or set incident_folder")


def folder(settings: ExecutorSettings) -> Path:
    """Where incidents are."""
    import os

    home = os.environ.get("ROS_HOME") or "~/.ros"
    return Path(settings.incident_folder or Path(home, "incidents")).expanduser()
