"""The operator's answers to `vipra rollouts` as services, beside the keys of its terminal; `vipra console` calls them.

A button counts only for what is asked at that moment: a press that comes late is refused, never kept for the next
trial. What is said is what the terminal says: letters, no names of policies.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from rclpy.node import Node
from std_msgs.msg import String
from std_srvs.srv import Trigger

from vipra_ros.nodes.quality import LATCHED

#: Button -> key of the terminal that says the same.
KEYS = {"start": "\n", "success": "y", "failure": "n", "invalid": "i"}
#: Those that label a trial.
LABELS = ("success", "failure", "invalid")
#: s between two statuses; a page takes silence for the end of the trials.
PERIOD = 0.5


class TrialButtons:
    """Serves rollouts/start, success, failure and invalid, and publishes rollouts/status.

    Args:
        node: spins in a thread of its own; its end is theirs.
    """

    def __init__(self, node: Node):
        self._lock = threading.Lock()
        self._lines: list[str] = []
        self._what, self._names, self._refused, self._pressed = "", (), "", ""
        self._status = node.create_publisher(String, "rollouts/status", LATCHED)
        for name in ("start", "success", "failure", "invalid"):
            node.create_service(Trigger, f"rollouts/{name}", partial(self._on_press, name))
        node.create_timer(PERIOD, self._publish)

    def tell(self, lines: list[str]) -> None:
        """What goes on, in the words of the terminal; the first line is the headline."""
        self._lines = lines
        self._publish()

    @contextmanager
    def asking(self, what: str, *names: str, refused: str = "") -> Iterator[None]:
        """Inside, the buttons `names` count; `what` is the question, `refused` what came of the answer before."""
        self._ask(what, names, refused)
        try:
            yield
        finally:
            self._ask()

    def key(self) -> str:
        """The key of the button that was pressed, once; empty without one."""
        with self._lock:
            name, self._pressed = self._pressed, ""
        return KEYS.get(name, "")

    def _ask(self, what: str = "", names: tuple[str, ...] = (), refused: str = "") -> None:
        with self._lock:
            self._what, self._names, self._refused, self._pressed = what, names, refused, ""
        self._publish()

    def _on_press(self, name: str, request: Trigger.Request, answer: Trigger.Response) -> Trigger.Response:
        with self._lock:
            answer.success = name in self._names and not self._pressed
            if answer.success:
                self._pressed = name
            what = self._what
        said = self._lines[0] if name in LABELS and self._lines else what
        answer.message = said if answer.success else f"not asked for now; {what or 'wait for the next question'}"
        return answer

    def _publish(self) -> None:
        with self._lock:
            said = {"lines": self._lines, "asks": self._what, "buttons": self._names, "refused": self._refused}
        self._status.publish(String(data=json.dumps(said)))
