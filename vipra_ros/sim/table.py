"""The process behind a simulated controller: physics and the FCI protocol, and nothing else.

A process of its own because a controller is one: at 1 kHz each millisecond counts, and cameras, ROS or a test
in the same interpreter would take it away. `server.py` starts it and speaks to it: a line of JSON on standard
input places cubes or makes the hand hang, the end of standard input ends it, positions and velocities are in shared
memory.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
import time

import mujoco
import numpy as np
from franky_sim import SimulationServer
from franky_sim.mujoco_simulator import MujocoSimulator

from . import scene, tasks
from .brisk import brisk
from .brisk import tick as advance
from .world import World

#: Further behind than this it gives up catching up: time then runs slow instead of in a burst that a
#: controller would see as a jump.
LATE_SECONDS = 0.02
#: Milliseconds between two looks at standard input.
LISTEN_EVERY = 10
#: s that a writer may be at work, which takes microseconds and on a starved machine longer.
WRITE_TIMEOUT = 2.0


class SimulatorError(OSError):
    """The simulated controller does not start or does not answer; the text says why and what to do."""


class SharedState:
    """Time, positions and velocities of the world in a memory-mapped file, one writer, any readers.

    A counter that is odd while the writer is at work tells a reader to look again (a sequence lock).
    """

    def __init__(self, path: str, nq: int, nv: int, create: bool = False):
        self._nq = nq
        self._values = np.memmap(path, np.float64, "w+" if create else "r+", shape=(2 + nq + nv,))

    def write(self, data: mujoco.MjData) -> None:
        """Publish the present state."""
        v = self._values
        v[0] += 1
        v[1], v[2 : 2 + self._nq], v[2 + self._nq :] = data.time, data.qpos, data.qvel
        v[0] += 1

    def read(self, data: mujoco.MjData) -> None:
        """Copy the newest whole state into `data`.

        Raises:
            SimulatorError: the writer has ended in the middle of its work.
        """
        v, began = self._values, time.monotonic()
        while time.monotonic() - began < WRITE_TIMEOUT:
            before = v[0]
            data.time = float(v[1])
            data.qpos[:], data.qvel[:] = v[2 : 2 + self._nq], v[2 + self._nq :]
            if before % 2 == 0 and v[0] == before:
                return
        raise SimulatorError("the simulated controller ended while it wrote its state; start it again")


def start_to_json(start: tasks.Start) -> str:
    """The part of a start that the physics need, one line."""
    return json.dumps({"cubes": start.cubes})


class HandLine:
    """The hand's side of the protocol, which can hang: it then takes no command and says nothing, as one without power.

    Args:
        server: franky-sim's server of a robot, initialised.
    """

    def __init__(self, server: object):
        self._hand = server.gripper_server
        self._works = self._hand.process_commands, self._hand.send_state

    def hang(self, hangs: bool) -> None:
        """Hang, or work again."""
        self._hand.process_commands, self._hand.send_state = (lambda: None, lambda: None) if hangs else self._works


def _obey(world: World, hand: HandLine, line: str) -> str:
    """Do what a line says; the answer."""
    said = json.loads(line)
    if "hang" in said:
        hand.hang(said["hang"])
        return "heard"
    cubes = {c: tuple(pose) for c, pose in said["cubes"].items()}
    world.place(tasks.Start(None, cubes, (0.0, 0.0, 0.0)))
    return "placed"


def main(host: str, path: str) -> None:
    """Serve a controller at `host` until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; our parent ends us in order
    sim = scene.build(MujocoSimulator())
    sim.init()
    server = SimulationServer(sim, hostname_candidates=[host])
    server.init()
    brisk(sim, server)
    world, pending, hand = World(sim.model, sim.data), "", HandLine(server.robot_servers[0])
    shared = SharedState(path, sim.model.nq, sim.model.nv)
    shared.write(sim.data)
    try:  # as on the control unit, where nothing else runs
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except (AttributeError, PermissionError):
        pass  # a machine with idle cores does as well
    print("ready", flush=True)
    gc.collect()
    gc.freeze()
    due, tick, parent = time.monotonic(), 0, os.getppid()
    while os.getppid() == parent:
        if tick % LISTEN_EVERY == 0 and select.select([0], [], [], 0)[0]:
            said = os.read(0, 65536).decode()
            if not said:
                break
            *lines, pending = (pending + said).split("\n")
            for line in lines:
                answer = _obey(world, hand, line)
                shared.write(sim.data)
                print(answer, flush=True)
        advance(sim, server)
        shared.write(sim.data)
        tick += 1
        due += 0.001
        ahead = due - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
        elif ahead < -LATE_SECONDS:
            due = time.monotonic()
    server.cleanup()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
