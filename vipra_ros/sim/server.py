"""The table behind a simulated Franka controller: a robot at an address, spoken to over the real FCI protocol.

franky (libfranka) connects to it as to hardware; only the host name differs. Physics and protocol run in a
process of their own (`table.py`); this side starts it, places things, and reads what is where.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import mujoco
from franky_sim.mujoco_simulator import MujocoSimulator

from . import scene, tasks
from .table import SharedState, SimulatorError, start_to_json
from .world import World

#: What franky_sim says when it cannot bind the ports of a controller at the address.
TAKEN = "Could not find available hostname"
#: s that the process may take to open its sockets, to place cubes, and to end.
START_TIMEOUT, PLACE_TIMEOUT, END_TIMEOUT = 60.0, 10.0, 3.0


class TableServer:
    """A simulated controller at `host` and a view of the world it moves.

    Args:
        host: address of the controller; any 127.x.y.z, one per robot.

    Raises:
        ValueError: the address is none of the loopback's.
        SimulatorError: the address is taken by another controller.
    """

    def __init__(self, host: str = "127.0.0.8"):
        try:
            loopback = ipaddress.IPv4Address(host).is_loopback
        except ValueError:
            loopback = False
        if not loopback:
            raise ValueError(f"host {host!r}: the simulated controller binds loopback only; use an address 127.x.y.z, "
                             "of numbers up to 255")
        self.host = host
        sim = scene.build(MujocoSimulator())
        with sim:
            sim.start()
            model = sim.model
        self.world = World(model, mujoco.MjData(model))
        self._lock = threading.Lock()
        self._answers = threading.Condition()
        self._said: list[str] = []
        self._ended = True
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> TableServer:
        model = self.world.model
        shm = Path("/dev/shm")
        with tempfile.NamedTemporaryFile(prefix="vipra-table-", dir=shm if shm.is_dir() else None) as file:
            self._shared = SharedState(file.name, model.nq, model.nv, create=True)
            self._said, self._ended = [], False
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vipra_ros.sim.table", self.host, file.name],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            threading.Thread(target=self._listen, args=(self._process,), name="table", daemon=True).start()
            if not self._answered("ready", START_TIMEOUT):
                why = self._said[-1] if self._said else "no answer"
                self.__exit__()
                raise SimulatorError(self._taken() if TAKEN in why else
                                     f"no simulated controller at {self.host}: {why}")
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):  # it has ended before, with what it was told last still in the pipe
            process.stdin.close()
        try:
            process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _taken(self) -> str:
        first, last = self.host.rsplit(".", 1)
        other = f"{first}.{int(last) % 254 + 1}"
        return f"another simulator uses {self.host}; end it, or give another address (sim_host:={other})"

    def place(self, start: tasks.Start) -> None:
        """Move the cubes to `start`; the arm stays where its controller holds it."""
        self._tell(start_to_json(start), "placed")
        self.look(lambda world: None)

    def hang_hand(self, hangs: bool) -> None:
        """Let the hand hang: it takes no command and sends no state until it is told to work again."""
        self._tell(json.dumps({"hang": hangs}), "heard")

    def _tell(self, line: str, answer: str) -> None:
        with self._answers:
            self._said = [x for x in self._said if x != answer]
        with contextlib.suppress(BrokenPipeError):  # it has ended, and will not answer
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        if not self._answered(answer, PLACE_TIMEOUT):
            raise SimulatorError(f"the simulated controller at {self.host} does not answer; start it again")

    def look(self, read: Callable[[World], object]) -> object:
        """`read(world)` of the present state; never holds up the controller."""
        with self._lock:
            self._shared.read(self.world.data)
            mujoco.mj_forward(self.world.model, self.world.data)
            return read(self.world)

    def freeze(self) -> mujoco.MjData:
        """The present state to draw from; the same buffer every time, for one reader."""
        return self.look(lambda world: world.data)

    @property
    def failure(self) -> BaseException | None:
        """Why the controller has ended, None while it runs."""
        if self._process is None or not self._ended:
            return None
        said = self._said[-1] if self._said else "it said nothing"
        return RuntimeError(f"the simulated controller ended with status {self._process.poll()}: {said}")

    def _listen(self, process: subprocess.Popen) -> None:
        for line in process.stdout:
            with self._answers:
                self._said = [*self._said[-20:], line.strip()]
                self._answers.notify_all()
        process.wait()
        with self._answers:
            self._ended = True
            self._answers.notify_all()

    def _answered(self, word: str, seconds: float) -> bool:
        with self._answers:
            self._answers.wait_for(lambda: word in self._said or self._ended, seconds)
            return word in self._said
