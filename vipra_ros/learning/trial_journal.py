"""What is written down of the trials of an evaluation on a robot. Pure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vipra_ros.config import ConfigError
from vipra_ros.learning.trials import Blind, Plan, Slot, digest
from vipra_ros.whole_file import write_whole

SUCCESS, FAILURE, INVALID = LABELS = ("success", "failure", "invalid")
RESULTS = "results.jsonl"


@dataclass
class Trial:
    """One trial that was done.

    Attributes:
        slot: number in the schedule. code: letter of the policy. label: one of `LABELS`.
        by: operator, simulator, executor or "time limit".
        seconds: from arming to the end: the label, the stop, or what ended it.
        stalls: see `interruptions`; stops: times it held or faulted by itself.
        stopped: the reason of the last such stop.
        chunks, rejected: accepted and refused ones. limited: rows that a limit changed.
        video: file beside the results, or empty. began: ISO time, UTC. words: what the policy was told.
        model: from `Journal.model`; empty in journals that kept none.
    """

    slot: int
    code: str
    task: str
    block: int
    seed: int
    label: str
    by: str = "operator"
    seconds: float = 0.0
    stalls: int = 0
    stops: int = 0
    stopped: str = ""
    chunks: int = 0
    rejected: int = 0
    limited: int = 0
    video: str = ""
    began: str = ""
    words: str = ""
    model: str = ""


class Journal:
    """The trials of one plan in FOLDER/results.jsonl; every change replaces the file as a whole.

    Attributes:
        blind: the letters that its trials go by.

    Raises:
        ConfigError: the file belongs to another plan, or is not ours.
    """

    def __init__(self, folder: str | Path, plan: Plan):
        self.path, self._plan = Path(folder) / RESULTS, plan
        self.trials: list[Trial] = []
        self.blind = Blind(plan)
        self._head = {"plan": plan.fingerprint, "letters": "plan"}
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        lines = self.path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # words may hold U+2028
        try:
            head, *rows = [json.loads(line) for line in lines]
            found = head["plan"]
            self.trials = [Trial(**row) for row in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.path} cannot be read ({error}); give another folder") from None
        if found != self._plan.fingerprint:
            raise ConfigError(f"{self.path} holds trials of plan {found}, this one is {self._plan.fingerprint}: "
                              "give another folder, or the plan as it was")
        if "letters" not in head:  # begun by a version that drew them so: they stay
            self.blind, self._head = Blind(self._plan, by_seed=True), head

    def model(self, code: str, checkpoint: str) -> str:
        """What a trial of policy `code` keeps of its checkpoint's hash or address: a hash that names no policy.

        Raises:
            ConfigError: the valid trials of this letter were another checkpoint's.
        """
        made = digest(f"{self._plan.fingerprint} {checkpoint}")
        if made != next((t.model for t in self.counted() if t.code == code and t.model), made):
            raise ConfigError(f"policy {code} has another checkpoint than in its trials so far: put that one back, or "
                              "give another folder")
        return made

    def add(self, trial: Trial) -> None:
        """Keep a trial; on disk when this returns."""
        if trial.label not in LABELS:
            raise ConfigError(f"label {trial.label!r}: choose one of {', '.join(LABELS)}")
        self.trials.append(trial)
        self.write()

    def take_back(self) -> Trial | None:
        """The last trial becomes invalid, to be done again; None when there is none to take back."""
        last = self.trials[-1] if self.trials else None
        if last is None or last.label == INVALID:
            return None
        last.label, last.by = INVALID, "operator"
        self.write()
        return last

    def write(self) -> None:
        """Keep what has changed in `trials`; on disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [self._head, *map(dataclasses.asdict, self.trials)]
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        write_whole(self.path, "".join(lines), sync=True)

    def counted(self) -> list[Trial]:
        """The valid trial of each slot that has one, in the order of the slots."""
        return sorted((t for t in self.trials if t.label != INVALID), key=lambda t: t.slot)

    def remaining(self, slots: Sequence[Slot]) -> list[Slot]:
        """What is still to be done, in order; an invalid trial is done again."""
        done = {t.slot for t in self.counted()}
        return [s for s in slots if s.number not in done]


def interruptions(states: Iterable[str]) -> tuple[int, int]:
    """(stalls, stops) in the states of the executor since it was armed, as they followed one another.

    A stall is a way back to ARMED: no chunk for the executor's `chunk_timeout`, or only old observations; shorter waits
    are none. A stop is HOLD or FAULT.
    """
    stalls = stops = 0
    before = "ARMED"
    moved = False
    for state in states:
        if state == before:
            continue
        moved = moved or state == "RUNNING"
        stalls += state == "ARMED" and moved
        stops += state in ("HOLD", "FAULT") and before not in ("HOLD", "FAULT")
        before = state
    return stalls, stops
