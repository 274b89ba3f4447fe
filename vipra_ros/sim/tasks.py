"""Three table-top tasks told in words: where things start, what is said, when it is done.

Pure numpy: the scene, the expert, the evaluation and the tests share these facts. Positions are in
the robot base frame, metres; the table top is z = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLOURS = ("red", "green", "blue")
ZONES = ("yellow", "purple")
TASKS = ("reach", "push", "lift")

CUBE_SIZE = 0.05
#: Region where cube centres start, (low, high) in x and y.
START_X, START_Y = (0.38, 0.62), (-0.12, 0.12)
#: A zone is a band on the table: centre y and half sizes. A cube is in it when its centre is.
ZONE_Y = {"yellow": 0.225, "purple": -0.225}
ZONE_X, ZONE_HALF = 0.50, (0.17, 0.05)
#: TCP height over the table when "above" a cube, and how near is near enough (horizontal).
REACH_HEIGHT, REACH_TOLERANCE = 0.14, 0.03
LIFT_HEIGHT = 0.08
#: A success has to last this long, s: a cube flung through a zone has not been pushed into it.
HOLD_SECONDS = 0.4
TIME_LIMIT = {"reach": 6.0, "push": 12.0, "lift": 12.0}

PHRASES = {
    "reach": ("reach above the {colour} cube", "move the gripper over the {colour} cube",
              "hover above the {colour} block", "go to the {colour} cube"),
    "push": ("push the {colour} cube into the {zone} zone", "slide the {colour} block to the {zone} area",
             "move the {colour} cube onto the {zone} zone", "shove the {colour} cube into the {zone} area"),
    "lift": ("lift the {colour} cube", "pick up the {colour} cube", "grasp the {colour} block and raise it",
             "take the {colour} cube off the table"),
}


@dataclass(frozen=True)
class Goal:
    """What was asked for."""

    task: str
    colour: str
    zone: str
    instruction: str


@dataclass(frozen=True)
class Start:
    """One random start: everything follows from (task, seed)."""

    goal: Goal
    cubes: dict[str, tuple[float, float, float]]  # colour -> x, y, yaw
    tcp: tuple[float, float, float]  # where the gripper starts, when the start pose is random


@dataclass(frozen=True)
class Snapshot:
    """What the predicates look at, at one time."""

    time: float
    tcp: np.ndarray  # (3,)
    cubes: dict[str, np.ndarray]  # colour -> (3,)


def sample_start(task: str, seed: int) -> Start:
    """Draw goal, cube poses and a start pose for the gripper.

    Raises:
        ValueError: unknown task, or a seed below 0.
    """
    if task not in TASKS:
        raise ValueError(f"task {task!r} is unknown; choose one of {', '.join(TASKS)}")
    if seed < 0:
        raise ValueError(f"seed = {seed}: give 0 or more")
    rng = np.random.default_rng([TASKS.index(task), seed])
    colour, zone = str(rng.choice(COLOURS)), str(rng.choice(ZONES))
    phrase = str(rng.choice(PHRASES[task]))
    goal = Goal(task, colour, zone, phrase.format(colour=colour, zone=zone))
    while True:
        xy = np.stack([rng.uniform(*START_X, 3), rng.uniform(*START_Y, 3)], -1)
        if _clear(task, xy, COLOURS.index(colour), np.sign(ZONE_Y[zone])):
            break
    yaw = rng.uniform(-0.12, 0.12, 3)
    cubes = {c: (float(x), float(y), float(a)) for c, (x, y), a in zip(COLOURS, xy, yaw)}
    tcp = (rng.uniform(0.36, 0.60), rng.uniform(-0.20, 0.20), rng.uniform(0.09, 0.42))
    return Start(goal, cubes, tuple(map(float, tcp)))


def _clear(task: str, xy: np.ndarray, target: int, side: float) -> bool:
    """Open fingers fit beside every cube, and a pushed cube has a free lane (fingers are 2 cm wide)."""
    others = [xy[i] for i in range(3) if i != target]
    if np.linalg.norm(others[0] - others[1]) < 0.075:
        return False
    for o in others:
        d = o - xy[target]
        if np.linalg.norm(d) < 0.115:
            return False
        # the lane reaches from the approach point behind the cube to the far side of the zone
        if task == "push" and abs(d[0]) < 0.075 and side * d[1] > -0.13:
            return False
    return True


def achieved(goal: Goal, now: Snapshot, colour: str | None = None) -> bool:
    """Is the goal's condition true at this instant (for `colour` instead of the goal's, if given)?"""
    cube = now.cubes[colour or goal.colour]
    if goal.task == "reach":
        near = np.linalg.norm(now.tcp[:2] - cube[:2]) < REACH_TOLERANCE
        return bool(near and abs(now.tcp[2] - REACH_HEIGHT) < 0.05)
    if goal.task == "push":
        return in_zone(cube, goal.zone)
    return bool(cube[2] > CUBE_SIZE / 2 + LIFT_HEIGHT)


def in_zone(cube: np.ndarray, zone: str) -> bool:
    """Is the cube's centre inside the band of `zone`, on the table?"""
    return bool(abs(cube[1] - ZONE_Y[zone]) < ZONE_HALF[1] and abs(cube[0] - ZONE_X) < ZONE_HALF[0]
                and cube[2] < CUBE_SIZE)


class Judge:
    """Watches snapshots of one episode and says when, and with which cube, the condition held."""

    def __init__(self, goal: Goal):
        self.goal = goal
        self.success = False
        self.success_time = float("nan")
        #: the first colour whose condition held, whatever was asked: a row of the confusion table
        self.acted_on: str | None = None
        self._since: dict[str, float | None] = dict.fromkeys(COLOURS)

    def see(self, now: Snapshot) -> bool:
        """Take in one snapshot; True once the asked-for condition has held long enough."""
        for colour in COLOURS:
            if not achieved(self.goal, now, colour):
                self._since[colour] = None
                continue
            if self._since[colour] is None:
                self._since[colour] = now.time
            if now.time - self._since[colour] >= HOLD_SECONDS - 1e-9:
                self.acted_on = self.acted_on or colour
                if colour == self.goal.colour and not self.success:
                    self.success, self.success_time = True, now.time
        return self.success
