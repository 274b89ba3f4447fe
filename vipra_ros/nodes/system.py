"""`vipra up policy robot:=sim` as a child process in a ROS domain and at a loopback address of its own.

With robot:=ADDRESS it runs in the domain of the caller, where the cameras are, and nothing simulated is added.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vipra_ros.up import end_with_parent

#: s that a system is given to end after an interrupt.
END_TIMEOUT = 6.0
#: s in which an executor that is there is heard of: Fast DDS says every 3 s who is there, and what it says at the start
#: of another one may be lost.
LOOK = 5.0
#: s for a domain drawn at random, in which nobody is expected.
GLANCE = 1.0
#: Hz; the rate of the data sets, half of the sim node's default.
CAMERA_RATE = 15.0
#: ROS parameters. The simulated arm, its controller, its cameras and the policy share this machine's cores: pictures
#: as often as the policy looks, fewer passes of the executor, and a pause of its loop is no danger here as it is on an
#: arm of metal. An episode begins with the hand open. Ends with the executor's, to which more may be appended.
PATIENT = f"""/**/sim:
  ros__parameters:
    camera_rate: {CAMERA_RATE}
/**/executor:
  ros__parameters:
    control_rate: 60.0
    overrun_fault: 5.0
    state_timeout: 5.0
    home_gripper: open
"""


class SessionError(RuntimeError):
    """The system does not do what the session needs; one line with the reason it gave."""


def own_domain() -> int:
    """ROS domain of a simulated run, with nobody in it; from here on this process stays on this computer.

    A service request reaches every server of its name, and who arms a simulated arm must not arm one of metal.

    Raises:
        SessionError: ROS_DOMAIN_ID names a domain in which an executor is.
    """
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    asked = os.environ.get("ROS_DOMAIN_ID")
    # Other runs on this machine start in the same second: no fixed order.
    for domain in [int(asked)] if asked else random.sample(range(1, 101), 100):
        if not _executors(domain, LOOK if asked else GLANCE):
            return domain
    raise SessionError(f"an executor is in ROS domain {asked or 1} of this computer, and would be commanded too; end "
                       "it, or unset ROS_DOMAIN_ID (or set another one)")


def _executors(domain: int, seconds: float) -> bool:
    from vipra_ros.nodes.spinner import lone_node  # rclpy; the rest of this module goes without

    node = lone_node("looking", domain)
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            # Node by node: the list of all services has those with a client alone too, a console's.
            for name, namespace in node.get_node_names_and_namespaces():
                with contextlib.suppress(RuntimeError):  # it has just gone
                    offered = node.get_service_names_and_types_by_node(name, namespace)
                    if any(service.endswith("/executor/arm") for service, _ in offered):
                        return True
            time.sleep(0.05)
        return False
    finally:
        node.destroy_node()
        node.context.shutdown()


class System:
    """`vipra up policy robot:=sim` as a child process; a simulated arm is alone in its ROS domain.

    Args:
        system: another one of `vipra_ros.graph`; `checkpoint` is for policy only.
        arguments: further launch arguments, name -> value.
        log: file for the output of the nodes; a temporary one when None.
        parameters: ROS parameters of the nodes, as a YAML file has them; with an arm of metal the nodes' own apply.
    """

    def __init__(
        self,
        checkpoint: str | Path = "",
        log: Path | None = None,
        system: str = "policy",
        parameters: str = PATIENT,
        **arguments: str,
    ):
        simulated = arguments.get("robot", "sim") == "sim"
        self.domain = own_domain() if simulated else int(os.environ.get("ROS_DOMAIN_ID") or 0)
        host = f"127.{random.randint(1, 250)}.{random.randint(0, 250)}.{random.randint(2, 250)}"
        given = {
            **({} if system == "sim" else {"robot": "sim"}),
            **({"checkpoint": str(checkpoint)} if system == "policy" else {}),
            "arm_on_start": "false",
            **arguments,
        }
        if simulated:  # two cores have no more to give than the rate of the shipped policy
            given = {"sim_host": host, "camera_rate": str(CAMERA_RATE), **given}
        self.log = Path(log or Path(tempfile.mkdtemp(prefix="vipra-")) / "system.log")
        own = simulated and "params_file" not in given
        self._parameters = self.log.with_name("parameters.yaml") if own else None
        if self._parameters:
            given["params_file"] = str(self._parameters)
        self._command = [
            sys.executable,
            "-m",
            "vipra_ros.cli",
            "up",
            system,
            *(f"{k}:={v}" for k, v in given.items()),
        ]
        self._text = parameters
        self._process: subprocess.Popen | None = None
        self._looked = -math.inf

    def __enter__(self) -> System:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self._parameters:
            self._parameters.write_text(self._text)
        environment = {**os.environ, "ROS_DOMAIN_ID": str(self.domain)}
        # A session of its own: Ctrl-C in our terminal reaches us alone, and we end the system in order. When we are
        # killed it is interrupted: no arm moves on without whoever started it.
        self._process = subprocess.Popen(
            self._command,
            env=environment,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: end_with_parent(signal.SIGINT),
        )
        return self

    def __exit__(self, *exc: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            if self._process.poll() is not None:
                return
            self._process.send_signal(number)
            try:
                self._process.wait(END_TIMEOUT)
                return
            except subprocess.TimeoutExpired:
                continue
        self._process.kill()
        self._process.wait()

    def wait(self, seconds: float) -> int:
        """Exit status of a system that ends by itself; -1 when it still runs after `seconds`."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return -1

    @property
    def pid(self) -> int:
        """Process (and session) id of `vipra up`."""
        return self._process.pid

    def check(self) -> None:
        """SessionError, with what it said last, when the system or one of its nodes has ended."""
        now, code = time.monotonic(), self._process.poll()
        if code is None and now - self._looked < 0.5:
            return
        self._looked = now
        lines = self.log.read_text(errors="replace").splitlines()
        died = next((x for x in lines if "process has died" in x), "")
        if code is None and not died:
            return
        # The reason stands before the notice of the death, in the node's own words: logged, raised, or "executor: ...".
        node = died.partition("] [")[2].partition("]")[0]
        marks = ("FATAL", "ERROR", "rror: ", f"[{node}] {node.rpartition('-')[0]}: ")
        said = [x.removeprefix(f"[{node}] ") for x in lines if x.startswith(f"[{node}]") and any(m in x for m in marks)]
        what = f"{node} ended" if died else f"the system ended with status {code}"
        last = next((x for x in reversed(lines) if x.strip()), "nothing was said")
        raise SessionError(f"{what}: {said[-1] if said else died or last} (log: {self.log})")


def processor_time(pid: int) -> float:
    """s of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
