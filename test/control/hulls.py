"""The arm's true shape: distances between the convex hulls of its links, by MuJoCo on the simulator's meshes."""

from __future__ import annotations

import functools
from itertools import combinations
from pathlib import Path

import franky_sim
import mujoco
import numpy as np

#: Links 0 to 7, which is what a strict simulator looks at: the hand is an end effector to it.
LINKS = range(8)
APART = 3


@functools.cache
def _model(margin: float) -> tuple[mujoco.MjModel, dict[frozenset[int], tuple[int, int]]]:
    assets = Path(franky_sim.__file__).parent / "assets"
    spec = mujoco.MjSpec.from_file(str(assets / "fr3.xml"))
    spec.meshdir = str(assets / "meshes")
    model = spec.compile()
    geom = {i: model.geom(f"fr3_link{i}_collision").id for i in LINKS}
    for g in geom.values():
        model.geom_margin[g] = model.geom_gap[g] = margin
    return model, {frozenset((geom[a], geom[b])): (a, b) for a, b in combinations(LINKS, 2) if b - a >= APART}


def nearest(q: np.ndarray, margin: float = 0.05) -> tuple[np.ndarray, list[tuple[int, int] | None]]:
    """m (n,) between the nearest two links three joints apart at positions (n, 7), and which; `margin` where no pair
    is nearer than that."""
    model, pairs = _model(margin)
    data = mujoco.MjData(model)
    distances, who = np.full(len(q), margin), [None] * len(q)
    for k, position in enumerate(q):
        data.qpos[:7] = position
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_collision(model, data)
        for geoms, distance in zip(data.contact.geom, data.contact.dist, strict=True):
            pair = pairs.get(frozenset(geoms.tolist()))
            if pair and distance < distances[k]:
                distances[k], who[k] = distance, pair
    return distances, who
