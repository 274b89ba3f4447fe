"""`vipra bench policy`: how long a chunk takes, stage by stage, beside what this machine cannot go below.

The engines take turns, a few chunks each, so that what else the machine does meets all of them alike; the machine's
rates are measured before and after, and the better count. `p50_ms` and the others are wall time of an inference, from
frames and joints to actions in rad; decoding the camera's JPEG happens as it arrives and is a stage beside it.
`min_ms` is the fastest chunk and `cpu_p50_ms` the processor time of all threads, which other programs' load does not
stretch as much; the rates under the floor are the best of many short tries for the same reason.
"""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cv2
import numpy as np
import torch

from vipra_ros.config import ConfigError
from vipra_ros.json_file import json_writer
from vipra_ros.machine import processor
from vipra_ros.policy.bench_report import plot, show
from vipra_ros.policy.bench_steps import observations_of, parse_steps, step_errors
from vipra_ros.policy.bench_weights import DTYPES, labels, parse_weights, weight_errors
from vipra_ros.policy.checkpoint import Checkpoint, CheckpointConfig
from vipra_ros.policy.device import choose_device
from vipra_ros.policy.engine import load_engine
from vipra_ros.policy.floor import Machine, Pass, measure, passes
from vipra_ros.policy.observation import Observation
from vipra_ros.policy.operations import count_operations
from vipra_ros.policy.pictures import from_jpeg, to_jpeg
from vipra_ros.policy.random_policy import INSTRUCTION, random_checkpoint
from vipra_ros.policy.shipped import resolve
from vipra_ros.policy.torch_engine import TorchEngine
from vipra_ros.policy.weights import ENGINES_OF_8_BITS

#: Chunks of an engine before its turn ends, inferences before counting begins, size of a camera picture (h, w).
TURN, WARM, PICTURE = 10, 5, (480, 640)
#: Stages that come many times a chunk, and whose times are of interest each.
SINGLE = ("denoise", "tokens")
PERCENTILES = (50, 95, 99)
#: Engines measured when none are named, by decoder and kind of device.
DEFAULT = {
    ("flow", "cpu"): ["eager", "torch", "fused"], ("flow", "cuda"): ["eager", "torch", "static"],
    ("discrete", "cpu"): ["eager", "torch"], ("discrete", "cuda"): ["eager", "torch"],
}  # fmt: skip


class Watch:
    """Takes the time of an engine's stages, waiting for the device at the end of each."""

    def __init__(self, device: str):
        self._settle = (lambda: None) if device == "cpu" else lambda: torch.cuda.synchronize(device)
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
    """name -> ms of `count` chunks each: lists `total`, `cpu`, `stages` by name, and of every Euler step and token
    `denoise` (count, steps) and `tokens` (count, tokens), empty where the decoder has none."""
    checkpoint = next(iter(engines.values())).checkpoint
    jpegs = pictures(checkpoint, 8)
    found: dict[str, dict] = {
        name: {"total": [], "cpu": [], "stages": {}, **{stage: [] for stage in SINGLE}} for name in engines
    }
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
    for stage in SINGLE:
        row[stage].append([ms for name, ms in watch.laps if name == stage])


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
            "euler_steps_p50_ms": [round(float(v), 3) for v in np.median(np.array(t["denoise"]), axis=0)],
            **({"token_p50_ms": round(float(np.median(t["tokens"])), 3)} if np.size(t["tokens"]) else {}),
        })  # fmt: skip
    best = min(rows, key=lambda row: row["p50_ms"])
    rates = {"gflops": machine.flops / 1e9, "copy_gbytes_per_s": machine.bytes_per_s / 1e9, "routine": machine.routine}
    counted = [
        {"pass": p.name, "count": p.count, "gflop": p.flop / 1e9, "mbytes": p.bytes / 1e6, "floor_ms": machine.ms(p)}
        for p in work
    ]
    return {**best, **about, "engines": rows, "machine": {**about["machine"], **rates}, "work": counted}


def prefix_tokens(checkpoint: Checkpoint) -> int:
    """Tokens before the actions with the benchmark's instruction."""
    c, prompt = checkpoint.config, checkpoint.prompt
    text = len(prompt.before(INSTRUCTION)) + len(prompt.between) + len(prompt.after)
    return text + c.policy.vision_tokens + c.proprio_steps


def chunk_tokens(config: CheckpointConfig) -> int:
    """Tokens of a chunk of a discrete decoder."""
    return config.horizon * config.policy.action_dim


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
    checkpoint: str, engine: str, count: int, device: str, preset: str, random: bool, decoder: str, dtype: str,
    threads: int, euler_steps: int, steps: str, weights: str, dataset: str, observations: int, json_path: str,
    plot_path: str,
) -> None:  # fmt: skip
    """Measure, print, and write the figures."""
    if (preset or decoder != "flow") and not random:
        given = f"--preset {preset}" if preset else f"--decoder {decoder}"
        raise ConfigError(f"{given} has no trained weights here; add --random, or give --checkpoint")
    if count < 1:
        raise ConfigError(f"-n {count}: time at least one chunk")
    save = json_writer(json_path)
    if plot_path:
        Path(plot_path).parent.mkdir(parents=True, exist_ok=True)
    device = choose_device(device, engine.split(",") if engine else ["torch"])
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(threads)

    def opened(numbers: torch.dtype) -> Checkpoint:
        if random:
            return random_checkpoint(preset or "tiny", device, numbers, decoder=decoder)
        found = Checkpoint.load(resolve(checkpoint), device)
        found.policy.to(numbers)
        return found

    loaded, load = opened(DTYPES[dtype]), [os.getloadavg()[0]]
    c, names = loaded.config, engine.split(",") if engine else DEFAULT[loaded.config.decoder, kind]
    counts, in_8_bits = parse_steps(steps, c.decoder), parse_weights(weights, names)
    timed = labels(names, in_8_bits)
    # What is folded once need not lie on the card twice, where nobody else computes with it.
    release = {"release": True} if list(timed) == ["static"] and random and not counts and c.decoder == "flow" else {}
    engines = {
        label: load_engine(loaded, name, threads, euler_steps, weights=numbers, **release)
        for label, (name, numbers) in timed.items()
    }
    before = measure(device, DTYPES[dtype], threads)
    times = time_engines(engines, count, device)
    after = measure(device, DTYPES[dtype], threads)
    load.append(os.getloadavg()[0])
    machine = Machine(
        max(before.flops, after.flops), max(before.bytes_per_s, after.bytes_per_s),
        max(before, after, key=lambda m: m.flops).routine,
    )  # fmt: skip
    length = {"euler_steps": euler_steps or c.euler_steps} if c.decoder == "flow" else {"tokens": chunk_tokens(c)}
    work = passes(c.policy, c.vq, prefix_tokens(loaded), length.get("euler_steps", 0), DTYPES[dtype].itemsize)
    about = {"checkpoint": "random" if random else checkpoint, "preset": c.preset, "device": device, "n": count,
             "dtype": dtype, "decoder": c.decoder, **length, "prefix_tokens": prefix_tokens(loaded)}  # fmt: skip
    about["machine"] = {**describe(kind, threads), "load_before": load[0], "load_after": load[1]}
    figures = report(times, work, machine, about)
    seen = observe(loaded, pictures(loaded, 1)[0])[0]
    for row in figures["engines"]:
        row["weights"], row["trunk_mbytes"] = timed[row["engine"]][1], engines[row["engine"]].trunk_bytes / 1e6 or None
        row["operations"] = count_operations(lambda e=engines[row["engine"]]: e.infer(seen, 0)).total()
    figures |= next(row for row in figures["engines"] if row["engine"] == figures["engine"])
    if kind == "cuda":
        figures["gpu_peak_gbytes"] = torch.cuda.max_memory_allocated() / 1e9
    if counts or in_8_bits:
        seen = (observations_of(loaded, dataset, observations) if dataset else
                [observe(loaded, jpegs)[0] for jpegs in pictures(loaded, observations)])  # fmt: skip
        figures["error_frames"] = dataset or "made up"
    if counts:
        figures["steps"] = step_errors(loaded, timed[figures["engine"]][0], counts, seen, threads)
    if in_8_bits and not random:  # random weights answer with noise, and an error in it says nothing
        able = next(name for name, _ in timed.values() if name in ENGINES_OF_8_BITS)
        engines.clear()
        figures["weight_errors"] = weight_errors(opened, able, in_8_bits, seen, threads, euler_steps)
    show(figures)
    save(figures)
    if plot_path:
        plot(figures, {name: t["total"] for name, t in times.items()}, plot_path)
