"""The simulated controller as franky sees it, and the slow lane through it."""

import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vipra_ros.control.chunk import Waypoint
from vipra_ros.control.profile import load_profile
from vipra_ros.data.bags import EpisodeReader
from vipra_ros.robot.arm import FrankyArm
from vipra_ros.sim import collect, table, tasks
from vipra_ros.sim.server import SimulatorError, TableServer
from vipra_ros.sim.table import SharedState

HOST = "127.0.44.8"


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.300", "127.nonsense", "localhost"])
def test_only_loopback_is_bound(host):
    with pytest.raises(ValueError, match=f"host '{host}': .*loopback only; use an address 127"):
        TableServer(host)


def test_franky_moves_the_arm_and_cubes_are_placed_under_it():
    start = tasks.sample_start("push", 4)
    with TableServer(HOST) as server:
        server.place(start)
        arm = FrankyArm(load_profile("fr3"), HOST, "ignore")
        state = arm.state()
        goal = state.q + np.array([0.15, 0, 0, 0, 0, 0, 0])
        now = time.monotonic()
        arm.stream([Waypoint(now + 1.5, goal, np.zeros(7))], now)
        deadline = now + 8.0
        while np.abs(arm.state().q - goal).max() > 0.02 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert np.abs(arm.state().q - goal).max() < 0.02
        assert np.allclose(server.look(lambda w: w.q), arm.state().q, atol=0.01)
        cubes = server.look(lambda w: w.snapshot().cubes)
        for colour, (x, y, _) in start.cubes.items():
            assert np.allclose(cubes[colour], (x, y, tasks.CUBE_SIZE / 2), atol=3e-3)
        assert server.failure is None
        arm.close()


def test_a_taken_address_is_an_error():
    says = r"another simulator uses 127\.0\.44\.9; end it, or .*sim_host:=127\.0\.44\.10"
    with TableServer("127.0.44.9"), pytest.raises(SimulatorError, match=says), TableServer("127.0.44.9"):
        pass


def test_a_dead_controller_is_a_failure_with_its_last_words():
    with TableServer("127.0.44.10") as server:
        assert server.failure is None
        server._process.kill()
        deadline = time.monotonic() + 5.0
        while server.failure is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert "ended with status -9" in str(server.failure)
        for _ in range(2):  # a first line may still go into the pipe; none of them stops the end
            with pytest.raises(SimulatorError, match="127.0.44.10 does not answer; start it again"):
                server.place(tasks.sample_start("push", 4))


def test_the_controller_does_not_outlive_its_owner():
    code = "import sys, time; from vipra_ros.sim.server import TableServer\n" \
        "with TableServer('127.0.44.11') as s: print(s._process.pid, flush=True); time.sleep(60)"
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    table = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 5.0
    while Path(f"/proc/{table}/cmdline").exists() and Path(f"/proc/{table}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the table process goes on without its owner"
        time.sleep(0.05)


def test_readers_of_the_shared_state_never_see_half_of_it(tmp_path):
    """One writer puts the same number everywhere, a reader must never find two numbers."""
    path, nq, nv = str(tmp_path / "state"), 200, 150
    writer, reader = SharedState(path, nq, nv, create=True), SharedState(path, nq, nv)
    seen, running = SimpleNamespace(time=0.0, qpos=np.zeros(nq), qvel=np.zeros(nv)), threading.Event()
    running.set()

    def write():
        n = 0.0
        while running.is_set():
            n += 1.0
            writer.write(SimpleNamespace(time=n, qpos=np.full(nq, n), qvel=np.full(nv, n)))
            time.sleep(2e-4)  # the real one writes once a millisecond

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(1000):
            reader.read(seen)
            values = {float(seen.time), *np.unique(seen.qpos), *np.unique(seen.qvel)}
            assert len(values) == 1, values
    finally:
        running.clear()
        thread.join()


def test_a_writer_that_died_at_work_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "WRITE_TIMEOUT", 0.05)
    path = str(tmp_path / "state")
    SharedState(path, 2, 2, create=True)._values[0] = 1.0
    with pytest.raises(SimulatorError, match="ended while it wrote its state"):
        SharedState(path, 2, 2).read(SimpleNamespace(time=0.0, qpos=np.zeros(2), qvel=np.zeros(2)))


def test_a_demonstration_through_franky(tmp_path):
    """The lane `fci` of collect: real franky, real FCI, real time; the bag converts like any other."""
    assert collect.collect(tmp_path, ["reach"], episodes=1, seed=12, lane="fci") == {"reach": [1, 1]}
    with EpisodeReader(tmp_path / "reach-000012") as bag:
        assert bag.meta()["success"]
        assert {"camera/front/image_raw/compressed", "camera/wrist/image_raw/compressed"} <= set(bag.topics)
        assert bag.counts["joint_states"] > 20 * bag.meta()["seconds"]
