"""`vipra bench serve`: the same observations to an engine in this process and to a server on the loopback."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from vipra_ros import __version__
from vipra_ros.json_file import json_writer
from vipra_ros.machine import processor
from vipra_ros.policy.observation import Observation
from vipra_ros.serving.remote import RemoteEngine, Server
from vipra_ros.up import end_with_parent

#: Requests of each kind before counting begins.
WARM = 10
ADDRESS = "127.0.0.21"


def main(checkpoint: str, count: int, engine: str, json_path: str) -> None:
    """Measure, print, and write the figures. `overhead`: round trip minus the network's own time in that request."""
    import torch

    from vipra_ros.policy.checkpoint import Checkpoint
    from vipra_ros.policy.engine import load_engine
    from vipra_ros.policy.shipped import resolve

    save, load = json_writer(json_path), os.getloadavg()[0]  # the load that was there before ours
    loaded = Checkpoint.load(resolve(checkpoint))
    here = load_engine(loaded, engine, threads=1)
    command = [sys.executable, "-m", "vipra_ros.cli", "serve", checkpoint, "--host", ADDRESS, "--port", "0"]
    # Two clients that never ask at once: no request is to wait for the other one's.
    options = ["--device", "cpu", "--threads", "1", "--engine", engine, "--batch", "1"]
    server = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True,
                              preexec_fn=lambda: end_with_parent(signal.SIGINT))
    try:
        line = server.stdout.readline()
        found = re.search(r"ws://\S+", line)
        if not found:
            raise RuntimeError(f"vipra serve said {line!r}")
        kinds = {
            "in process": here,
            "remote, pixels": RemoteEngine(Server(found[0], deadline=5.0)),
            "remote, JPEG 90": RemoteEngine(Server(found[0], deadline=5.0, jpeg=90)),
        }
        figures = _measure(kinds, loaded.config, count)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=10)
    machine = {
        "processor": processor(),
        "processors": os.cpu_count(),
        "load": load,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vipra_ros": __version__,
    }
    console, table = Console(), Table("", "n", "p50 ms", "p95 ms", "p99 ms", title=f"{checkpoint}, {engine}, 640 x 480")
    for name, row in figures.items():
        table.add_row(name, str(count), *(f"{row[p]:.2f}" for p in ("p50_ms", "p95_ms", "p99_ms")))
    console.print(table)
    about = {"checkpoint": checkpoint, "engine": engine, "n": count, "machine": machine}
    save({**about, "figures": figures})
    if json_path:
        console.print(f"written: {json_path}")


def _measure(kinds: dict[str, object], config, count: int) -> dict[str, dict[str, float]]:
    """Kinds take turns, so that what else the machine does meets all of them alike."""
    rng, joints = np.random.default_rng(0), np.zeros((max(config.proprio_steps, 1), config.policy.action_dim))
    times: dict[str, list[float]] = {}
    for number in range(WARM + count):
        frames = {c: rng.integers(0, 255, (config.policy.frames, 480, 640, 3), np.uint8) for c in config.cameras}
        observation = Observation(0.0, frames, "reach above the red cube", joints)
        for name, engine in kinds.items():
            began = time.perf_counter()
            prediction = engine.infer(observation, seed=number)
            total = 1e3 * (time.perf_counter() - began)
            if number >= WARM:
                times.setdefault(name, []).append(total)
                if "overhead" in prediction.timing:
                    times.setdefault(f"{name}: overhead", []).append(prediction.timing["overhead"])
    return {n: {f"p{p}_ms": float(np.percentile(t, p)) for p in (50, 95, 99)} for n, t in times.items()}
