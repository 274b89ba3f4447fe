"""What the console knows: the last word of every topic, when it was heard, and a minute of history.

Messages are kept as they come (fields as in msg/*.msg), so this module knows no ROS. Everything is judged by age: a
state that was true is not shown as if it were.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vipra_ros.control import kinematics
from vipra_ros.control.profile import RobotProfile

#: s without a status (10 Hz and 2 Hz are promised) until it counts no more; the same for a picture.
SILENT, POLICY_SILENT, BLIND = 1.0, 3.0, 1.0
#: s of history, and between two of its points.
SPAN, EVERY = 60.0, 0.25
#: State -> colour of the banner.
COLOURS = {"RUNNING": "#1b8a4b", "ARMED": "#11758a", "IDLE": "#4a5866", "HOLD": "#b06d00", "STOPPING": "#b06d00",
           "FAULT": "#b3261e"}
UNKNOWN = "#6a1b4d"


def by_button(text: str) -> str:
    """What the executor says of its services, in words of the page, which has buttons for them."""
    return re.sub(r"call executor/(arm|hold|home|recover)\b", lambda m: f"press {m[1].capitalize()}", text)


@dataclass(frozen=True)
class Banner:
    """The executor in large type."""

    text: str
    colour: str
    reasons: tuple[str, ...]
    detail: str


@dataclass(frozen=True)
class Picture:
    """The newest image of a camera as it came, JPEG or PNG, and when (s, monotonic)."""

    data: bytes
    arrived: float


class ConsoleState:
    """Filled by the ROS shell's thread, read by the page's.

    Args:
        profile: of the robot, for limits and geometry.
        cameras: names, in the order shown.
        now: s, monotonic.
    """

    def __init__(self, profile: RobotProfile, cameras: tuple[str, ...], now: Callable[[], float] = time.monotonic):
        self.profile, self.cameras, self.now = profile, cameras, now
        self._lock = threading.Lock()
        self.executor = self.policy = None
        self.recorder: dict[str, Any] = {}
        self.trial: dict[str, Any] = {}
        self.outcome: dict[str, Any] = {}
        self.counts = {"success": 0, "failure": 0, "no label": 0, "discarded": 0}
        self.joints: dict[str, tuple[float, np.ndarray]] = {}
        self.images: dict[str, Picture] = {}
        self.chunk: tuple[float, np.ndarray, int] | None = None
        self.listened = False  # whether the executor listens to the dead-man
        self._heard = {"executor": -math.inf, "policy": -math.inf, "recorder": -math.inf, "trial": -math.inf}
        self._history: deque[tuple[float, ...]] = deque(maxlen=int(SPAN / EVERY) + 8)

    # --- in ------------------------------------------------------------------------------------------------

    def on_executor(self, status: Any) -> None:
        """A vipra_ros/ExecutorStatus."""
        now = self.now()
        with self._lock:
            self.executor, self._heard["executor"] = status, now
            if not self._history or now - self._history[-1][0] >= EVERY:
                moves = status.state_text == "RUNNING"
                self._history.append((now, status.chunk_rate, status.action_rate,
                                      1e3 * status.obs_to_action_p50 if moves else math.nan,
                                      100 * status.limiter_active if moves else math.nan))

    def on_policy(self, status: Any) -> None:
        """A vipra_ros/PolicyStatus."""
        self.policy, self._heard["policy"] = status, self.now()

    def on_recorder(self, status: dict[str, Any]) -> None:
        """The JSON of recorder/status; an episode that ends while we listen is counted."""
        known, before = bool(self.recorder), self.recorder.get("last", {})
        self.recorder, self._heard["recorder"] = status, self.now()
        last = status.get("last", {})
        if known and last and last.get("episode") != before.get("episode"):
            label = {True: "success", False: "failure"}.get(last.get("success"), "no label")
            self.counts["discarded" if not last.get("saved") else label] += 1

    def on_trial(self, status: dict[str, Any]) -> None:
        """The JSON of rollouts/status."""
        self.trial, self._heard["trial"] = status, self.now()

    def on_joints(self, what: str, q: np.ndarray) -> None:
        """`what`: measured or commanded; q (7,) rad."""
        self.joints[what] = (self.now(), q)

    def on_image(self, camera: str, data: bytes) -> None:
        """A compressed image."""
        self.images[camera] = Picture(data, self.now())

    def on_chunk(self, rows: np.ndarray, execute: int) -> None:
        """Rows (H, A), absolute joint positions."""
        self.chunk = (self.now(), rows, execute)

    # --- out -----------------------------------------------------------------------------------------------

    def age(self, who: str) -> float:
        """s since executor, policy, recorder or trial was heard; infinity: never."""
        return self.now() - self._heard[who]

    def banner(self) -> Banner:
        """State and reasons of the executor; silence is a state of its own."""
        s, age = self.executor, self.age("executor")
        if s is None:
            return Banner("NO EXECUTOR", UNKNOWN, ("nothing is heard on executor/status; start the executor, or "
                                                   "check namespace and ROS_DOMAIN_ID",), "")
        if age > SILENT:
            return Banner("SILENT", UNKNOWN, (f"the executor was last heard {age:.0f} s ago, in {s.state_text}; "
                                              f"hand on the emergency stop",), s.robot)
        detail = s.robot + (", DRY RUN" if s.dry_run and "dry run" not in s.robot else "")
        # Armed is at rest by design: the arm is taken over with the first motion. Running without it is news.
        if s.state_text == "RUNNING" and not s.in_control and not s.dry_run:
            detail += ", not in control"
        reasons = tuple(by_button(r) for r in reversed(s.reasons))
        return Banner(s.state_text, COLOURS.get(s.state_text, UNKNOWN), reasons, detail)

    def policy_line(self) -> str:
        """The policy in one line."""
        p = self.policy
        if p is None:
            return "no policy heard"
        if self.age("policy") > POLICY_SILENT:
            return f"policy silent for {self.age('policy'):.0f} s"
        # A reason may hold a path or an address: in trials the terminal tells it, without them.
        why = f": {by_button(p.reasons[-1])}" if p.reasons and not self.trial_lines() else ""
        return f"policy {p.state_text}{why}"

    def words_line(self) -> tuple[str, str]:
        """What the policy says about its words, and these words."""
        p = self.policy
        if p is None or not p.instruction:
            return "The policy has no words yet.", ""
        if self.age("policy") > POLICY_SILENT:
            return "The policy is silent; its words were: ", p.instruction
        if p.state_text == "LOADING":
            return "The policy loads, and will answer: ", p.instruction
        return "The policy answers: ", p.instruction

    def recorder_line(self) -> tuple[str, str]:
        """State of the recorder ("" when there is none) and a line about it."""
        r = self.recorder
        if not r or self.age("recorder") > POLICY_SILENT:
            return "", "no recorder; start the system with record:=FOLDER"
        if r["state"] == "RECORDING":
            lost = f", {r['dropped']} DROPPED" if r.get("dropped") else ""
            return r["state"], f"recording {r.get('seconds', 0):.0f} s, {sum(r['counts'].values())} messages{lost}"
        last = r.get("last", {})
        if last.get("saved"):
            label = {True: "success", False: "failure"}.get(last.get("success"), "no label")
            flags = "; ".join(last.get("flags") or [])
            return r["state"], (f"{last['episode']}: {last.get('seconds', 0):.1f} s, {label}, "
                                f"{f'flags: {flags}' if flags else 'good'}")
        return r["state"], f"{last['episode']}: not kept" if last else "ready to record"

    def trial_lines(self) -> tuple[str, ...]:
        """What `vipra rollouts` says of the trial under way; none without trials."""
        if self.age("trial") > POLICY_SILENT:
            return ()
        return tuple(by_button(line) for line in (*self.trial["lines"], self.trial["refused"]) if line)

    def trial_question(self) -> tuple[str, str]:
        """What it asks, and what answers: "go", "label", or "" when nothing is asked."""
        if not self.trial_lines() or not self.trial["buttons"]:
            return "", ""
        go = "start" in self.trial["buttons"]
        return ("Go: " if go else "") + by_button(self.trial["asks"]), "go" if go else "label"

    def series(self) -> dict[str, tuple[list[float], list[float]]]:
        """Name -> (times s, values): chunks/s, actions/s, latency ms, limiter %."""
        with self._lock:
            rows = list(self._history)
        times = [r[0] for r in rows]
        names = ("chunks", "actions", "latency", "limiter")
        return {name: (times, [r[i + 1] for r in rows]) for i, name in enumerate(names)}

    def joint(self, what: str) -> np.ndarray | None:
        """(7,) rad when heard within `SILENT` s."""
        at, q = self.joints.get(what, (-math.inf, None))
        return q if self.now() - at <= SILENT else None

    def picture(self, camera: str) -> Picture | None:
        """The newest picture, however old."""
        return self.images.get(camera)

    def blind(self, camera: str) -> str:
        """What is wrong with a camera, empty when its picture is fresh."""
        found = self.images.get(camera)
        if found is None:
            return "no picture yet"
        age = self.now() - found.arrived
        if age > BLIND:
            return f"picture is {age:.0f} s old"
        p = self.policy
        if p is not None and camera in p.cameras and list(p.frozen)[list(p.cameras).index(camera)]:
            return "picture does not change"
        return ""

    def plan_points(self, camera: str) -> tuple[np.ndarray, int] | None:
        """The newest chunk as shares (H, 2) of the picture's sides and its rows to execute.

        Only the simulator's fixed camera is known well enough; None otherwise, or when the chunk is old.
        """
        chunk = self.chunk
        if chunk is None or camera != "front" or not self.outcome or self.now() - chunk[0] > SILENT:
            return None
        from vipra_ros.sim.projection import Pinhole

        points = kinematics.forward(self.profile, chunk[1][:, :7])[:, :3, 3]
        return Pinhole.front(1).pixels(points), chunk[2]
