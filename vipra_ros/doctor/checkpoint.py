"""A checkpoint folder: complete, for this robot, and whether the processor of the policy has room for it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from vipra_ros.config import ConfigError
from vipra_ros.control.profile import RobotProfile
from vipra_ros.doctor.report import FAIL, OK, WARN, Finding, refusal
from vipra_ros.policy.deployment import check_deployment

AREA = "checkpoint"
MIB = 2**20
#: Memory of an inference beyond the weights, as a share of them; and what a CUDA context takes, bytes.
WORKING, CONTEXT = 0.5, 500 * MIB


def compatibility(folder: Path, profile: RobotProfile, real_arm: bool = False) -> list[Finding]:
    """Loads the folder as the policy does and compares it with the robot; `real_arm`: one is to be driven."""
    try:
        from vipra_ros.policy.checkpoint import Checkpoint, CheckpointError
    except ImportError as error:
        return [Finding(AREA, "loading", WARN, f"{error.name} is not installed: not looked into",
                        "in the checkout: pip install '.[train]'")]
    try:
        checkpoint = Checkpoint.load(folder)
    except CheckpointError as error:
        return [refusal(AREA, "loading", error, "train or copy it again")]
    c = checkpoint.config
    text = f"{c.variant} {c.preset}, cameras {', '.join(c.cameras)}, {c.rate:g} Hz, "
    text += f"{c.execute_steps} of {c.horizon} steps"
    found = [Finding(AREA, "loading", OK, text)]
    try:
        check_deployment(c.decoder, c.variant, simulated=False)
    except ConfigError as error:
        found.append(refusal(AREA, "decoder", error, "take another policy", FAIL if real_arm else WARN))
    try:
        checkpoint.check(profile)
    except CheckpointError as error:
        return [*found, refusal(AREA, "robot profile", error, "give the robot's own profile (--profile)")]
    return [*found, Finding(AREA, "robot profile", OK, f"joints and order of {profile.name}")]


def gpus(run: Callable = subprocess.run) -> list[tuple[str, int, int]]:
    """(name, free bytes, all bytes) of every NVIDIA GPU; empty without driver."""
    query = ["nvidia-smi", "--query-gpu=name,memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = run(query, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.rsplit(",", 2) for line in done.stdout.splitlines() if line.count(",") >= 2] * (done.returncode == 0)
    return [(name.strip(), int(free) * MIB, int(total) * MIB) for name, free, total in rows
            if free.strip().isdigit() and total.strip().isdigit()]


def memory(folder: Path | None, found: list[tuple[str, int, int]]) -> Finding:
    """Whether a GPU has room for the weights in `folder` (None: no checkpoint was given)."""
    weights = sum(p.stat().st_size for p in folder.glob("*.safetensors")) if folder else 0
    if not found:
        level = WARN if weights > 4000 * MIB else OK
        text = "no GPU: the policy computes on the processors" + f" ({weights / MIB:.0f} MiB of weights)" * bool(folder)
        return Finding(AREA, "GPU memory", level, text, "use a machine with a GPU" * (level != OK))
    name, free, total = max(found, key=lambda gpu: gpu[1])
    needed = int(weights * (1 + WORKING)) + CONTEXT
    text = f"{name}: {free / MIB:.0f} of {total / MIB:.0f} MiB free, about {needed / MIB:.0f} needed"
    if free >= needed:
        return Finding(AREA, "GPU memory", OK, text)
    return Finding(AREA, "GPU memory", FAIL, text, "end what holds its memory (nvidia-smi), or use a larger one")
