"""Five steps for the tests of worklists, and workers that die, in a module that a spawned process can import."""

import os
import signal
import time
from pathlib import Path

from vipra_ros.learning import worklist
from vipra_ros.learning.worklist import Step, Worklist

NEEDS = {"videos": (), "demos": (), "latent": ("videos",), "labels": ("latent", "videos"),
         "policy": ("labels", "demos")}


def note(folder: Path, name: str, seconds: float) -> None:
    time.sleep(seconds)
    with open(folder / "log", "a") as log:
        log.write(f"{name} {os.getpid()}\n")


def listed(folder: Path, seconds: float = 0.0) -> Worklist:
    work = Worklist(folder / "done")
    for name in reversed(NEEDS):  # wanted in an order in which they cannot be done
        work.add(Step(name, None, [name], lambda name=name: note(folder, name, seconds),
                      (*NEEDS[name], "data of the user")))
    return work


def do(folder: Path, seconds: float) -> None:
    worklist.PAUSE = 0.05
    listed(folder, seconds).run(lambda step: None)


def begin(*_) -> None:
    pass


def die(_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def tidy(folder: Path) -> None:
    """Long work that tidies up after itself; that in `quick` is soon done."""
    (folder / "begun").touch()
    try:
        time.sleep(0.0 if folder.name == "quick" else 60.0)
    finally:
        (folder / "tidied").touch()


def number(job):
    """The process that does it."""
    return os.getpid()
