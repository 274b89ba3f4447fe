"""The evaluation through the running nodes: `vipra eval --ros`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from vipra_ros.learning.results import EpisodeRecord
from vipra_ros.msg import ExecutorStatus
from vipra_ros.nodes.session import Session
from vipra_ros.nodes.system import CAMERA_RATE, System


def evaluate(
    folder: Path,
    todo: Sequence[tuple[str, int]],
    mode: str = "async",
    video: str | Path | None = None,
    seconds: float | None = None,
    progress: Callable[[Iterable[EpisodeRecord], int], Iterator[EpisodeRecord]] | None = None,
    engine: str = "auto",
    device: str = "auto",
    euler_steps: int = 0,
    weights: str = "full",
) -> tuple[list[EpisodeRecord], dict]:
    """Run `todo` (task, seed) through the nodes in real time; the records, and what else the JSON says."""
    from vipra_ros.learning.stepped_lane import write_video
    from vipra_ros.policy.pictures import from_jpeg

    pictures: list[bytes] = []
    statuses: list[ExecutorStatus] = []

    def keep(camera: str, stamp: float, jpeg: bytes) -> None:
        del stamp
        if camera == "front" and session.trace is not None:
            pictures.append(jpeg)

    def run() -> Iterator[EpisodeRecord]:
        for task, seed in todo:
            pictures.clear()
            record = session.episode(task, seed, seconds).record
            statuses.append(session.executor_status)
            if video:
                write_video(
                    Path(video) / f"{task}-{seed:06d}.mp4",
                    [from_jpeg(p) for p in pictures],
                    CAMERA_RATE,
                    f"{record.instruction}: {'done' if record.success else 'not done'}",
                )
            yield record

    if video:
        Path(video).mkdir(parents=True, exist_ok=True)
    computes = {"engine": engine, "device": device, "euler_steps": str(euler_steps), "weights": weights}
    with System(folder, mode=mode, **computes) as system:
        session = Session(system.domain, system.check, keep if video else None)
        try:
            session.wait_ready()
            made = run()
            records = list(progress(made, len(todo)) if progress else made)
            policy = session.policy_status
        finally:
            session.close()
    figures = {p: [getattr(s, f"obs_to_action_{p}") for s in statuses] for p in ("p50", "p95", "p99")}
    return records, {
        "lane": "ros",
        "checkpoint_hash": policy.checkpoint,
        "latency_charged": None,
        "latency_measured": policy.latency_p95,
        # from the executor: observation stamp to the first action of its chunk handed to the arm
        "obs_to_action_ms": {
            "p50": 1e3 * float(np.nanmedian(figures["p50"])),
            "p95": 1e3 * float(np.nanmax(figures["p95"])),
            "p99": 1e3 * float(np.nanmax(figures["p99"])),
        },
    }
