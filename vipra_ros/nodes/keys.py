"""`vipra keys`: the recorder at one's fingertips, from any terminal.

A client of the recorder's services: `vipra up` gives its children no keyboard, and the person at the leader arm
may sit at another machine. One line shows what is recorded; an ended episode leaves its table.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile
from std_msgs.msg import String
from std_srvs.srv import Trigger

from vipra_ros.data.reception import table
from vipra_ros.nodes.quality import LATCHED
from vipra_ros.nodes.terminal import QUIT, Terminal

#: Key -> service of the recorder.
COMMANDS = {"s": "start", "y": "success", "n": "failure", "d": "discard"}
RELABEL = "i"
#: s until a service that does not answer is given up.
ANSWER_TIMEOUT = 5.0
WIDTH = 79


class Keys:
    """Turns keys into calls and statuses into lines.

    Args:
        node: to make publishers and clients with.
        say: prints a line above the status line.
        ask: asks for a line of text; empty: nothing is changed.
    """

    def __init__(self, node, say: Callable[[str], None], ask: Callable[[str], str]):
        self._say, self._ask, self._node = say, ask, node
        self.status: dict = {}
        self._waiting: tuple[str, object, float] | None = None
        self._pressed: deque[str] = deque()  # while an answer is due
        self._clients = {key: node.create_client(Trigger, f"recorder/{name}") for key, name in COMMANDS.items()}
        self._words = node.create_publisher(String, "recorder/relabel", QoSProfile(depth=10))
        node.create_subscription(String, "recorder/status", self._on_status, LATCHED)

    def press(self, key: str) -> bool:
        """Do what `key` says; False to quit."""
        if key in QUIT:
            return False
        if not self.status:
            self._say("no recorder is heard yet; is it running, in this namespace and ROS_DOMAIN_ID?")
        elif key in COMMANDS:
            self._pressed.append(key)
        elif key == RELABEL:
            text = self._ask("instruction: ")
            if text.strip():
                self._words.publish(String(data=text))
            if self._waiting:  # nobody listened for an answer while the text was typed
                self._waiting = (*self._waiting[:2], time.monotonic())
        return True

    def look(self) -> None:
        """Call the next service; say what it answered, or that it did not."""
        if self._waiting is None:
            if self._pressed:
                key = self._pressed.popleft()
                self._waiting = (COMMANDS[key], self._clients[key].call_async(Trigger.Request()), time.monotonic())
            return
        name, future, since = self._waiting
        if future.done():
            self._say(future.result().message)
        elif time.monotonic() - since > ANSWER_TIMEOUT:
            self._say(f"recorder/{name} did not answer in {ANSWER_TIMEOUT:.0f} s; is the recorder still running?")
        else:
            return
        self._waiting = None

    def line(self) -> str:
        """What is going on and what can be pressed, at most `WIDTH` columns."""
        s = self.status
        if not s:
            return "waiting for recorder/status   q quit"
        if s["state"] != "RECORDING":
            disk = f"{s.get('rate_mb', 0)} MB/s coming in, {s.get('free_mb', 0) / 1000:.0f} GB free"
            return f"{s['state']}  {disk}   s start  i instruction  q quit"[:WIDTH]
        count = sum(s["counts"].values())
        lost = f"  DROPPED {s['dropped']}" if s["dropped"] else ""
        return f"REC {s.get('seconds', 0)} s  {count} messages{lost}   y yes  n no  d discard  i instruction"[:WIDTH]

    def _on_status(self, message: String) -> None:
        known, before = bool(self.status), self.status.get("last", {})
        words = self.status.get("instruction", "")
        self.status = json.loads(message.data)
        if known and self.status.get("instruction") not in ("", None, words):
            self._say(f"{self.status['episode'] or 'the next episodes'}: {self.status['instruction']!r}")
        last = self.status["last"]
        if not known or not last or last == before:  # what had ended before we came is old news
            return
        if last.get("episode") != before.get("episode"):
            self._ended(last)
        elif last.get("instruction") != before.get("instruction"):
            self._say(f"{last['episode']} is {last['instruction']!r} now")

    def _ended(self, last: dict) -> None:
        if not last.get("saved"):
            self._say(f"{last['episode']}: not kept {'; '.join(last.get('flags', []))}".rstrip())
            return
        label = {True: "success", False: "failure"}.get(last.get("success"), "no label")
        good = "good" if not last["flags"] else f"BAD, {len(last['flags'])} flags"
        self._say(f"{last['episode']}: {last['seconds']:.1f} s, {label}, {good}, {last['instruction']!r}")
        self._say(table(last["reception"], last["flags"], WIDTH, colour=sys.stdout.isatty()))


def run(namespace: str = "") -> int:
    """Until `q`; 1 without a terminal."""
    if not sys.stdin.isatty():
        print("vipra keys needs a terminal; from a script call the services recorder/start, success, failure, discard")
        return 1
    rclpy.init(signal_handler_options=rclpy.SignalHandlerOptions.NO)
    node = rclpy.create_node("recorder_keys", namespace=namespace)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    with Terminal() as terminal:
        keys = Keys(node, terminal.say, terminal.ask)
        try:
            while True:
                executor.spin_once(timeout_sec=0.02)
                keys.look()
                terminal.show(keys.line())
                key = terminal.key(0.02)
                if key and not keys.press(key):
                    break
        except KeyboardInterrupt:
            pass
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()
    return 0
