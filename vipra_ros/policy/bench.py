"""`vipra bench policy`: how long a chunk takes, stage by stage, beside what this machine cannot go below.

The engines take turns, a few chunks each, so that what else the machine does meets all of them alike; the machine's
rates are measured before and after, and the better count. `p50_ms` and the others are wall time of an inference, from
frames and joints to actions in rad; decoding the camera's JPEG happens as it arrives and is a stage beside it.
`min_ms` is the fastest chunk and `cpu_p50_ms` the processor time of all threads, which other programs' load does not
stretch as much; the rates under the floor are the best of many short tries for the same reason.
"""

from __future__ import annotations

import json
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cv2
import numpy as np
import torch

from vipra_ros.config import ConfigError
from vipra_ros.machine import processor
from vipra_ros.policy.bench_report import plot, show
from vipra_ros.policy.checkpoint import Checkpoint
from vipra_ros.policy.engine import TorchEngine, load_engine
from vipra_ros.policy.floor import Machine, Pass, measure, passes
from vipra_ros.policy.observation import Observation
from vipra_ros.policy.pictures import from_jpeg, to_jpeg
from vipra_ros.policy.random_policy import INSTRUCTION, random_checkpoint
from vipra_ros.policy.shipped import resolve

#: Chunks of an engine before its turn ends, inferences before counting begins, size of a camera picture (h, w).
TURN, WARM, PICTURE = 10, 5, (480, 640)
PERCENTILES = (50, 95, 99)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Watch:
    """Takes the time of an engine's stages, waiting for the device at the end of each."""

    def __init__(self, device: str):
        self._settle = torch.cuda.synchronize if device == "cuda" else lambda: None
        self.laps: list[tuple[str, float]] = []
        self._last = 0.0

    def start(self) -> None:
        """A chunk begins now."""
        self._settle()
        self.laps, self._last = [], time.perf_counter()

    def __call__(self, name: str) -> None:
        """A stage ends now."""
        self._settle()
        now = time.perf_counter()
        self.laps.append((name, 1e3 * (now - self._last)))
        self._last = now


def pictures(checkpoint: Checkpoint, count: int, seed: int = 0) -> list[dict[str, list[bytes]]]:
    """JPEGs of made-up scenes, per camera the frames of one observation: soft shapes with a sensor's noise."""
    rng, c = np.random.default_rng(seed), checkpoint.config

    def picture() -> bytes:
        coarse = rng.integers(0, 256, (12, 16, 3), np.uint8)
        scene = cv2.resize(coarse, PICTURE[::-1], interpolation=cv2.INTER_CUBIC).astype(np.int16)
        return to_jpeg(np.clip(scene + rng.normal(0, 4, scene.shape), 0, 255).astype(np.uint8), 90)

    return [{name: [picture() for _ in range(c.policy.frames)] for name in c.cameras} for _ in range(count)]


def observe(checkpoint: Checkpoint, jpegs: dict[str, list[bytes]]) -> tuple[Observation, float]:
    """The observation those JPEGs make, and the ms their decoding took."""
    c = checkpoint.config
    began = time.perf_counter()
    frames = {name: np.stack([from_jpeg(data) for data in list_]) for name, list_ in jpegs.items()}
    spent = 1e3 * (time.perf_counter() - began)
    needs = c.proprio_steps or c.relative_actions
    joints = np.zeros((max(c.proprio_steps, 1), c.policy.action_dim)) if needs else None
    return Observation(0.0, frames, INSTRUCTION, joints), spent


def time_engines(engines: dict[str, TorchEngine], count: int, device: str, turn: int = TURN) -> dict[str, dict]:
    """name -> ms of `count` chunks each: lists `total`, `cpu`, `decode`, by stage, and `euler` (count, steps)."""
    checkpoint = next(iter(engines.values())).checkpoint
    jpegs = pictures(checkpoint, 8)
    found: dict[str, dict] = {name: {"total": [], "cpu": [], "stages": {}, "euler": []} for name in engines}
    for engine in engines.values():
        for k in range(WARM):
            engine.infer(observe(checkpoint, jpegs[k])[0], seed=k)
    for first in range(0, count, turn):
        for name, engine in engines.items():
            for k in range(first, min(first + turn, count)):
                _one(engine, observe(checkpoint, jpegs[k % len(jpegs)]), k, device, found[name])
    return found


def _one(engine: TorchEngine, observed: tuple[Observation, float], seed: int, device: str, row: dict) -> None:
    """Time one chunk as it runs and, on a GPU, once more with waits between its stages."""
    observation, decode = observed
    watch = Watch(device)
    engine.on_stage = watch if device == "cpu" else lambda name: None
    watch.start()
    began, processor = time.perf_counter(), time.process_time()
    engine.infer(observation, seed)
    row["total"].append(1e3 * (time.perf_counter() - began))
    row["cpu"].append(1e3 * (time.process_time() - processor))
    if device != "cpu":
        engine.on_stage = watch
        watch.start()
        engine.infer(observation, seed)
    engine.on_stage = lambda name: None
    sums = {"decode": decode}
    for name, ms in watch.laps:
        sums[name] = sums.get(name, 0.0) + ms
    for name, ms in sums.items():
        row["stages"].setdefault(name, []).append(ms)
    row["euler"].append([ms for name, ms in watch.laps if name == "denoise"])


def percentiles(values: list[float]) -> dict[str, float]:
    """{"p50_ms": ..., "p95_ms": ..., "p99_ms": ...}."""
    return {f"p{p}_ms": round(float(np.percentile(values, p)), 3) for p in PERCENTILES}


def report(times: dict[str, dict], work: list[Pass], machine: Machine, about: dict) -> dict:
    """The figures as they are written: the best engine's on top, then all engines', then machine and work."""
    floor = sum(machine.ms(p) for p in work)
    rows = []
    for name, t in times.items():
        whole = percentiles(t["total"])
        rows.append({
            "engine": name, **{k: about[k] for k in ("preset", "device", "n")}, **whole,
            "min_ms": round(min(t["total"]), 3), "cpu_p50_ms": round(float(np.median(t["cpu"])), 3),
            "floor_ms": round(floor, 3), "ratio_to_floor": round(whole["p50_ms"] / floor, 3),
            "stages": {stage: percentiles(values) for stage, values in t["stages"].items()},
            "euler_steps_p50_ms": [round(float(v), 3) for v in np.median(np.array(t["euler"]), axis=0)],
        })  # fmt: skip
    best = min(rows, key=lambda row: row["p50_ms"])
    rates = {"gflops": machine.flops / 1e9, "copy_gbytes_per_s": machine.bytes_per_s / 1e9, "routine": machine.routine}
    counted = [
        {"pass": p.name, "count": p.count, "gflop": p.flop / 1e9, "mbytes": p.bytes / 1e6, "floor_ms": machine.ms(p)}
        for p in work
    ]
    return {**best, **about, "engines": rows, "machine": {**about["machine"], **rates}, "work": counted}


def step_errors(checkpoint: Checkpoint, steps: list[int], observations: list[Observation], threads: int) -> list[dict]:
    """Difference of the chunk with few Euler steps to that with 10 and with 100, from the same noise.

    Over all joints and steps of the chunk, in the unit of the action columns (rad); the gripper is left out.
    """

    def chunks(count: int) -> np.ndarray:
        engine = load_engine(checkpoint, "torch", threads, count)
        return np.stack([engine.infer(o, seed=i).actions[:, :-1] for i, o in enumerate(observations)])

    fine, rows = {count: chunks(count) for count in (10, 100)}, []
    for count in steps:
        found = fine[count] if count in fine else chunks(count)
        row = {"steps": count, "n": len(observations)}
        for reference, there in fine.items():
            away = np.abs(found - there)
            row[f"to_{reference}_rad"] = {
                "mean": float(away.mean()), "p95": float(np.percentile(away, 95)), "max": float(away.max())
            }  # fmt: skip
        rows.append(row)
    return rows


def observations_of(checkpoint: Checkpoint, dataset: str, count: int, seed: int = 0) -> list[Observation]:
    """Observations from frames of a data set, at random places; without one, of made-up pictures."""
    if not dataset:
        return [observe(checkpoint, jpegs)[0] for jpegs in pictures(checkpoint, count)]
    from vipra_ros.data.dataset import Dataset

    c, found = checkpoint.config, Dataset(dataset)
    missing = [name for name in c.cameras if name not in found.cameras]
    if missing:
        raise ConfigError(f"{dataset} has no camera {missing[0]!r}; give one with {', '.join(c.cameras)}")
    stride = max(1, round(c.frame_stride * found.fps / c.rate))
    states, back = found.numeric("observation.state"), stride * (c.policy.frames - 1)
    places = [i for e in found.episodes for i in range(e.start + back, e.start + e.length)]
    picked = sorted(np.random.default_rng(seed).choice(places, min(count, len(places)), replace=False).tolist())
    observations = []
    for i in picked:
        indices = range(i - back, i + 1, stride)
        frames = {name: np.stack([found.frame(name, j) for j in indices]) for name in c.cameras}
        joints = states[max(0, i + 1 - max(c.proprio_steps, 1)) : i + 1].astype(np.float64)
        observations.append(Observation(i / found.fps, frames, found.episode_of(i).task, joints))
    return observations


def prefix_tokens(checkpoint: Checkpoint) -> int:
    """Tokens before the actions with the benchmark's instruction."""
    c, prompt = checkpoint.config, checkpoint.prompt
    text = len(prompt.before(INSTRUCTION)) + len(prompt.between) + len(prompt.after)
    return text + c.policy.vision_tokens + c.proprio_steps


def describe(device: str, threads: int) -> dict:
    """Processor or card, versions, load."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "onnxruntime", "vipra_ros"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            from vipra_ros import __version__

            versions[name] = __version__ if name == "vipra_ros" else "none"
    card = torch.cuda.get_device_name() if device == "cuda" else ""
    return {"processor": processor(), "processors": os.cpu_count(), "card": card, "threads": threads,
            "versions": versions}  # fmt: skip


def main(
    checkpoint: str, engine: str, count: int, device: str, preset: str, random: bool, dtype: str, threads: int,
    steps: str, dataset: str, observations: int, json_path: str, plot_path: str,
) -> None:  # fmt: skip
    """Measure, print, and write the figures."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda: torch finds no GPU here; install its CUDA build, or use --device cpu")
    if preset and not random:
        raise ConfigError(f"--preset {preset} has no trained weights here; add --random, or give --checkpoint")
    if count < 1:
        raise ConfigError(f"-n {count}: time at least one chunk")
    torch.set_num_threads(threads)
    if random:
        loaded = random_checkpoint(preset or "tiny", device, DTYPES[dtype])
    else:
        loaded = Checkpoint.load(resolve(checkpoint), device)
        loaded.policy.to(DTYPES[dtype])
    c, load = loaded.config, [os.getloadavg()[0]]
    if c.decoder != "flow":
        raise ConfigError(f"{checkpoint} has a {c.decoder} decoder; the benchmark knows the passes of flow matching")
    release = {"release": True} if engine == "static" and random else {}
    engines = {name: load_engine(loaded, name, threads, **release) for name in engine.split(",")}
    before = measure(device, DTYPES[dtype], threads)
    times = time_engines(engines, count, device)
    after = measure(device, DTYPES[dtype], threads)
    load.append(os.getloadavg()[0])
    machine = Machine(
        max(before.flops, after.flops), max(before.bytes_per_s, after.bytes_per_s),
        max(before, after, key=lambda m: m.flops).routine,
    )  # fmt: skip
    work = passes(c.policy, c.vq, prefix_tokens(loaded), c.euler_steps, DTYPES[dtype].itemsize)
    about = {"checkpoint": "random" if random else checkpoint, "preset": c.preset, "device": device, "n": count,
             "dtype": dtype, "euler_steps": c.euler_steps, "prefix_tokens": prefix_tokens(loaded)}  # fmt: skip
    about["machine"] = {**describe(device, threads), "load_before": load[0], "load_after": load[1]}
    figures = report(times, work, machine, about)
    if device == "cuda":
        figures["gpu_peak_gbytes"] = torch.cuda.max_memory_allocated() / 1e9
    if steps:
        seen = observations_of(loaded, dataset, observations)
        figures["steps"] = step_errors(loaded, [int(k) for k in steps.split(",")], seen, threads)
        figures["steps_frames"] = dataset or "made up"
    show(figures)
    for path in filter(None, (json_path, plot_path)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    if json_path:
        Path(json_path).write_text(json.dumps(figures, indent=1) + "\n")
    if plot_path:
        plot(figures, {name: t["total"] for name, t in times.items()}, plot_path)
