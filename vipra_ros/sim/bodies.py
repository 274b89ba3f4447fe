"""Another body at the same table: what people's hands are to a robot in videos.

A hand that floats: the links of the arm are not drawn, hand and fingers are skin-coloured. It moves as the robot's hand
moves, so the same expert does the same tasks with it, and what is seen of it differs in shape, colour and in what
it hides.
"""

from __future__ import annotations

import mujoco

#: Bodies that videos can show; `robot` is the arm as it is.
BODIES = ("robot", "hand")
SKIN = (0.80, 0.56, 0.44, 1.0)
_HAND = ("hand", "finger")


def wear(model: mujoco.MjModel, body: str) -> None:
    """Draw the robot of `model` as `body` from now on; physics stay as they are.

    Raises:
        ValueError: an unknown body.
    """
    if body not in BODIES:
        raise ValueError(f"body {body!r}: choose {' or '.join(BODIES)}")
    if body == "robot":
        return
    for geom in range(model.ngeom):
        name = model.body(model.geom_bodyid[geom]).name
        if not name.startswith("robot0_"):
            continue
        model.geom_matid[geom] = -1  # a material would hide the colour
        model.geom_rgba[geom] = SKIN if any(part in name for part in _HAND) else (0.0, 0.0, 0.0, 0.0)
