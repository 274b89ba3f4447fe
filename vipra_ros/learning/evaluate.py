"""Success and smoothness of a checkpoint over unseen random starts.

Two lanes, one record per episode (`results.py`). The fast one runs in this process in simulation time, see
`stepped_lane.py`. `ros=True` runs the same seeds through the nodes, franky and the simulated controller, in real time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from vipra_ros.config import ConfigError
from vipra_ros.data.workers import each
from vipra_ros.json_file import json_writer
from vipra_ros.learning import results
from vipra_ros.learning.results import EpisodeRecord
from vipra_ros.learning.stepped_lane import FastLane, Job, load, measure_latency
from vipra_ros.machine import machine
from vipra_ros.policy.deployment import mode_of_folder
from vipra_ros.policy.device import check_device
from vipra_ros.policy.scheduler import MODES
from vipra_ros.policy.shipped import resolve
from vipra_ros.policy.weights import check_weights
from vipra_ros.sim import tasks

#: Episodes at once of a discrete policy: a pass of one token costs little more for eight.
TOGETHER = 8


def main(
    checkpoint: str | Path,
    task: str = "all",
    episodes: int = 50,
    seed: int = 1000,
    json_path: str | Path | None = None,
    video: str | Path | None = None,
    ros: bool = False,
    mode: str = "",
    latency: float | None = None,
    margin: int = 1,
    workers: int = 1,
    seconds: float | None = None,
    quiet: bool = False,
    engine: str = "auto",
    device: str = "auto",
    euler_steps: int = 0,
    weights: str = "full",
    together: int = 0,
) -> dict:
    """Evaluate `checkpoint` on `episodes` starts of each task, seeds from `seed` on.

    Args:
        task: one of `vipra_ros.sim.tasks.TASKS`, or "all".
        json_path: where the result is written.
        video: folder for one MP4 of the front camera per episode.
        ros: through the running nodes in real time instead of in this process.
        mode: async or sync; empty: as the checkpoint's executed rows ask for (`deployment.mode_of`).
        latency: s charged per chunk in the fast lane; None measures this machine's.
        margin: rows still queued when the next chunk is to arrive.
        workers: processes of the fast lane.
        together: episodes that such a process steps at the same time, their chunks answered as one batch (to rounding
            what they are alone); 0: 8 of a discrete policy, whose chunks are over a hundred passes each, else 1.
        seconds: limit of an episode; the task's own when None.
        engine, device, euler_steps, weights: what computes, where, in how many steps, with the trunk's matrices in how
            many bits (`policy.engine.open_engine`).

    Returns:
        The figures of `results.summarise`; for "all" the total, with one entry per task under "tasks".

    Raises:
        ConfigError: unknown task, mode or checkpoint; no such device or weights; `json_path` cannot be written; a
            worker died.
    """
    if task != "all" and task not in tasks.TASKS:
        raise ConfigError(f"task {task!r} is unknown; choose one of {', '.join(tasks.TASKS)}, all")
    if mode and mode not in MODES:
        raise ConfigError(f"mode {mode!r}: choose one of {', '.join(MODES)}")
    for name, count, least in (("episodes", episodes, 1), ("workers", workers, 1), ("together", together, 0)):
        if count < least:
            raise ConfigError(f"{name} = {count}: give at least {least}")
    if latency is not None and not 0.0 <= latency < 10.0:
        raise ConfigError(f"latency = {latency} s: give 0 to 10, or nothing to measure this machine's")
    wanted = list(tasks.TASKS) if task == "all" else [task]
    todo = [(t, seed + i) for t in wanted for i in range(episodes)]
    folder = resolve(checkpoint)
    mode = mode or mode_of_folder(folder) or MODES[0]
    save = json_writer(json_path)
    check_device(device)
    check_weights(weights, engine)
    about = {"checkpoint": str(checkpoint), "mode": mode, "engine": engine, "device": device,
             "euler_steps": euler_steps, "weights": weights, "machine": machine()}
    computes = {"engine": engine, "device": device, "euler_steps": euler_steps, "weights": weights}
    if ros:
        from vipra_ros.nodes.evaluation import evaluate as through_ros

        records, extra = through_ros(folder, todo, mode, video, seconds, None if quiet else _progress, **computes)
        about |= extra
    else:
        records, extra = _fast(folder, todo, mode, latency, margin, video, workers, together, seconds,
                               quiet, computes)
        about |= extra
    parts = [results.summarise(t, [r for r in records if r.task == t], tasks.COLOURS, **about) for t in wanted]
    result = parts[0]
    if task == "all":
        result = {**results.summarise("all", records, tasks.COLOURS, **about), "tasks": parts}
    if not quiet:  # before the file: a disk that is full by now takes the file alone
        results.print_tables(parts, tasks.COLOURS)
        charged = about["latency_charged"]
        print(
            f"checkpoint {about['checkpoint_hash'][:16]}, {about['lane']} lane, mode {mode}"
            + (f", latency charged {1e3 * charged:.0f} ms" if charged is not None else "")
        )
    save(result)
    if json_path and not quiet:
        print(f"wrote {json_path}")
    return result


def _fast(
    folder: Path,
    todo: Sequence[tuple[str, int]],
    mode: str,
    latency: float | None,
    margin: int,
    video: str | Path | None,
    workers: int,
    together: int,
    seconds: float | None,
    quiet: bool,
    computes: dict,
) -> tuple[list[EpisodeRecord], dict]:
    threads = max(1, len(os.sched_getaffinity(0)) // workers) if workers > 1 else 0
    checkpoint, loaded = load(folder, threads, **computes)
    measured = measure_latency(checkpoint, loaded) if latency is None else None
    charged = measured if latency is None else latency
    if video:
        Path(video).mkdir(parents=True, exist_ok=True)
    together = together or (TOGETHER if checkpoint.config.policy.decoder == "discrete" else 1)
    together = min(together, -(-len(todo) // workers))
    job = Job(str(folder), mode, margin, charged, str(video) if video else None, threads, seconds, **computes,
              together=together)
    parts = [todo[i : i + together] for i in range(0, len(todo), together)]
    if workers > 1:
        made = each(_work, parts, workers, _begin, (job,))
        records = list(_watched(chain.from_iterable(made), len(todo), quiet))
    else:
        lane = FastLane(job)
        records = list(_watched(chain.from_iterable(map(lane.episodes, parts)), len(todo), quiet))
    return records, {
        "lane": "in-process",
        "device": loaded.device,
        "checkpoint_hash": checkpoint.hash,
        "latency_charged": charged,
        "latency_measured": measured,
        "margin": margin,
    }


_lane: FastLane | None = None


def _begin(job: Job) -> None:
    global _lane
    _lane = FastLane(job)


def _work(part: list[tuple[str, int]]) -> list[EpisodeRecord]:
    return _lane.episodes(part)


def _watched(records: Iterable[EpisodeRecord], total: int, quiet: bool) -> Iterator[EpisodeRecord]:
    return iter(records) if quiet else _progress(records, total)


def _progress(records: Iterable[EpisodeRecord], total: int) -> Iterator[EpisodeRecord]:
    """Passes records on under a progress bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    good = done = 0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task("evaluate", total=total, said="")
        for record in records:
            good, done = good + record.success, done + 1
            progress.update(bar, advance=1, description=record.task, said=f"{good}/{done} done")
            yield record
