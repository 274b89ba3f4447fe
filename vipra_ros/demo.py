"""`vipra demo`: a trained policy does three tasks it is told in words, on the simulated arm.

The real system runs: simulated controller, executor through franky, policy node, as `vipra up` starts them.
What was seen stays in a film, a plot and the log of the nodes.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from vipra_ros.sim import tasks

#: s filmed after a success.
REST = 1.0
FPS = 15.0
#: s from a picture to the action, p50: what two free cores take, and from where on misses are the computer's.
USUAL, SLOW = 0.05, 0.17


def run(checkpoint: str | Path, task: str = "push", seed: int = 1005, out: str | Path = "out/demo") -> int:
    """Three episodes, `task` first, each from its own random start; 0 when the system worked.

    Args:
        out: folder for demo.mp4, joints.png and system.log.
    """
    from vipra_ros.nodes.monitor import Monitor
    from vipra_ros.nodes.session import Session
    from vipra_ros.nodes.system import System

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    order = [task, *(t for t in tasks.TASKS if t != task)]
    seen = []
    with Monitor() as monitor, System(checkpoint, log=out / "system.log") as system:
        session = Session(system.domain, system.check, monitor.on_image)
        monitor.session = session
        try:
            monitor.say("starting the simulated arm, the executor and the policy")
            session.wait_ready(tick=monitor.tick)
            for number, name in enumerate(order):
                goal = tasks.sample_start(name, seed + number).goal
                monitor.say(f"{number + 1} of {len(order)}: {goal.instruction}")
                trace = session.episode(name, seed + number, rest=REST, tick=monitor.tick)
                seen.append((trace, monitor.take()))
                said = f"done in {trace.record.time_to_success:.1f} s" if trace.record.success else "not done"
                monitor.say(f"{goal.instruction}: {said}")
            monitor.say("ending the system, writing film and plot")
        finally:
            monitor.session = None
            session.close()
    records = [t.record for t, _ in seen]
    _table(monitor.console, records)
    if slow(records):
        monitor.console.print(slow(records), width=80, highlight=False)
    film(out / "demo.mp4", seen)
    plot(out / "joints.png", [t for t, _ in seen])
    for path in ("demo.mp4", "joints.png", "system.log"):
        monitor.console.print(str(out / path), highlight=False, markup=False, soft_wrap=True)
    return 0


def slow(records: list) -> str:
    """The likely reason of a miss where the policy acted on pictures of long ago; empty where it did not."""
    took = float(np.median([s for r in records for s in r.latencies] or [0.0]))
    if took <= SLOW or all(r.success for r in records):
        return ""
    return (f"From a picture to the action it took {1e3 * took:.0f} ms (p50); on two free cores it is "
            f"{1e3 * USUAL:.0f}, and with more the policy misses: end what else runs here, and try again.")


def film(path: Path, seen: list) -> None:
    """Both cameras side by side, the chunk in force over the front one, from (trace, images) per episode."""
    from vipra_ros.control.profile import load_profile
    from vipra_ros.data.video import Codec, VideoEncoder
    from vipra_ros.policy.pictures import from_jpeg
    from vipra_ros.sim import film as frames
    from vipra_ros.sim.lockstep import LockstepWorld
    from vipra_ros.sim.projection import Pinhole

    camera, profile = Pinhole.of(LockstepWorld().model, "front", frames.SIDE), load_profile("fr3")
    encoder = VideoEncoder(path, FPS, Codec(crf=22, preset="veryfast", pixel_format="yuv420p", keyframe_interval=30))
    for trace, images in seen:
        front, wrist = images.get("front", []), images.get("wrist", [])
        due = -np.inf
        for stamp, jpeg in front:
            if stamp < due:
                continue
            due = max(due + 1 / FPS, stamp + 0.5 / FPS)
            left = frames.enlarged(from_jpeg(jpeg))
            said = f"{stamp - trace.began:4.1f} s"
            running = [c for c in trace.chunks if c[1] <= stamp]
            if running:
                frames.draw_plan(left, camera, profile, running[-1][2], trace.executed)
                said += f", observation {1e3 * (stamp - running[-1][0]):.0f} ms old"
            near = min(wrist, key=lambda w: abs(w[0] - stamp), default=None)
            right = frames.enlarged(from_jpeg(near[1])) if near else None
            encoder.add(frames.side_by_side(left, right, (trace.record.instruction, said)))
    encoder.close()


def plot(path: Path, traces: list) -> None:
    """Commanded and measured joints of every episode, one row a joint, one column an episode."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(traces) + 1, 10), layout="constrained")
    axes = figure.subplots(7, len(traces), sharex="col", sharey="row", squeeze=False)
    for column, trace in enumerate(traces):
        for samples, style, name in ((trace.commanded, "-", "commanded"), (trace.measured, "--", "measured")):
            if not samples:
                continue
            times, q = np.array([s[0] for s in samples]) - trace.began, np.array([s[1] for s in samples])
            for joint in range(7):
                axes[joint, column].plot(times, q[:, joint], style, lw=1.2, label=name)
        axes[0, column].set_title(
            f"{trace.record.instruction}\n{'done' if trace.record.success else 'not done'}", fontsize=9
        )
        axes[-1, column].set_xlabel("s")
    for joint in range(7):
        axes[joint, 0].set_ylabel(f"joint {joint + 1} / rad")
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=90)


def _table(console, records: list) -> None:
    from rich.table import Table

    table = Table(title="what was asked and what became of it")
    for name in ("task", "instruction", "done", "seconds", "chunks", "refused"):
        table.add_column(name, justify="right" if name in ("seconds", "chunks", "refused") else "left")
    for r in records:
        result = "yes" if r.success else f"no, {r.stopped}" if r.stopped else f"no ({r.acted_on or 'no'} cube)"
        table.add_row(
            r.task,
            r.instruction,
            result,
            f"{r.time_to_success if r.success else r.seconds:.1f}",
            str(r.chunks),
            str(r.rejected),
        )
    console.print(table, width=80)
