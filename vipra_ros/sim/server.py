"""The table behind a simulated Franka controller: a robot at an address, spoken to over the real FCI protocol.

franky (libfranka) connects to it as to hardware; only the host name differs. The physics run in a
thread of their own at 1 kHz.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import mujoco
from franky_sim import SimulationServer
from franky_sim.mujoco_simulator import MujocoSimulator

from . import scene, tasks
from .world import World

#: A physics thread further behind than this gives up catching up: time then runs slow instead of in a burst
#: that a controller would see as a jump.
_LATE_SECONDS = 0.02


class TableServer:
    """A simulated controller at `host` and the world it moves.

    Args:
        host: address of the controller; any 127.x.y.z, one per robot.
        realtime: True paces physics by the wall clock, False runs as fast as the machine allows.

    Raises:
        OSError: the address is taken by another controller.
    """

    def __init__(self, host: str = "127.0.0.8", realtime: bool = True):
        if not host.startswith("127."):
            raise ValueError(f"host {host!r}: the simulated controller binds loopback only; use an address 127.x.y.z")
        self.host, self._realtime = host, realtime
        self.lock = threading.Lock()
        self.failure: BaseException | None = None
        self._sim = scene.build(MujocoSimulator())
        self._server = SimulationServer(self._sim, hostname_candidates=[host])
        self._running = threading.Event()
        self._thread = threading.Thread(target=self._run, name="physics", daemon=True)
        self.world: World | None = None
        self._shadow: mujoco.MjData | None = None

    def __enter__(self) -> TableServer:
        self._sim.init()
        self._server.init()
        self.world = World(self._sim.model, self._sim.data)
        self._shadow = mujoco.MjData(self._sim.model)
        self._running.set()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.clear()
        self._thread.join(timeout=2.0)
        self._server.cleanup()

    def place(self, start: tasks.Start) -> None:
        """Move the cubes to `start`; the arm stays where its controller holds it."""
        with self.lock:
            self.world.place(start)

    def look(self, read: Callable[[World], object]) -> object:
        """Call `read(world)` between two physics steps. Keep it short: the controller waits."""
        with self.lock:
            return read(self.world)

    def freeze(self) -> mujoco.MjData:
        """A copy of the present state to draw from without holding up the controller (one reader)."""
        with self.lock:
            mujoco.mj_copyData(self._shadow, self.world.model, self.world.data)
        return self._shadow

    def _run(self) -> None:
        due = time.monotonic()
        try:
            while self._running.is_set():
                with self.lock:
                    self._server.run_once(realtime=False)
                if not self._realtime:
                    continue
                due += 0.001
                ahead = due - time.monotonic()
                if ahead > 0:
                    time.sleep(ahead)
                elif ahead < -_LATE_SECONDS:
                    due = time.monotonic()
        except BaseException as error:  # the node that owns us must end, not go on with a dead robot
            self.failure = error
            self._running.clear()
