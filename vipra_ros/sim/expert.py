"""The scripted demonstrator: from privileged positions to the rows of actions a policy would emit.

It knows where the cubes are and nothing else about the simulator; its rows go to the executor as
chunks, through the same validation, limits and timeline as a policy's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import tasks

#: The straight way takes distance / CRUISE seconds; a minimum-jerk profile peaks at 1.875 times that speed.
CRUISE = 0.15
SHORTEST = 0.5
#: rad/s, fastest joint of a demonstration: below the limiter's 1, so that the arm goes the way that was planned.
JOINT_SPEED = 0.9
GRASP_Z, PUSH_Z, HOVER_Z = 0.022, 0.024, 0.13
#: The closed finger pair starts this far beside the cube and ends touching it, m.
PUSH_APPROACH, PUSH_CONTACT = 0.085, 0.037
#: The hand needs 0.6 s from open onto a 5 cm cube, measured in the simulator. Little more: of frames in which it is
#: closed and the arm still rests, none says when to go, and a policy that learns the mean of them may rest for ever.
GRASP_SECONDS = 0.7
#: Nearer than this to the line it works along, m, the arm goes on; farther away it rises and begins again.
ALIGNED = 0.012
#: Held still at the end, so that "done, stay" is in the data.
REST_SECONDS = 0.8

Ik = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Leg:
    """Go to `position` (m) with finger yaw (rad) and the gripper commanded to `opening` (+1, -1)."""

    position: tuple[float, float, float]
    yaw: float
    opening: float
    seconds: float


def legs(goal: tasks.Goal, cube: np.ndarray, yaw: float, tcp: np.ndarray, rng: np.random.Generator | None = None,
         width: float = 0.08) -> list[Leg]:
    """The way from `tcp` (3,), wherever that is, to the goal.

    With `rng`, four times in ten the first approach misses by a few centimetres and is corrected:
    a policy that has only seen perfect approaches does not know how to come back from its own errors.
    A tool that is low and off its line rises first; one that holds the cube or touches it rightly goes on.

    Args:
        cube: (3,) centre of the cube that the goal names; yaw: its rotation about the vertical, rad.
        width: between the fingers now, m.
    """
    x, y = float(cube[0]), float(cube[1])
    miss = rng.normal(0.0, 0.02, 2) if rng is not None and rng.random() < 0.4 else np.zeros(2)
    here = np.asarray(tcp, dtype=float)
    off, low = here - cube, bool(here[2] < HOVER_Z - 0.02)
    way: list[Leg] = []

    def go(position: tuple[float, float, float], opening: float, at_least: float = SHORTEST, turn: float = 0.0) -> None:
        nonlocal here
        seconds = max(at_least, float(np.linalg.norm(np.array(position) - here)) / CRUISE)
        way.append(Leg(position, turn, opening, seconds))
        here = np.array(position)

    def rise(opening: float) -> None:
        if low:
            go((here[0], here[1], HOVER_Z), opening)

    if goal.task == "reach":
        rise(1.0)
        if miss.any():
            go((x + miss[0], y + miss[1], tasks.REACH_HEIGHT + 0.04), 1.0)
        go((x, y, tasks.REACH_HEIGHT), 1.0)
    elif goal.task == "lift":
        over = np.linalg.norm(off[:2]) < ALIGNED
        held = over and abs(off[2]) < tasks.CUBE_SIZE / 2 and 0.6 * tasks.CUBE_SIZE < width < 1.1 * tasks.CUBE_SIZE
        if not held:
            if not (over and width > 0.07):
                rise(1.0)
                go((x + miss[0], y + miss[1], HOVER_Z + 0.5 * abs(miss[0])), 1.0, turn=yaw)
                if miss.any():
                    go((x, y, HOVER_Z - 0.03), 1.0, turn=yaw)
            go((x, y, GRASP_Z), 1.0, at_least=0.6, turn=yaw)
            go((x, y, GRASP_Z), -1.0, at_least=GRASP_SECONDS, turn=yaw)
        go((x, y, 0.17), -1.0, at_least=0.7, turn=yaw)
    else:
        zone_y = tasks.ZONE_Y[goal.zone]
        side = float(np.sign(zone_y - y))  # a cube pushed too far is pushed back
        beside = y - side * PUSH_APPROACH
        behind = abs(off[0]) < ALIGNED and -side * off[1] > PUSH_CONTACT - 0.01
        if not (behind and here[2] < 0.04 and width < 0.02):
            rise(-1.0)
            go((x + miss[0], beside + 0.5 * miss[1], HOVER_Z), -1.0, at_least=0.8)
            low_down = rng is not None and rng.random() < 0.5  # corrected beside the cube, where it is seen best
            if miss.any():
                go((x + low_down * miss[0], beside, PUSH_Z if low_down else HOVER_Z - 0.03), -1.0, at_least=0.5)
            go((x, beside, PUSH_Z), -1.0, at_least=0.5)
        go((x, zone_y - side * PUSH_CONTACT, PUSH_Z), -1.0, at_least=0.6)
    way.append(Leg(tuple(here), way[-1].yaw, way[-1].opening, REST_SECONDS))
    return way


def rows(way: list[Leg], tcp: np.ndarray, q: np.ndarray, period: float, ik: Ik, yaw: float = 0.0) -> np.ndarray:
    """Sample the way at the policy's rate.

    Args:
        tcp, q: where the commanded arm is now, (3,) m and (7,) rad.
        period: s between rows.
        ik: (pose 4x4, q0) -> q; the pose has the fingers down, turned by the leg's yaw.

    Returns:
        float64 (N, 8): row k is the command to be reached at (k + 1) * period.
    """
    out, here, turn, last = [], np.asarray(tcp, float), yaw, np.asarray(q, float)
    time, leg_start = period, 0.0
    # A tool that starts tilted is straightened along the first leg, not in its first row.
    tilt = last - ik(_fingers_down(here, turn), last)
    for leg in way:
        seconds, target, before = leg.seconds, np.array(leg.position), np.inf
        while True:
            times = np.arange(time, leg_start + seconds + 1e-9, period)
            seed, made = last, []
            for s in _minimum_jerk((times - leg_start) / seconds):
                seed = ik(_fingers_down(here + s * (target - here), turn + s * (leg.yaw - turn)), seed)
                made.append(seed + (1.0 - s) * tilt)
            speed = np.abs(np.diff([last, *made], axis=0)).max(initial=0.0) / period
            if speed <= JOINT_SPEED or speed > 0.99 * before:  # what does not get slower is left to the limiter
                break
            before = speed
            seconds *= 1.02 * speed / JOINT_SPEED  # folded near its base, the arm turns far for a short way
        out += [np.append(q, leg.opening) for q in made]
        time += period * len(made)
        here, turn, last, leg_start = target, leg.yaw, made[-1] if made else last, leg_start + seconds
        tilt = 0.0
    return np.array(out)


def _minimum_jerk(u: np.ndarray) -> np.ndarray:
    """Flash and Hogan (1985): 10 u^3 - 15 u^4 + 6 u^5."""
    return u * u * u * (10.0 - 15.0 * u + 6.0 * u * u)


def _fingers_down(position: np.ndarray, yaw: float) -> np.ndarray:
    """Pose 4x4 of the tool: z down, fingers opening along the base's y axis turned by `yaw`."""
    c, s = np.cos(yaw), np.sin(yaw)
    pose = np.eye(4)
    pose[:3, :3] = [[c, s, 0.0], [s, -c, 0.0], [0.0, 0.0, -1.0]]
    pose[:3, 3] = position
    return pose
