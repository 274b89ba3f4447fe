"""Steps that build on each other, each done once, by one process or by several that share a folder.

A finished step leaves FOLDER/NAME.json with the settings it was done with, one that was begun FOLDER/NAME.begun. One
under way holds a lock on FOLDER/NAME.lock, which ends with its process, however that ends: another then takes the step
over.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vipra_ros.config import ConfigError
from vipra_ros.json_file import write_json
from vipra_ros.learning import presets
from vipra_ros.lock import held
from vipra_ros.machine import machine
from vipra_ros.whole_file import write_whole

#: s, between two looks at what other processes have finished.
PAUSE = 2.0


@dataclass
class Step:
    """One entry of a list.

    Attributes:
        expected: minutes, None when it trains by steps.
        settings: what the result depends on.
        needs: names of the steps it builds on; one that is no step (a user's own data set) is there already.
        made_of: of a training, the class of its configuration.
    """

    name: str
    expected: float | None
    settings: Any
    work: Callable[[], None]
    needs: tuple[str, ...] = ()
    made_of: type | None = None

    def done_with(self, kept: Any) -> bool:
        """Whether `kept`, the settings of a finished step, are these; keys that came later stood at their defaults."""
        now = json.loads(json.dumps(self.settings))
        if self.made_of is not None:
            kept = [presets.completed(self.made_of, kept[0], now[0]), *kept[1:]]
        return kept == now


class Worklist:
    """Steps by name in the order they are wanted in, and the folder that knows which of them are done."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.steps: dict[str, Step] = {}

    def add(self, step: Step) -> str:
        """Its name; a step of that name that is there already stays."""
        return self.steps.setdefault(step.name, step).name

    def keep(self, wanted: Iterable[str]) -> None:
        """Drop what none of the `wanted` steps builds on, directly or not."""
        needed, left = set(), list(wanted)
        while left:
            if (name := left.pop()) in self.steps and name not in needed:
                needed.add(name)
                left += self.steps[name].needs
        for name in self.steps.keys() - needed:
            del self.steps[name]

    def done(self, name: str) -> bool:
        """Whether this step is finished."""
        return self._marker(name).exists()

    def under_way(self, name: str) -> bool:
        """Whether a process is at it now."""
        if not self._lock(name).exists():
            return False
        with held(self._lock(name)) as mine:
            return not mine

    def run(self, after: Callable[[Step], None]) -> None:
        """Do what is not done, the first possible step first, until all are, here or elsewhere; `after` each done here.

        Raises:
            ConfigError: a step was done or begun with other settings.
        """
        for step in self.steps.values():
            self._check(step)
        self.folder.mkdir(parents=True, exist_ok=True)
        said = ""
        while left := [step for step in self.steps.values() if not self.done(step.name)]:
            if (step := self._one(step for step in left if self._ready(step))) is not None:
                after(step)
                continue
            names = ", ".join(step.name for step in left if self.under_way(step.name))
            if names and names != said:
                print(f"[reproduce] waiting for another process: {names}", flush=True)
            said = names
            time.sleep(PAUSE)

    def _ready(self, step: Step) -> bool:
        return all(self.done(name) for name in step.needs if name in self.steps)

    def _one(self, steps: Iterable[Step]) -> Step | None:
        """Does the first of these that no other process is at."""
        for step in steps:
            with held(self._lock(step.name)) as mine:
                if not mine or self.done(step.name):
                    continue
                print(f"[reproduce] {step.name}", flush=True)
                self._check(step)  # another process may have begun it since
                begun = self.folder / f"{step.name}.begun"
                write_whole(begun, json.dumps({"settings": step.settings}))
                began = time.monotonic()
                step.work()
                minutes = (time.monotonic() - began) / 60
                # In whole: others take a marker that is there for done.
                write_json({"settings": step.settings, "minutes": minutes, "machine": machine()},
                           self._marker(step.name))
                begun.unlink(missing_ok=True)
                return step
        return None

    def _check(self, step: Step) -> None:
        marker = self._marker(step.name)
        if marker.exists() and not step.done_with(json.loads(marker.read_text())["settings"]):
            raise ConfigError(f"{marker}: {step.name} was done with other settings; give another folder")
        begun = self.folder / f"{step.name}.begun"  # versions without it left none
        if begun.exists() and not step.done_with(json.loads(begun.read_text())["settings"]):
            raise ConfigError(f"{begun}: {step.name} was begun with other settings; delete this file and what the step "
                              "has made so far, or give another folder")

    def _marker(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _lock(self, name: str) -> Path:
        return self.folder / f"{name}.lock"
