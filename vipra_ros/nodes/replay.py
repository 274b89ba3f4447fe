"""ROS shell of a replay: a recorded episode on policy/chunk, in real time; ends with the tracking error.

It waits until the executor is armed, by an operator or at its start, and takes the place of a policy from
there on: the executor validates, limits and guards as ever. The process ends with 0 after the last row.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.time import Time
from sensor_msgs.msg import JointState

from vipra_ros.config import ConfigError, param
from vipra_ros.data.bags import BagError
from vipra_ros.data.dataset import DatasetError
from vipra_ros.data.messages import MessageError
from vipra_ros.data.replay import Replay, dataset_replay, load_replay
from vipra_ros.data.resample import EpisodeError, Resampling
from vipra_ros.msg import ActionChunk as ActionChunkMessage
from vipra_ros.msg import ExecutorStatus
from vipra_ros.nodes import convert
from vipra_ros.nodes.parameters import declare
from vipra_ros.nodes.quality import COMMAND, LATCHED
from vipra_ros.nodes.spinner import Spinner

STREAM = QoSProfile(depth=50)
READY = (ExecutorStatus.ARMED, ExecutorStatus.RUNNING)
NS = 1e9
#: s until the first chunk must have set the executor going.
BEGIN_TIMEOUT = 1.0
#: s after the last row: the executor's limits may bring it there a little late.
AFTER = 0.5
#: rad from the beginning that count as there, and s in which the arm has to come there.
THERE, APPROACH_TIMEOUT = 0.02, 30.0


@dataclass(frozen=True)
class ReplaySettings:
    """Parameters of the node."""

    bag: str = param("", doc="directory of the recorded episode")
    dataset: str = param("", doc="instead: folder of a data set")
    episode: int = param(0, doc="number of the episode in the data set", low=0)
    fps: float = param(15.0, doc="rows a second", unit="Hz", low=5.0, high=50.0)
    execute: int = param(7, doc="rows of a chunk to execute", low=2, high=50)
    lookahead: int = param(7, doc="rows of a chunk beyond them", low=0, high=50)
    renew: int = param(
        5, doc="rows until the next chunk; the rest of `execute` bridges the delay of messages", low=1, high=49
    )
    start_distance: float = param(
        0.5, doc="largest joint distance of the arm from the beginning", unit="rad", low=0.01, high=3.0
    )
    delay: float = param(1.0, doc="how long the executor must have been armed before the start", unit="s", low=0.0)
    wait: float = param(0.0, doc="how long to wait for an armed executor, 0: for ever", unit="s", low=0.0)


class ReplayError(RuntimeError):
    """The replay cannot begin or go on; one line with the remedy."""


class ReplayNode(Node):
    """See the module's text."""

    def __init__(self) -> None:
        super().__init__("replay")
        self.settings = s = declare(self, ReplaySettings)
        if s.renew > s.execute:
            raise ConfigError(
                f"replay: parameter renew = {s.renew}: must not exceed execute = {s.execute}, or rows would be missing"
            )
        if bool(s.bag) == bool(s.dataset):
            raise ConfigError("replay: give the parameter bag, or dataset and episode")
        self.replay = (
            dataset_replay(Path(s.dataset), s.episode)
            if s.dataset
            else load_replay(Path(s.bag), Resampling(fps=s.fps), self.get_namespace())
        )
        self._status: ExecutorStatus | None = None
        self._measured: JointState | None = None
        self._tracks: dict[str, list[tuple[float, list[float]]]] = {"commanded": [], "measured": []}
        self._start, self._number = np.inf, 0  # s, ROS clock; of the last chunk
        self._chunks = self.create_publisher(ActionChunkMessage, "policy/chunk", COMMAND)
        self.create_subscription(ExecutorStatus, "executor/status", self._on_status, LATCHED)
        self.create_subscription(JointState, "joint_states", self._on_measured, STREAM)
        self.create_subscription(JointState, "executor/joint_command", lambda m: self._note("commanded", m), STREAM)
        self._who = {
            "policy_id": f"replay-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}",
            "checkpoint": f"replay:{self.replay.name}",
            "task_id": 1,
        }
        r = self.replay
        self.get_logger().info(
            f"{r.name}: {len(r.rows)} rows, {r.duration:.1f} s, {r.instruction or 'no instruction'!r}"
        )

    def run(self) -> dict[str, tuple[float, float]]:
        """Wait, play, report; for a thread that is not the node's own.

        Returns:
            "commanded", "measured" -> largest and rms deviation from the recorded commands, rad.

        Raises:
            ReplayError, EpisodeError: the arm is elsewhere, or the executor left RUNNING on the way.
        """
        self._await_armed()
        self._check_distance()
        self._play()
        return self._report()

    def approach(self) -> None:
        """Bring an armed arm to the episode's beginning, through an executor whose start_action is blend.

        Raises:
            ReplayError: it is not there in `APPROACH_TIMEOUT`, or the executor leaves the motion.
        """
        self._await_armed()
        there = dataclasses.replace(self.replay, rows=np.append(self.replay.first, self.replay.rows[0, -1])[None])
        rejected, end = self._status.rejected, time.monotonic() + APPROACH_TIMEOUT
        while there.distance(self._measured.name, self._measured.position)[0] > THERE:
            if time.monotonic() > end or self._status.state not in READY:
                reason = _last(self._status.reasons)
                if self._status.rejected > rejected:
                    reason = self._status.last_rejection
                raise ReplayError(f"the arm did not come to the beginning of {self.replay.name}: {reason}")
            self._publish(there, 0, self._now())
            self._sleep(self.settings.renew * there.period)
        while self._status.state == ExecutorStatus.RUNNING:  # until it misses the chunks, and is ARMED again
            self._sleep(0.02)

    # --- in ------------------------------------------------------------------------------------------------

    def _on_status(self, message: ExecutorStatus) -> None:
        self._status = message

    def _on_measured(self, message: JointState) -> None:
        self._measured = message
        self._note("measured", message)

    def _note(self, which: str, message: JointState) -> None:
        stamp = message.header.stamp.sec + message.header.stamp.nanosec / NS
        if stamp < self._start:
            return
        at = dict(zip(message.name, message.position))
        if all(n in at for n in self.replay.joint_names):
            self._tracks[which].append((stamp - self._start, [at[n] for n in self.replay.joint_names]))

    # --- steps ---------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return self.get_clock().now().nanoseconds / NS

    def _await_armed(self) -> None:
        """Until the executor has been armed for `delay` s, and the arm's joints are known."""
        began, armed, said = time.monotonic(), time.monotonic(), ""
        while True:
            status, now = self._status, time.monotonic()
            if status is None:
                waits = "no executor/status yet; start the executor"
            elif status.state == ExecutorStatus.RUNNING:
                raise ReplayError("the executor already follows another source; stop it, then replay")
            elif status.state != ExecutorStatus.ARMED:
                waits = f"the executor is {status.state_text}; call executor/arm"
            elif self._measured is None:
                waits = "no joint_states yet; is the arm connected?"
            elif self._chunks.get_subscription_count() == 0:
                waits = "nobody listens to policy/chunk yet; is the executor in this namespace?"
            elif now - armed < self.settings.delay:
                waits = f"armed; the arm moves in {self.settings.delay:g} s"
            else:
                return
            if not waits.startswith("armed"):
                armed = now
            if waits != said:
                said = waits
                self.get_logger().info(f"waiting: {waits}")
            if 0 < self.settings.wait < now - began:
                raise ReplayError(f"gave up after {self.settings.wait:g} s: {waits}")
            self._sleep(0.02)

    def _check_distance(self) -> None:
        distance, joint = self.replay.distance(self._measured.name, self._measured.position)
        if distance > self.settings.start_distance:
            raise ReplayError(
                f"the arm is {distance:.2f} rad from the beginning of {self.replay.name} at {joint}, allowed are "
                f"{self.settings.start_distance:g} rad; bring it nearer, or raise start_distance of this node and "
                "set start_action of the executor to blend"
            )

    def _play(self) -> None:
        s, replay, rejected = self.settings, self.replay, self._status.rejected
        self._start = self._now()
        ran = False
        for first in range(0, len(replay.rows), s.renew):
            ran = self._wait_until(self._start + first * replay.period, ran, rejected)
            self._publish(replay, first, self._start)
        ran = self._wait_until(self._start + replay.duration + AFTER, ran, rejected)
        if not ran:
            raise ReplayError(f"the executor never ran: {self._status.last_rejection or 'it heard no chunk'}")

    def _publish(self, replay: Replay, first: int, start: float) -> None:
        """Rows `first` and following of a replay that begins at `start` (s, ROS clock)."""
        s, self._number = self.settings, self._number + 1
        chunk = replay.chunk(
            first, s.execute, s.lookahead, start, chunk_id=self._number, epoch=self._status.epoch, **self._who
        )
        self._chunks.publish(convert.chunk_message(chunk, Time(nanoseconds=round(chunk.stamp * NS)).to_msg()))

    def _wait_until(self, due: float, ran: bool, rejected: int) -> bool:
        """Sleep until `due` (s, ROS clock), watching the executor; whether it has followed so far."""
        while True:
            status = self._status
            ran = ran or status.state == ExecutorStatus.RUNNING
            passed = self._now() - self._start
            if status.state not in READY:
                raise ReplayError(f"the executor is {status.state_text} after {passed:.1f} s: {_last(status.reasons)}")
            if not ran and passed > BEGIN_TIMEOUT and status.rejected > rejected:
                raise ReplayError(f"the executor refused the episode: {status.last_rejection}")
            if self._now() >= due:
                return ran
            self._sleep(min(0.005, max(0.0005, due - self._now())))

    def _sleep(self, seconds: float) -> None:
        if not rclpy.ok():
            raise ReplayError("interrupted; the executor stops by itself when no chunk comes")
        time.sleep(seconds)

    def _report(self) -> dict[str, tuple[float, float]]:
        found = {}
        for which in self._tracks:
            notes = list(self._tracks[which])
            if not notes:
                self.get_logger().warning(f"tracking: nothing {which} was heard")
                continue
            largest, rms = self.replay.deviation(
                np.array([t for t, _ in notes]), np.array([q for _, q in notes])
            )
            found[which] = (largest, rms)
            self.get_logger().info(
                f"tracking, {which} against recorded: max {largest:.4f} rad, rms {rms:.4f} rad, "
                f"{len(notes)} samples over {self.replay.duration:.1f} s"
            )
        return found


def _last(reasons: list[str]) -> str:
    return reasons[-1] if reasons else "no reason was given"


def main(args: list[str] | None = None) -> None:
    """Replay once; the exit status is 0 after the last row, 1 with one line of reason otherwise."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # rclpy calls it; an interrupted replay is no success
    rclpy.init(args=args)
    try:
        node = ReplayNode()
    except (ConfigError, BagError, DatasetError, EpisodeError, MessageError) as error:
        rclpy.logging.get_logger("replay").fatal(str(error))
        rclpy.try_shutdown()
        raise SystemExit(1) from None
    spinner = Spinner(node)
    status = 0
    try:
        node.run()
    except KeyboardInterrupt:
        status = 130
    except (ReplayError, EpisodeError) as error:
        rclpy.logging.get_logger("replay").fatal(str(error))
        status = 1
    spinner.close()
    raise SystemExit(status)


if __name__ == "__main__":
    main()
