"""Evaluation on a robot as an experiment: the plan, the order of trials, and the blinding. Pure.

Every block runs each policy once on each task, so a comparison is paired by (task, block): the same instruction and
the same layout. Who comes first is random and balanced: within each round of P blocks each of P policies takes each
place once (a cyclic Latin square with rows and symbols shuffled). The operator reads letters, never names.
What is written down is in `trial_journal.py`, statistics are in `trial_statistics.py`, the page is in
`trial_page.py`, the robot in `nodes/rollouts.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import string
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vipra_ros import graph
from vipra_ros.config import ConfigError, build, param, read_yaml

#: Random starts of simulated scenes. The shipped checkpoints learnt from 100000 to 101099 of each task, which are among
#: these: one scene in 900 is one that they have seen.
FIRST_SEED, LAST_SEED = 1000, 1_000_000
#: What every training calls its folder, and every message a policy's files: it tells nobody which policy is meant.
COMMON = "checkpoint"


@dataclass(frozen=True)
class PolicyEntry:
    """A policy of the plan: a checkpoint, or a server that has one."""

    name: str = param(doc="name in the report; the operator does not see it")
    checkpoint: str = param("", doc="folder of the policy, or the name of a shipped one")
    server: str = param("", doc="instead: ws://HOST:PORT of a policy server")
    arguments: dict = param({}, doc="further launch arguments of `vipra up policy`, e.g. server_config, token_file")

    def __post_init__(self) -> None:
        if bool(self.checkpoint) == bool(self.server):
            raise ConfigError(f"policy {self.name!r}: give one of checkpoint and server")

    def launch(self) -> dict[str, str]:
        """Launch arguments that start this policy."""
        own = {"engine": "remote", "server": self.server} if self.server else {"checkpoint": self.checkpoint}
        return {**own, **_texts(self.arguments)}


@dataclass(frozen=True)
class TaskEntry:
    """A task of the plan."""

    label: str = param(doc="short name in the report")
    instruction: str = param("", doc="what the policy is told; empty in simulation: the words of the scene")
    layout: str = param("", doc="what the operator puts where before a trial; {block} is the number of the block")
    sim: str = param("", doc="task of the simulated scene", choices=("", "reach", "push", "lift"))
    seconds: float = param(0.0, doc="time limit of a trial, 0: that of the plan", unit="s", low=0.0, high=3600.0)


@dataclass(frozen=True)
class Plan:
    """An evaluation, as its YAML file has it."""

    policies: tuple[PolicyEntry, ...] = param(doc="policies to compare")
    tasks: tuple[TaskEntry, ...] = param(doc="tasks each of them does")
    trials: int = param(10, doc="trials of each policy on each task", low=1, high=10000)
    seed: int = param(0, doc="of the order, the letters and the simulated scenes", low=0)
    seconds: float = param(30.0, doc="time limit of a trial; then it is a failure", unit="s", low=1.0, high=3600.0)
    order: str = param(
        "scene",
        doc="scene: a layout is tried by all policies in turn; policy: a policy does all tasks of a block in turn, "
        "which restarts nodes less often",
        choices=("scene", "policy"),
    )
    robot: str = param("sim", doc="sim, or the address of the arm's control unit")
    camera: str = param("front", doc="camera of the videos")
    arguments: dict = param({}, doc="launch arguments of `vipra up policy` for all, e.g. profile, params_file, record")

    def __post_init__(self) -> None:
        for what, names in (("policies", [p.name for p in self.policies]), ("tasks", [t.label for t in self.tasks])):
            if not names:
                raise ConfigError(f"{what}: none is given; add one at least")
            twice = next((n for n in names if names.count(n) > 1), None)
            if twice is not None or not all(names):
                raise ConfigError(f"{what}: the name {twice or ''!r} must be given, and given once")
        if len(self.policies) > len(string.ascii_uppercase):
            raise ConfigError(f"policies: {len(self.policies)} are given, there are letters for 26; make two plans")
        for task in self.tasks:
            if self.simulated and not task.sim:
                raise ConfigError(f"task {task.label!r}: sim is missing; with robot: sim give reach, push or lift")
            if not self.simulated and not task.instruction:
                raise ConfigError(f"task {task.label!r}: instruction is missing; say what the policy is told")

    @property
    def simulated(self) -> bool:
        """Whether the arm is the simulated one."""
        return self.robot == "sim"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything in the plan, first 16 digits: trials of two plans are never mixed."""
        return digest(json.dumps(dataclasses.asdict(self), sort_keys=True))

    def launch(self, policy: int) -> dict[str, str]:
        """Launch arguments of `vipra up policy` for the policy at this place of the plan."""
        return {**_texts(self.arguments), "robot": self.robot, **self.policies[policy].launch()}

    def check(self) -> None:
        """ConfigError when the launch arguments or the checkpoint of a policy are wrong."""
        for policy in range(len(self.policies)):
            given = self.launch(policy)
            if space := given.get("namespace"):
                raise ConfigError(f"arguments: namespace = {space!r}: trials find nodes without one only; leave it out")
            graph.processes("policy", given)

    def limit(self, task: TaskEntry) -> float:
        """Time limit of a trial of `task`, s."""
        return task.seconds or self.seconds


def load_plan(path: str | Path) -> Plan:
    """The plan in a YAML file; ConfigError names file, key and remedy."""
    return build(Plan, read_yaml(path), source=str(path))


def _texts(arguments: dict) -> dict[str, str]:
    """Launch arguments as text; YAML's booleans in the words that `vipra up` takes."""
    return {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in arguments.items()}


def digest(text: str) -> str:
    """SHA-256 of `text`, first 16 digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- order ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """One trial that is to be done. `policy`, `task`: places in the plan; `seed`: of the simulated scene."""

    number: int
    block: int
    policy: int
    task: int
    seed: int


def schedule(plan: Plan) -> tuple[Slot, ...]:
    """All trials in their order; the same plan gives the same one."""
    policies, tasks = len(plan.policies), len(plan.tasks)
    columns = 1 if plan.order == "policy" else tasks  # orders of policies that a block needs
    squares: list[np.ndarray] = []
    pairs: list[tuple[int, int, int]] = []
    for block in range(plan.trials):
        rng = np.random.default_rng([plan.seed, 1, block])
        if block % policies == 0:
            squares = [_square(policies, rng) for _ in range(columns)]
        sequence = rng.permutation(tasks).tolist()
        if plan.order == "policy":
            for p in squares[0][block % policies].tolist():
                pairs += [(block, p, t) for t in rng.permutation(tasks).tolist()]
        else:
            pairs += [(block, p, t) for t in sequence for p in squares[t][block % policies].tolist()]
    return tuple(Slot(i, b, p, t, scene_seed(plan, t, b)) for i, (b, p, t) in enumerate(pairs))


def scene_seed(plan: Plan, task: int, block: int) -> int:
    """Seed of the simulated scene: the same for every policy of a block, so that trials are matched."""
    return int(np.random.default_rng([plan.seed, 2, task, block]).integers(FIRST_SEED, LAST_SEED))


def _square(n: int, rng: np.random.Generator) -> np.ndarray:
    """A Latin square (n, n): every row and every column holds 0..n-1 once."""
    cyclic = (np.arange(n)[:, None] + np.arange(n)) % n
    return rng.permutation(n)[cyclic][rng.permutation(n)]


# --- blinding ------------------------------------------------------------------------------------------------


class Blind:
    """Letters for policies, drawn from the whole plan, and the eraser of everything that would give them away.

    Args:
        by_seed: letters drawn from the seed alone, which everybody knows who has seen a plan with that seed.
    """

    def __init__(self, plan: Plan, by_seed: bool = False):
        n = len(plan.policies)
        places = np.random.default_rng([plan.seed, 3, *([] if by_seed else [int(plan.fingerprint, 16)])]).permutation(n)
        self.codes = tuple(string.ascii_uppercase[i] for i in places)
        secrets: dict[str, str] = {}
        for code, policy in zip(self.codes, plan.policies, strict=True):
            words = {policy.name, policy.checkpoint, policy.server, policy.server.rpartition("//")[2]}
            words |= {str(v) for v in policy.arguments.values() if len(str(v)) > 3 and not isinstance(v, bool)}
            if policy.checkpoint:
                path = Path(policy.checkpoint)
                words |= {path.name, str(path), str(path.absolute()), str(path.resolve())}
            for word in words - {"", COMMON}:
                # what several policies share (a checkpoint under two names) says nothing about the letter
                secrets[word] = "policy" if word in secrets else f"policy {code}"
        self._secrets = secrets
        longest = sorted(secrets, key=len, reverse=True)
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)", re.IGNORECASE)
        self._lower = {k.lower(): v for k, v in secrets.items()}

    def scrub(self, text: str) -> str:
        """`text` with names, paths and addresses of policies replaced by their letters."""
        return self._pattern.sub(lambda m: self._lower[m.group().lower()], text)


def brief(plan: Plan, blind: Blind, slot: Slot, total: int) -> list[str]:
    """What the operator reads before a trial: of the policy the letter, and what the plan says of the task."""
    task = plan.tasks[slot.task]
    words = task.instruction or f"scene {task.sim} {slot.seed}, in its own words"
    lines = [f"trial {slot.number + 1} of {total}: policy {blind.codes[slot.policy]}, task {task.label}, "
             f"block {slot.block + 1}", f"  the policy is told: {words}"]
    if task.layout:
        lines.append(f"  lay out: {task.layout.replace('{block}', str(slot.block + 1))}")
    return lines
