"""A client of a running system: brings the arm home, lays out scenes, runs episodes and measures them.

Used by `vipra eval --ros`, the demo and the tests; `system.py` starts what it talks to.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from vipra_ros.learning import metrics
from vipra_ros.learning.results import JERK_RATE, EpisodeRecord
from vipra_ros.msg import ActionChunk, ExecutorStatus, PolicyStatus
from vipra_ros.nodes.quality import LATCHED
from vipra_ros.nodes.spinner import Spinner, lone_node
from vipra_ros.nodes.system import SessionError
from vipra_ros.sim import tasks
from vipra_ros.srv import ResetScene

#: s; a cold start reads torch, a checkpoint and a scene on machines that may be busy.
START_TIMEOUT = 120.0
#: s for an answer of a service; stopping and recovering take about one.
SERVICE_TIMEOUT = 10.0
#: s for an arm to stop swinging.
STILL_TIMEOUT = 5.0
#: m, half of the width of an open hand, and s for opening it; a hand that reports no width is taken for open.
OPEN_FINGER, HAND_TIMEOUT = 0.038, 5.0
#: s for the way home from anywhere.
HOME_TIMEOUT = 20.0
#: Of a camera's pictures.
CAMERA_TOPIC = "camera/{}/image_raw/compressed"
#: States in which the arm has stopped by itself.
ENDED = (ExecutorStatus.HOLD, ExecutorStatus.FAULT)


@dataclass
class Trace:
    """What was seen of one episode; times in s of the ROS clock.

    Attributes:
        commanded, measured: (time, q (7,), dq (7,)).
        chunks: (stamp, arrival, rows (H, A)).
    """

    began: float
    commanded: list[tuple] = field(default_factory=list)
    measured: list[tuple] = field(default_factory=list)
    chunks: list[tuple[float, float, np.ndarray]] = field(default_factory=list)
    periods: list[float] = field(default_factory=list)
    executed: int = 7
    record: EpisodeRecord | None = None


class Session:
    """Listens to a system and commands it, from a ROS node with a thread of its own.

    Args:
        domain: ROS_DOMAIN_ID.
        alive: called while waiting; raises when the system has ended.
        on_image: (camera, stamp s, JPEG bytes), in the ROS thread; None does not subscribe.
        on_status: every status of the executor, in the ROS thread.
        cameras: those that `on_image` gets.
        simulated: whether there is a scene to lay out.
    """

    def __init__(
        self,
        domain: int,
        alive: Callable[[], None] = lambda: None,
        on_image: Callable[[str, float, bytes], None] | None = None,
        on_status: Callable[[ExecutorStatus], None] = lambda status: None,
        cameras: Sequence[str] = ("front", "wrist"),
        simulated: bool = True,
    ):
        self._alive, self._on_image, self._on_status, self._simulated = alive, on_image, on_status, simulated
        self.node = node = lone_node("session", domain)
        self.executor_status: ExecutorStatus | None = None
        self.policy_status: PolicyStatus | None = None
        self.outcome: dict = {}
        self.chunk: ActionChunk | None = None
        self.trace: Trace | None = None
        self.finger = math.nan  # m, half of the hand's width as measured
        self._lock = threading.Lock()
        node.create_subscription(ExecutorStatus, "executor/status", self._on_executor, LATCHED)
        node.create_subscription(PolicyStatus, "policy/status", self._on_policy, LATCHED)
        node.create_subscription(String, "sim/outcome", self._on_outcome, LATCHED)
        node.create_subscription(ActionChunk, "policy/chunk", self._on_chunk, 1)
        node.create_subscription(JointState, "executor/joint_command", lambda m: self._on_joints(m, "commanded"), 200)
        node.create_subscription(JointState, "joint_states", lambda m: self._on_joints(m, "measured"), 200)
        for camera in cameras if on_image else ():
            node.create_subscription(
                CompressedImage,
                CAMERA_TOPIC.format(camera),
                lambda m, c=camera: on_image(c, _seconds(m.header.stamp), bytes(m.data)),
                qos_profile_sensor_data,
            )
        self._words = node.create_publisher(String, "policy/instruction", LATCHED)
        self._services = {
            name: node.create_client(Trigger, f"executor/{name}") for name in ("arm", "stop", "home", "recover")
        }
        self._reset = node.create_client(ResetScene, "sim/reset")
        self._spinner = Spinner(node)

    def close(self) -> None:
        """Leave the ROS graph."""
        self._spinner.close()

    @property
    def now(self) -> float:
        """s, ROS clock."""
        return self.node.get_clock().now().nanoseconds * 1e-9

    # --- waiting and asking --------------------------------------------------------------------------------

    def until(
        self,
        condition: Callable[[], bool],
        seconds: float,
        what: str,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        """Wait for `condition`; SessionError with what was seen last when `seconds` have passed."""
        end = time.monotonic() + seconds
        while not condition():
            self._alive()
            tick()
            if time.monotonic() > end:
                raise SessionError(f"{what} did not happen in {seconds:.0f} s; {self.seen()}")
            time.sleep(0.02)

    def seen(self) -> str:
        """The last states in one line."""
        parts = []
        for name, status in (("executor", self.executor_status), ("policy", self.policy_status)):
            parts.append(
                f"{name} {status.state_text} {'; '.join(status.reasons)}".strip() if status else f"{name} not heard of"
            )
        return ", ".join(parts)

    def wait_ready(self, seconds: float = START_TIMEOUT, tick: Callable[[], None] = lambda: None) -> None:
        """Until executor, policy and, simulated, the scene are there and the policy has complete observations."""

        def ready() -> bool:
            policy, words = self.policy_status, "no instruction"
            if policy is not None and policy.state == PolicyStatus.FAULT:
                raise SessionError(f"the policy cannot go on: {'; '.join(policy.reasons)}")
            complete = policy is not None and (
                policy.state in (PolicyStatus.PAUSED, PolicyStatus.RUNNING)
                or policy.state == PolicyStatus.WAITING
                and all(r.startswith((words, "the executor is")) for r in policy.reasons)
            )
            scene = not self._simulated or self._reset.service_is_ready()
            return complete and self.executor_status is not None and scene

        self.until(ready, seconds, "the start of the system", tick)

    def check(self) -> None:
        """Raises when the system has ended."""
        self._alive()

    def scene_ready(self) -> bool:
        """Whether scenes can be laid out."""
        return self._reset.service_is_ready()

    def call(self, name: str) -> str:
        """Ask the executor (arm, stop, home, recover); its message. SessionError when it refuses."""
        answer = self._ask(self._services[name], Trigger.Request(), f"executor/{name}")
        if not answer.success:
            raise SessionError(f"executor/{name}: {answer.message}")
        return answer.message

    def _insist(self, name: str) -> None:
        """Ask until granted: after a motion the arm swings a little, and the executor wants it still."""
        end = time.monotonic() + STILL_TIMEOUT
        while True:
            try:
                self.call(name)
                return
            except SessionError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def instruct(self, text: str) -> None:
        """Tell the policy what to do."""
        self._words.publish(String(data=text))

    def home(self, tick: Callable[[], None] = lambda: None) -> None:
        """From any state: stop, recover if needed, go home; ends in IDLE."""
        if self.executor_status.state == ExecutorStatus.FAULT:
            self.call("recover")
        self.halt(tick)
        self._insist("home")
        time.sleep(0.15)  # the state at the call is published until the next pass
        self._settle(tick)
        if not any("home" in r for r in self.executor_status.reasons):
            raise SessionError(f"the arm did not get home; {self.seen()}")

    def open_hand(self, tick: Callable[[], None] = lambda: None) -> None:
        """Until the hand is open: a policy that sees a closed one at the start believes that it holds something."""
        what = "an open hand (give the executor home_gripper: open in params_file, it then opens on the way home)"
        self.until(lambda: not self.finger < OPEN_FINGER, HAND_TIMEOUT, what, tick)

    def _settle(self, tick: Callable[[], None]) -> None:
        time.sleep(0.15)
        still = (ExecutorStatus.IDLE, *ENDED)  # an arm that faults on the way does not come to IDLE by itself
        self.until(lambda: self.executor_status.state in still, HOME_TIMEOUT, "a stop", tick)

    def arm(self) -> None:
        """Arm as soon as the arm stands still; ends in ARMED or RUNNING."""
        self._insist("arm")
        ready = (ExecutorStatus.ARMED, ExecutorStatus.RUNNING)  # the first chunk may come before its status
        self.until(lambda: self.executor_status.state in ready, SERVICE_TIMEOUT, "arming")

    def halt(self, tick: Callable[[], None] = lambda: None) -> None:
        """Stop the arm; ends in IDLE, or where it stopped by itself."""
        self.call("stop")
        self._settle(tick)

    def reset(self, task: str, seed: int) -> str:
        """Lay out a scene; its instruction."""
        self.outcome = {}  # the same scene once more: its old success must not count
        answer = self._ask(self._reset, ResetScene.Request(task=task, seed=seed), "sim/reset")
        if not answer.success:
            raise SessionError(f"sim/reset: {answer.message}")
        self.until(
            lambda: self.outcome.get("seed") == seed and self.outcome.get("task") == task,
            SERVICE_TIMEOUT,
            "the word of the new scene",
        )
        return answer.instruction

    def _ask(self, client, request, name: str):
        self.until(client.service_is_ready, SERVICE_TIMEOUT, f"service {name}")
        future = client.call_async(request)
        self.until(future.done, SERVICE_TIMEOUT, f"an answer of {name}")
        return future.result()

    # --- episodes ------------------------------------------------------------------------------------------

    def episode(
        self,
        task: str,
        seed: int,
        seconds: float | None = None,
        rest: float = 0.0,
        tick: Callable[[], None] = lambda: None,
    ) -> Trace:
        """Home, new scene, words, arm; then watch until success, the end of the time, or a stop.

        Args:
            seconds: limit; the task's own when None.
            rest: s watched after the success.
        """
        goal = tasks.sample_start(task, seed).goal
        self.home(tick)
        self.open_hand(tick)
        self.instruct(self.reset(task, seed))
        time.sleep(0.2)  # a frame of the new scene for every camera
        self.arm()
        before = self.executor_status
        with self._lock:
            self.trace = trace = Trace(self.now)
        limit = seconds if seconds is not None else tasks.TIME_LIMIT[task]
        done_at, stopped = math.nan, ""
        while self.now - trace.began < limit:
            self._alive()
            tick()
            time.sleep(0.02)
            if self.outcome.get("success") and math.isnan(done_at):
                done_at = self.now
            if self.now - done_at >= rest:
                break
            status = self.executor_status
            if status.state in ENDED:
                stopped = "; ".join(status.reasons) or status.state_text
                break
        end, limited = self.now, self.executor_status.limited - before.limited
        acted_on = self.outcome.get("acted_on")  # as `done_at`: what happens while the arm stops is no success in time
        with self._lock:
            self.trace = None
        if not stopped:
            self.halt(tick)
        after = self.executor_status
        period = trace.periods[-1] if trace.periods else 1 / 15
        accepted, refused = after.accepted - before.accepted, after.rejected - before.rejected
        commanded = [np.array(c) for c in zip(*trace.commanded)] if len(trace.commanded) > 1 else None
        trace.record = EpisodeRecord(
            task=task, seed=seed, instruction=goal.instruction, colour=goal.colour, zone=goal.zone,
            success=not math.isnan(done_at),
            acted_on=acted_on,
            time_to_success=done_at - trace.began,
            seconds=end - trace.began,
            chunks=accepted + refused,
            rejected=refused,
            rows=metrics.rows_executed(trace.chunks, trace.executed, period, end),
            limited=limited,
            stopped=stopped,
            latencies=[arrival - stamp for stamp, arrival, _ in trace.chunks],
            boundaries=metrics.boundary_steps(trace.chunks, period).tolist(),
            commanded=metrics.resample(*commanded, 1 / JERK_RATE) if commanded else np.zeros((0, 7)),
        )
        return trace

    # --- messages in ---------------------------------------------------------------------------------------

    def _on_executor(self, message: ExecutorStatus) -> None:
        self._on_status(message)  # first: who acts on a state that it sees here has been told of it
        self.executor_status = message

    def _on_policy(self, message: PolicyStatus) -> None:
        self.policy_status = message

    def _on_outcome(self, message: String) -> None:
        self.outcome = json.loads(message.data)

    def _on_chunk(self, message: ActionChunk) -> None:
        self.chunk = message
        with self._lock:
            if self.trace is None:
                return
            rows = np.array([*message.actions, *message.lookahead]).reshape(-1, message.action_size)
            self.trace.chunks.append((_seconds(message.header.stamp), self.now, rows))
            self.trace.periods.append(message.step_period)
            self.trace.executed = message.execute_steps

    def _on_joints(self, message: JointState, what: str) -> None:
        if what == "measured" and len(message.position) > 7:
            self.finger = message.position[7]
        with self._lock:
            if self.trace is not None:
                row = _seconds(message.header.stamp), np.array(message.position[:7]), np.array(message.velocity[:7])
                getattr(self.trace, what).append(row)


def _seconds(stamp) -> float:
    return stamp.sec + stamp.nanosec * 1e-9
