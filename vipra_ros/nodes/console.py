"""ROS shell of the operator console: topics into its state, its commands into services and topics.

Publishes executor/deadman (std_msgs/Bool) at 20 Hz while hold-to-run is held, and policy/instruction. Pictures are
passed through as they came.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from functools import partial

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from vipra_ros.config import param
from vipra_ros.console.access import Access
from vipra_ros.console.commands import CommandServer
from vipra_ros.console.deadman import PROOF, DeadMan, Pulse
from vipra_ros.console.state import ConsoleState, by_button
from vipra_ros.console.web import PageServer
from vipra_ros.control.profile import JOINTS, load_profile
from vipra_ros.data.topics import Topics
from vipra_ros.msg import ActionChunk, ExecutorStatus, PolicyStatus
from vipra_ros.nodes import convert
from vipra_ros.nodes.parameters import declare
from vipra_ros.nodes.quality import LATCHED
from vipra_ros.nodes.run import serve
from vipra_ros.serving.contract import read_token

LATEST = QoSProfile(depth=1)
#: What the page may ask for -> service.
SERVICES = {name: f"executor/{name}" for name in ("arm", "stop", "hold", "home", "recover", "reset")}
SERVICES |= {name: f"recorder/{name}" for name in ("start", "success", "failure", "discard")}
SERVICES |= {f"trial_{name}": f"rollouts/{name}" for name in ("start", "success", "failure", "invalid")}
#: s for an answer; recovering takes about one, saving an episode on a slow disk several.
PATIENCE = 6.0
#: s between two sendings of a stop that is not answered, and how long it is tried.
AGAIN, STOP_PATIENCE = 0.5, 3.0


@dataclass(frozen=True)
class ConsoleSettings:
    """Parameters of the node."""

    host: str = param("127.0.0.1", doc="address of the page; another than this machine needs token_file")
    port: int = param(8090, doc="port of the page", low=1, high=65535)
    command_port: int = param(0, doc="port of the commands, 0: the one after the page's", low=0, high=65535)
    token_file: str = param("", doc="file with what the operator types in, at least 16 characters")
    cameras: tuple[str, ...] = param(("front", "wrist"), doc="cameras shown, in this order")
    deadman_proof: float = param(
        PROOF, doc="hold-to-run: how long one answer of the browser holds; added to the executor's deadman_timeout",
        unit="s", low=0.15, high=2.0,
    )
    profile: str = param("fr3", doc="robot profile: a name in config/robots or the path of a YAML file")


class ConsoleNode(Node):
    """See the module's text."""

    def __init__(self) -> None:
        super().__init__("console")
        self.failure: Exception | None = None
        self.settings = s = declare(self, ConsoleSettings)
        self.access = Access(s.host, s.port, s.command_port or s.port + 1, read_token(s.token_file))
        self.state = ConsoleState(load_profile(s.profile), s.cameras)
        self.deadman = DeadMan(proof=s.deadman_proof)
        self._commands = CommandServer(self.access, self.act, self.deadman)  # takes the ports before anything starts
        from vipra_ros.console.page import make_app  # NiceGUI: a second, and only when everything else is well

        self.page = PageServer(make_app(self.state, self.access), self.access)
        self._words = self.create_publisher(String, "policy/instruction", LATCHED)
        self._beat = self.create_publisher(Bool, "executor/deadman", LATEST)
        self._pulse = Pulse(self.deadman, lambda: self._beat.publish(Bool(data=True)))
        self._asked = {name: self.create_client(Trigger, topic) for name, topic in SERVICES.items()}
        names, hear = Topics(), self.create_subscription
        hear(ExecutorStatus, "executor/status", self._on_executor, LATCHED)
        hear(PolicyStatus, "policy/status", self.state.on_policy, LATCHED)
        hear(String, "recorder/status", lambda m: self.state.on_recorder(json.loads(m.data)), LATCHED)
        hear(String, "rollouts/status", lambda m: self.state.on_trial(json.loads(m.data)), LATCHED)
        hear(String, "sim/outcome", self._on_outcome, LATCHED)
        hear(ActionChunk, "policy/chunk", self._on_chunk, LATEST)
        # Ten a second would do, but the publishers send 100 and a reader cannot ask for fewer: the last one is kept.
        hear(JointState, "joint_states", partial(self._on_joints, "measured"), qos_profile_sensor_data)
        hear(JointState, "executor/joint_command", partial(self._on_joints, "commanded"), qos_profile_sensor_data)
        for camera in s.cameras:
            hear(CompressedImage, names.image_of(camera), partial(self._on_image, camera), qos_profile_sensor_data)

    def __enter__(self) -> ConsoleNode:
        self._pulse.__enter__()
        self._commands.__enter__()
        self.page.__enter__()
        who = "this machine" if self.access.local else "the network, with the token"
        self.get_logger().info(f"open http://{self.access.host}:{self.access.port} (for {who})")
        return self

    def __exit__(self, *exc: object) -> None:
        """The dead-man first. A page that is gone already is a failure: a console without it is no use."""
        if not self.page.alive:
            self.failure = RuntimeError("the page's server ended")
        self._pulse.__exit__()
        self._commands.__exit__()
        self.page.__exit__()

    # --- out -----------------------------------------------------------------------------------------------

    def act(self, name: str, text: str = "") -> tuple[bool, str]:
        """Do a command of the page; called by a thread of its own. (done, what to tell the operator)."""
        if name == "instruction":
            words = " ".join(text.split())
            if not words:
                return False, "no words; write what to do"
            self._words.publish(String(data=words))
            return True, f"given: {words}"
        if name not in SERVICES:
            return False, f"no command {name!r}; known: {', '.join((*SERVICES, 'instruction'))}"
        if name == "stop":
            return self._stop()
        client = self._asked[name]
        if not client.service_is_ready():
            return False, f"nobody offers {SERVICES[name]}; is the {SERVICES[name].split('/')[0]} running?"
        answer = self._wait([self._send(client)], PATIENCE)
        if answer is None:
            return False, f"{SERVICES[name]} did not answer in {PATIENCE:.0f} s"
        return answer[0], by_button(answer[1])

    def _stop(self) -> tuple[bool, str]:
        """Sent at once, ready or not, and again until it is answered."""
        end, sent = time.monotonic() + STOP_PATIENCE, []
        while time.monotonic() < end:
            sent.append(self._send(self._asked["stop"]))
            answer = self._wait(sent, AGAIN)
            if answer is not None:
                return answer
        return False, f"the executor did not answer in {STOP_PATIENCE:.0f} s. USE THE EMERGENCY STOP"

    def _send(self, client) -> tuple:
        """(future, event of its end) of a call under way."""
        future, over = client.call_async(Trigger.Request()), threading.Event()
        future.add_done_callback(lambda _: over.set())
        return future, over

    def _wait(self, sent: list[tuple], seconds: float) -> tuple[bool, str] | None:
        sent[-1][1].wait(seconds)
        for future, over in sent:
            if over.is_set() and future.result() is not None:
                return future.result().success, future.result().message
        return None

    # --- in ------------------------------------------------------------------------------------------------

    def _on_executor(self, message: ExecutorStatus) -> None:
        self.state.on_executor(message)
        self.state.listened = self._beat.get_subscription_count() > 0

    def _on_outcome(self, message: String) -> None:
        self.state.outcome = json.loads(message.data)

    def _on_chunk(self, message: ActionChunk) -> None:
        chunk = convert.chunk(message, 0.0)
        whole = chunk.actions.ndim == 2 and chunk.actions.shape[1] == JOINTS + 1
        if message.action_space == ActionChunk.JOINT_POSITION and whole:  # the executor says what is wrong with others
            self.state.on_chunk(np.vstack([chunk.actions, chunk.lookahead]), message.execute_steps)

    def _on_joints(self, what: str, message: JointState) -> None:
        if len(message.position) >= JOINTS:
            self.state.on_joints(what, np.array(message.position[:JOINTS]))

    def _on_image(self, camera: str, message: CompressedImage) -> None:
        self.state.on_image(camera, bytes(message.data))


def run(host: str, port: int, token_file: str, camera: list[str], profile: str, namespace: str) -> None:
    """`vipra console`: the node, with its parameters from the command line."""
    given = {"host": host, "port": str(port), "token_file": token_file, "profile": profile}
    given["cameras"] = f"[{', '.join(camera)}]" if camera else ""
    words = [w for name, value in given.items() if value for w in ("-p", f"{name}:={value}")]
    main(["--ros-args", *words, *(["-r", f"__ns:=/{namespace.strip('/')}"] if namespace else [])])


def main(args: list[str] | None = None) -> None:
    """Run until SIGINT or SIGTERM, or until the page's server ends."""
    _, failure = serve(args, "console", ConsoleNode, lambda node: not node.page.alive)
    if failure is not None:
        print(f"console: {failure}", flush=True)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
