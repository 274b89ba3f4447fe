"""`vipra bench loop`: from a camera's stamp to the arm, through the running nodes, at several action rates.

Simulator, policy and executor run as always, with two cameras at 30 Hz and real franky over the simulated controller.
The policy is a copy of a checkpoint that says another rate and two cameras: its chunks take the time that they would
take, what they are worth does not count. This process listens only, and takes the time of every message itself.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from rclpy.qos import qos_profile_sensor_data
from safetensors.numpy import load_file, save_file
from sensor_msgs.msg import CompressedImage

from vipra_ros.control.status import KEPT
from vipra_ros.json_file import json_writer
from vipra_ros.machine import machine
from vipra_ros.msg import ActionChunk, ExecutorStatus
from vipra_ros.nodes.bench_control import over, share, spent_by
from vipra_ros.nodes.convert import nanoseconds
from vipra_ros.nodes.session import Session, Trace
from vipra_ros.nodes.spinner import Spinner, lone_node
from vipra_ros.nodes.system import SessionError, System
from vipra_ros.policy.scheduler import WINDOW
from vipra_ros.policy.shipped import resolve

CAMERAS, CAMERA_RATE = ("front", "wrist"), 30.0
#: s at the start of a run that do not count, and of one episode before the scene is laid out again.
WARM, SCENE = 4.0, 8.0
#: ns; stamps so near are the same: the policy counts time in a float.
NEAR = 1e5
PERCENTILES = (50, 95, 99)
#: What the nodes alone know, they tell as percentiles of the last ones: those of the warm-up too while they are few.
INFERENCE, ACTION = f"inference_last_{WINDOW}_ms", f"stamp_to_action_last_{KEPT}_ms"


class Ear:
    """Hears pictures and chunks in a node of its own, and when each was sent.

    Attributes:
        drawn: ms from a picture's stamp to its sending: the simulated camera draws and packs it meanwhile.
        pictures: (ns of the stamp, ms from the sending to our callback).
        chunks: (ns of the stamp, ns of the arrival, ms from the sending to our callback).
    """

    def __init__(self, domain: int):
        self.drawn, self.pictures, self.chunks = (deque(maxlen=100_000) for _ in range(3))
        node = lone_node("bench_loop", domain)
        for camera in CAMERAS:
            node.create_subscription(CompressedImage, f"camera/{camera}/image_raw/compressed", self._picture,
                                     qos_profile_sensor_data)
        node.create_subscription(ActionChunk, "policy/chunk", self._chunk, 10)
        self._spinner = Spinner(node)

    def forget(self) -> None:
        """What was heard so far does not count."""
        for heard in (self.drawn, self.pictures, self.chunks):
            heard.clear()

    def close(self) -> None:
        """Leave the ROS graph."""
        self._spinner.close()

    def both_ways(self, chunks: np.ndarray) -> list[float]:
        """ms that each of `chunks` and the picture it answers (the later camera's) travelled, where we had that one."""
        stamps, travelled = np.array(self.pictures).T
        found = ((travelled[np.abs(stamps - stamp) < NEAR], ms) for stamp, _, ms in chunks)
        return [pictures.max() + ms for pictures, ms in found if len(pictures)]

    # A callback with a second parameter gets the times of the middleware.
    def _picture(self, message: CompressedImage, info: dict) -> None:
        now, sent, stamp = time.time_ns(), info["source_timestamp"], nanoseconds(message.header.stamp)
        self.pictures.append((stamp, 1e-6 * (now - sent)))
        self.drawn.append(1e-6 * (sent - stamp))

    def _chunk(self, message: ActionChunk, info: dict) -> None:
        now = time.time_ns()
        self.chunks.append((nanoseconds(message.header.stamp), now, 1e-6 * (now - info["source_timestamp"])))


def run(checkpoint: str = "models/tiny", rates: list[float] | None = None, seconds: float = 60.0, engine: str = "auto",
        json_path: str = "") -> None:
    """Measure every rate (Hz) for `seconds` and print what came of it."""
    save = json_writer(json_path)
    results = {"machine": machine(), "checkpoint": str(checkpoint), "seconds": seconds, "cameras": list(CAMERAS),
               "camera_hz": CAMERA_RATE, "rates": {}}
    with tempfile.TemporaryDirectory(prefix="vipra-") as folder:
        for rate in rates or [15.0, 22.0, 30.0]:
            copy = at_rate(resolve(checkpoint), Path(folder) / f"{rate:g}", rate)
            results["rates"][f"{rate:g}"] = found = _measure(copy, rate, seconds, engine)
            _print(rate, found)
    save(results)


def at_rate(checkpoint: Path, copy: Path, rate: float) -> Path:
    """A copy of a checkpoint that looks at both cameras and acts at `rate` Hz."""
    shutil.copytree(checkpoint, copy, ignore=shutil.ignore_patterns("log*", "*.md", "*.png"))
    path = copy / "config.json"
    config = json.loads(path.read_text())
    config["policy"]["cameras"], config["cameras"], config["rate"] = len(CAMERAS), list(CAMERAS), rate
    path.write_text(json.dumps(config))
    weights = load_file(copy / "policy.safetensors")
    # (frames, cameras, 1, width): the only weight that knows how many cameras there are.
    weights["vision_frame"] = np.repeat(weights["vision_frame"][:, :1], len(CAMERAS), axis=1)
    save_file(weights, copy / "policy.safetensors")
    return copy


def _measure(checkpoint: Path, rate: float, seconds: float, engine: str) -> dict:
    statuses: list[ExecutorStatus] = []
    with System(checkpoint, camera_rate=str(CAMERA_RATE), engine=engine) as system:
        ear, session = Ear(system.domain), Session(system.domain, system.check, on_status=statuses.append)
        try:
            session.wait_ready()
            session.episode("reach", 1000, WARM, rest=WARM)
            ear.forget()
            before, spent, began = session.executor_status, spent_by(system.pid), time.monotonic()
            traces: list[Trace] = []
            while time.monotonic() - began < seconds:
                seed = 1001 + len(traces)
                traces.append(session.episode(("reach", "push", "lift")[seed % 3], seed, SCENE, rest=SCENE))
            passed, after = time.monotonic() - began, spent_by(system.pid)
            executor, policy = session.executor_status, session.policy_status
        finally:
            session.close()
            ear.close()
    spans = [(t.began, t.began + t.record.seconds) for t in traces]
    accepted = int(executor.accepted - before.accepted)
    inference, action = ([round(1e3 * getattr(status, f"{name}_p{p}"), 1) for p in PERCENTILES]
                         for status, name in ((policy, "inference"), (executor, "obs_to_action")))
    times = _times(ear, spans)
    return {
        "chunks": len(times["stamp_to_chunk_ms"]), "scenes": len(traces),
        "n": {INFERENCE: min(WINDOW, int(policy.chunks)), ACTION: min(KEPT, int(executor.accepted)),
              **{name: len(values) for name, values in times.items()}},
        INFERENCE: inference, ACTION: action, **{name: _three(values) for name, values in times.items()},
        "accepted": accepted, "rejected": int(executor.rejected - before.rejected),
        **over(statuses, spans),
        "cpu": {k: round((v - spent.get(k, 0.0)) / passed, 2) for k, v in after.items()},
    }


def within(chunks: Iterable[tuple[float, float, float]], spans: Sequence[tuple[float, float]]) -> list[np.ndarray]:
    """Rows of `chunks` by the span, (begin, end) in s, that their stamp (ns) lies in: arming to the end of an episode.

    Between two of them the arm goes home and the policy is told something else: no gap over that is a cadence.
    """
    rows = np.array(list(chunks), float).reshape(-1, 3)
    return [rows[(rows[:, 0] >= 1e9 * begin) & (rows[:, 0] <= 1e9 * end)] for begin, end in spans]


def _times(ear: Ear, spans: Sequence[tuple[float, float]]) -> dict[str, np.ndarray]:
    """Every sample of the run, ms; those of chunks are of the episodes alone."""
    episodes = within(ear.chunks, spans)
    stamps, arrivals, travelled = (chunks := np.concatenate(episodes)).T
    gaps = 1e-6 * np.concatenate([np.diff(e[:, 1]) for e in episodes])
    if not len(gaps):
        raise SessionError(f"{len(chunks)} chunks in {len(spans)} scenes are too few; raise --seconds, or look why the "
                           "policy does not answer")
    ages = 1e-6 * (arrivals - stamps)
    found = {
        "stamp_to_chunk_ms": ages - travelled, "stamp_to_heard_ms": ages, "cadence_ms": gaps,
        "cadence_jitter_ms": np.abs(gaps - np.median(gaps)), "camera_ms": ear.drawn,
        "picture_transport_ms": [ms for _, ms in ear.pictures], "chunk_transport_ms": travelled,
        "both_ways_ms": ear.both_ways(chunks),
    }
    return {name: np.array(values) for name, values in found.items()}


def _three(values) -> list[float]:
    return np.percentile(np.array(values), PERCENTILES).round(2).tolist()


def _print(rate: float, found: dict) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{rate:g} Hz, {found['chunks']} chunks in {found['scenes']} scenes; ms", box=box.SIMPLE)
    table.add_column("")
    for name in ("n", "p50", "p95", "p99"):
        table.add_column(name, justify="right")
    for key, text in (
        ("camera_ms", "the simulated camera: stamp to sent"), ("picture_transport_ms", "a picture: sent to heard"),
        (INFERENCE, "inference, the last ones"), ("stamp_to_chunk_ms", "stamp of the frame to chunk sent"),
        ("chunk_transport_ms", "a chunk: sent to heard"), ("both_ways_ms", "both: what ROS adds to the inference"),
        (ACTION, "stamp to the first action, the last ones"), ("cadence_ms", "from chunk to chunk"),
        ("cadence_jitter_ms", "that less its median"),
    ):  # fmt: skip
        table.add_row(text, str(found["n"][key]), *(f"{x:.1f}" for x in found[key]))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"stalled {share(found['stall_fraction'])}; chunks accepted {found['accepted']}, "
                  f"rejected {found['rejected']}")
    console.print("cores: " + ", ".join(f"{k} {v:.2f}" for k, v in found["cpu"].items()))
