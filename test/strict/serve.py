"""The strict controller: franka-sim with the robot's own limits enforced. Runs in build/strict-venv.

    serve.py HOST FRANKY_SIM_ASSETS PATIENCE

Prints "up" when it listens, at HOST only. Ends with its standard input: never left behind.
PATIENCE: ms for which a cycle waits for its answer beyond the 1 ms that a robot waits.
"""

import logging
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

#: s for which physics wait for a state at most.
LONGEST = 0.02


def model(assets: Path) -> Path:
    """The FR3 of the everyday simulator, laid out as this one wants it: no download, and one model in both.

    The position servo's damping of 200 N m s/rad, taken explicitly at 1 kHz, is stable above 0.1 kg m^2; the bare
    wrist has less and would chatter with 0.08 rad/s at rest. Motors a little heavier change no limit.
    """
    folder = Path(tempfile.mkdtemp(prefix="vipra-strict-"))
    (folder / "fr3.xml").write_text((assets / "fr3.xml").read_text().replace('armature="0.074"', 'armature="0.15"'))
    (folder / "assets").symlink_to(assets / "meshes")
    return folder / "fr3.xml"


def in_step(server: object) -> None:
    """Let physics make one step for each state that is sent to a client.

    Both run at 1 kHz by the wall clock, in threads of their own, and on a slow machine states fall behind. A commanded
    velocity is integrated to q_d once a state, so q would run away from q_d: by 0.3 rad in 4 s was seen.
    """
    sim = server.physics_sim
    apply, seen = sim._apply_control, [0]

    def paced() -> None:
        give_up = time.perf_counter() + LONGEST
        while server.connection_running and server.states_sent == seen[0] and time.perf_counter() < give_up:
            time.sleep(1e-4)
        seen[0] = server.states_sent
        apply()

    sim._apply_control = paced


def patient(server: object, patience: float) -> None:
    """Hold each cycle open until it is answered, `patience` s at most: a pause of this machine is nobody's lost cycle.

    A robot does not wait: see docs/safety.md for what comes of cycles that are truly lost.
    """
    gate, server._DRAIN_GATE_TIMEOUT = server._drain_gate, max(server._DRAIN_GATE_TIMEOUT, patience)
    server._drain_gate = lambda answer_deadline=0.0: gate(answer_deadline + patience)


def main() -> None:
    """Serve until standard input ends."""
    host, assets = sys.argv[1], Path(sys.argv[2])
    os.environ["FR3_MJCF"] = str(model(assets))
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    from franka_sim import FrankaSimServer

    server = FrankaSimServer(host=host, enable_gripper=False, enforce_motion_limits=True)
    in_step(server)
    patient(server, 1e-3 * float(sys.argv[3]))
    threading.Thread(target=server.start, name="server", daemon=True).start()
    time.sleep(2.0)
    print("up", flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
