"""`vipra bench data`: how fast bags of two 640x480 cameras become a data set, and how much memory it takes.

The episodes are made here, the same on every machine: windows that wander over large textures with objects moving
on their own and noise as sensors have it, so that neither JPEG nor H.264 has an easy time. Every measurement is a
process of its own, so that peak memory belongs to it.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from vipra_ros.data import messages as m
from vipra_ros.json_file import json_writer
from vipra_ros.machine import in_words, peak_memory

CAMERAS, HEIGHT, WIDTH, RATE = ("front", "wrist"), 480, 640, 30
JOINTS = [f"fr3_joint{i + 1}" for i in range(7)]
_LOOP = 10  # s of pictures that are made; longer episodes show them again


def pictures(seed: int, seconds: float = _LOOP) -> dict[str, list[bytes]]:
    """JPEGs of every camera, `RATE` a second: a drifting texture, three discs that cross it, noise in every pixel."""
    import cv2

    rng = np.random.default_rng(seed)
    noise = [rng.normal(0, 3, (HEIGHT, WIDTH, 1)).astype(np.float32) for _ in range(16)]
    out: dict[str, list[bytes]] = {}
    for camera in CAMERAS:
        canvas = np.zeros((2 * HEIGHT, 2 * WIDTH, 3), np.float32)
        for size, weight in ((8, 0.5), (32, 0.3), (128, 0.15), (480, 0.05)):  # large structures are the strongest
            layer = rng.uniform(0, 255, (size, size * 4 // 3, 3)).astype(np.float32)
            canvas += weight * cv2.resize(layer, (2 * WIDTH, 2 * HEIGHT), interpolation=cv2.INTER_CUBIC)
        phase = rng.uniform(0, 6, 8)
        out[camera] = []
        for k in range(int(seconds * RATE)):
            a = 2 * np.pi * k / (_LOOP * RATE)  # whole turns a loop: the repetition has no seam
            x, y = int(WIDTH * (0.5 + 0.3 * np.sin(a + phase[0]))), int(HEIGHT * (0.5 + 0.3 * np.cos(2 * a + phase[1])))
            image = canvas[y : y + HEIGHT, x : x + WIDTH].copy()
            for i in range(3):
                across, down = np.sin(a * (i + 1) + phase[2 + i]), np.cos(a * (3 - i) + phase[5 + i])
                at = (int(WIDTH * (0.5 + 0.4 * across)), int(HEIGHT * (0.5 + 0.4 * down)))
                cv2.circle(image, at, 30 + 12 * i, [(220, 40, 30), (40, 190, 60), (40, 60, 220)][i], -1, cv2.LINE_AA)
            image = (image + noise[k % len(noise)]).clip(0, 255).astype(np.uint8)
            out[camera].append(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
    return out


def record(root: Path, name: str, seconds: float, jpegs: dict[str, list[bytes]]) -> Path:
    """An episode as the recorder writes it: pictures at 30 Hz, measured and commanded joints at 100 Hz."""
    from vipra_ros.data.bag_writer import EpisodeWriter

    writer = EpisodeWriter(root, name, sync=False)
    start = m.NS
    writer.write("executor/gripper_command", m.FLOAT32, m.float32(1.0), start)
    joint = picture = 0
    while joint <= seconds * 100:
        t = joint / 100
        while picture / RATE <= t:
            stamp = start + round(picture / RATE * m.NS)
            for camera, made in jpegs.items():
                raw = m.compressed_image(stamp, camera, made[picture % len(made)])
                writer.write(f"camera/{camera}/image_raw/compressed", m.COMPRESSED_IMAGE, raw, stamp)
            picture += 1
        stamp = start + round(t * m.NS)
        q, ahead = (0.4 * np.sin(1.3 * s + 0.3 * np.arange(7)) for s in (t, t + 0.04))
        measured = m.joint_state(stamp, [*JOINTS, "fr3_finger_joint1"], [*q, 0.04], [0.0] * 8)
        writer.write("joint_states", m.JOINT_STATE, measured, stamp)
        writer.write("executor/joint_command", m.JOINT_STATE, m.joint_state(stamp, JOINTS, ahead, [0.0] * 7), stamp)
        joint += 1
    return writer.close({"instruction": "push the green cube into the blue zone", "success": True, "robot": "fr3"})


def bench(
    seconds: float = 20.0,
    episodes: tuple[int, ...] = (10, 40),
    lengths: tuple[float, ...] = (20.0, 120.0),
    workers: int = 2,
    seed: int = 0,
    json_path: str | None = None,
) -> dict[str, Any]:
    """Measure and print.

    Args:
        seconds: length of an episode of the speed measurement. episodes: how many, one measurement each.
        lengths: s, of the bags of the memory measurement, one each.
    """
    save = json_writer(json_path)
    with tempfile.TemporaryDirectory(prefix="vipra_bench_") as folder:
        root = Path(folder)
        made = [pictures(seed), pictures(seed + 1)]
        originals = [record(root / "made", f"{k}", seconds, jpegs) for k, jpegs in enumerate(made)]
        found: dict[str, Any] = {"machine": in_words(), "seed": seed, "workers": workers, "seconds": seconds}
        found["jpeg_kb"] = round(float(np.mean([len(j) for jpegs in made for c in jpegs.values() for j in c])) / 1e3, 1)
        found["speed"] = []
        for count in episodes:
            bags = root / f"bags{count}"
            for k in range(count):  # links: the same two episodes under many names
                shutil.copytree(originals[k % 2], bags / f"episode{k:05d}", copy_function=os.link)
            one = _measured(bags, root / f"set{count}", workers)
            found["speed"].append({"episodes": count, **_speed(one, count * seconds)})
        found["memory"] = []
        for length in lengths:
            path = record(root / f"long{length:g}", "long", length, made[0])
            size = sum(f.stat().st_size for f in path.iterdir())
            one = _measured(path, root / f"long_set{length:g}", 1)
            sizes = {"bag_mb": round(size / 1e6), "peak_mb": round(one["self_mb"])}
            found["memory"].append({"seconds": length, **sizes, "wall_s": one["wall_s"]})
            shutil.rmtree(path)
    print(table(found))
    save(found)
    return found


def _speed(one: dict[str, Any], recorded: float) -> dict[str, Any]:
    p50, p95, p99 = np.percentile(one["times"], [50, 95, 99])
    cpu = one["cpu_s"]
    return {
        "wall_s": one["wall_s"],
        "times_real": round(recorded / one["wall_s"], 1),
        "episode_s": {"n": len(one["times"]), "p50": round(p50, 3), "p95": round(p95, 3), "p99": round(p99, 3)},
        "wall_per_episode_s": round(one["wall_s"] / len(one["times"]), 3),
        "encode_share": round(one["encode_s"] / cpu, 3),
        "video_share": round(one["video_s"] / cpu, 3),
        "peak_mb": round(one["self_mb"] + one["workers"] * one["child_mb"]),
    }


def _measured(bags: Path, out: Path, workers: int) -> dict[str, Any]:
    """Convert in a fresh process."""
    code = "import sys; from vipra_ros.data.bench import one; one(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(bags), str(out), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"bench: a conversion failed: {done.stderr.strip().splitlines()[-1:]}")
    shutil.rmtree(out)
    return json.loads(done.stdout)


def one(bags: str, out: str, workers: str) -> None:
    """The measured process: converts and prints its figures as JSON."""
    from vipra_ros.data.convert import convert

    began = time.monotonic()
    report = convert(Path(bags), Path(out), workers=int(workers), quiet=True, progress=False)
    wall = time.monotonic() - began
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    bad = [e["reason"] for e in report.episodes if e["status"] != "converted"]
    if bad:
        raise RuntimeError(bad[0])
    figures = {
        "wall_s": round(wall, 2),
        "times": report.times,
        "encode_s": report.encode_seconds,
        "video_s": report.video_seconds,
        "cpu_s": own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
        "self_mb": peak_memory(),
        "child_mb": report.rss_mb if int(workers) > 1 else 0.0,  # the workers measure themselves
        "workers": int(workers),
    }
    print(json.dumps(figures))


def table(found: dict[str, Any]) -> str:
    """What is printed."""
    lines = [
        f"{found['machine']}",
        f"two cameras {WIDTH}x{HEIGHT} at {RATE} Hz, JPEG of {found['jpeg_kb']:g} kB, episodes of "
        f"{found['seconds']:g} s, to 15 Hz with {found['workers']} workers, seed {found['seed']}",
        "",
        f"{'episodes':>8} {'x real time':>12} {'s/episode':>10} {'p50':>7} {'p95':>7} {'p99':>7} {'encoding':>9} "
        f"{'all video':>10} {'peak MB':>8}",
    ]
    for s in found["speed"]:
        e = s["episode_s"]
        lines.append(
            f"{s['episodes']:8d} {s['times_real']:12.1f} {s['wall_per_episode_s']:10.2f} "
            f"{e['p50']:7.2f} {e['p95']:7.2f} {e['p99']:7.2f} "
            f"{s['encode_share']:9.0%} {s['video_share']:10.0%} {s['peak_mb']:8d}"
        )
    lines += [
        "  s/episode: wall clock over episodes; p50 to p99: s in the worker; shares of all processor time;",
        "  all video: decoding, checks and encoding; peak of all processes together",
        "",
        f"{'bag, s':>8} {'bag, MB':>8} {'peak MB':>8} {'wall, s':>8}   one worker, in its own process",
    ]
    lines += [f"{r['seconds']:8g} {r['bag_mb']:8d} {r['peak_mb']:8d} {r['wall_s']:8.1f}" for r in found["memory"]]
    return "\n".join(lines)
