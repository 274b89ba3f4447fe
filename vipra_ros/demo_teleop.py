"""`vipra demo-teleop`: from hands to a data set and back, with every real part in the path, in one command.

emulated GELLO moved by the scripted expert -> gello node -> executor -> simulated controller -> recorder -> bags
-> data set and report -> replay of the data set on the simulated arm.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from vipra_ros.config import ConfigError

#: s that one demonstration may take, with the start and the end of its system.
LIMIT = 120.0
#: The servos are a program here and share the cores with all else: one may answer late.
LATE = """/**/gello:
  ros__parameters:
    late_read: 0.3
"""
#: s; for the same reason longer pauses in the bags are bridged than on a robot, where they would mean a fault.
BRIDGED = 0.4
#: What it logs, and its last word where it fails.
SAID = re.compile(r"(?:\[demonstrator\]:|\] demonstrator:) (.*)")
#: Folder in which an earlier run is replaced; elsewhere nothing is.
OUT = "out/demo-teleop"


def run(tasks: Sequence[str], seed: int, episodes: int, out: str | Path) -> int:
    """Demonstrate, convert, replay; 0 when every demonstration and every replay succeeded.

    Args:
        tasks: demonstrated one after the other, `episodes` each, seeds from `seed` on.
        out: folder for bags, dataset, logs and replay.json; what is in OUT is replaced.

    Raises:
        ConfigError: a demonstration did not succeed, the message says what was seen; another folder than OUT has bags
            or a data set already.
    """
    from rich.console import Console

    out = Path(out)
    bags, dataset = out / "bags", out / "dataset"
    for old in (bags, dataset):
        if old.exists() and out.resolve() != Path(OUT).resolve():
            raise ConfigError(f"{old} is there already, and would be replaced; move it away, or give another --out")
    for old in (bags, dataset):
        shutil.rmtree(old, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    console = Console(width=80, highlight=False)
    for number, task in enumerate(tasks, start=1):
        console.print(f"[bold]{number}  teleoperate:[/bold] emulated GELLO, scripted expert, task {task}")
        for line in demonstrate(task, seed, episodes, bags, out / f"teleop-{task}.log"):
            console.print(f"   {line}", markup=False)
    number = len(tasks) + 1
    console.print(f"[bold]{number}  convert:[/bold] bags to a data set, checked")
    _convert(bags, dataset, console)
    console.print(f"[bold]{number + 1}  replay:[/bold] the data set's actions through the executor, same scenes")
    from vipra_ros.nodes.dataset_replay import run as replay

    failed = replay(str(dataset), [f"0-{len(tasks) * episodes - 1}"], str(out / "replay.json"))
    for path in (bags, dataset, dataset / "meta" / "report.html", out / "replay.json"):
        console.print(str(path), markup=False, soft_wrap=True)
    return failed


def demonstrate(task: str, seed: int, episodes: int, bags: Path, log: Path) -> list[str]:
    """Run `vipra up teleop` with the expert until it ends; what the demonstrator said.

    Raises:
        ConfigError: it did not end well.
    """
    from vipra_ros.nodes.system import PATIENT, System

    given = {"gello": "emulated", "expert": task, "seed": seed, "episodes": episodes, "record": bags}
    with System(log=log, system="teleop", parameters=PATIENT + LATE, arm_on_start="auto", **given) as system:
        status = system.wait(LIMIT + 30.0 * episodes)
    said = [s for s in SAID.findall(log.read_text(errors="replace")) if not s.startswith("an emulated")]
    if status:
        raise ConfigError(f"demonstration of {task}: {'; '.join(said[-2:]) or 'nothing was said'} (log: {log})")
    return said


def _convert(bags: Path, dataset: Path, console) -> None:
    from vipra_ros.data.convert import convert
    from vipra_ros.data.work import load_settings

    settings = load_settings(resampling={"joint_gap": BRIDGED, "image_age": BRIDGED})
    began = time.monotonic()
    report = convert([bags], dataset, progress=False, quiet=True, settings=settings)
    flags = ", ".join(f"{k} {n}x" for k, n in report.flags().items()) or "none"
    seconds = time.monotonic() - began
    console.print(f"   {report.count('converted')} episodes, {report.frames} frames in {seconds:.1f} s; flags: {flags}")
