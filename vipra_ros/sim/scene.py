"""The table: an FR3 with hand, three cubes, two zones, two cameras, as one MuJoCo model.

Built on franky-sim's scene so that the simulated FCI controller (`server.py`) and the stepped world
(`lockstep.py`) run the same model.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

from . import tasks

if TYPE_CHECKING:
    from franky_sim.mujoco_simulator import MujocoSimulator

#: Joint servo of the simulated controller: franky-sim's stiffness, less damping. The default damping
#: lags 0.1 s behind the command, these values 0.025 s.
SERVO_KP = (4500.0, 4500.0, 3500.0, 3500.0, 2000.0, 2000.0, 2000.0)
SERVO_KV = (112.0, 112.0, 88.0, 88.0, 50.0, 50.0, 50.0)
#: Above the middle of the table, fingers down: tool centre point at (0.42, 0, 0.28) m.
HOME = (0.0, -0.3253, 0.0, -2.5509, 0.0, 2.2255, 0.7854)

CUBE_RGBA = {"red": "0.85 0.08 0.08 1", "green": "0.10 0.65 0.15 1", "blue": "0.10 0.20 0.85 1"}
ZONE_RGBA = {"yellow": "0.85 0.75 0.15 1", "purple": "0.50 0.20 0.60 1"}
CAMERAS = ("front", "wrist")
FOVY = {"front": 31.0, "wrist": 75.0}  # vertical field of view, degrees
#: Place (m, base frame) of the front camera, and its axes to the right and up. It looks down on the whole working area
#: from the far side of the table: a cube is about 11 px wide at 128 px.
FRONT_POSITION, FRONT_AXES = (1.27, 0.0, 0.98), ((0.0, 1.0, 0.0), (-0.735, 0.0, 0.678))


def build(sim: MujocoSimulator) -> MujocoSimulator:
    """Add robot, table, cubes, zones and cameras to an empty franky-sim simulator."""
    sim.add_robot(initial_q=HOME, initial_hand_width=0.08, kp=SERVO_KP, kv=SERVO_KV)
    _quality(sim.scene)
    world = sim.worldbody
    for geom in world.findall("geom"):
        if geom.get("name") == "ground":
            geom.set("pos", "0 0 -0.75")
    ET.SubElement(world, "geom", name="table", type="box", size="0.55 0.60 0.02", pos="0.35 0 -0.0201",
                  rgba="0.78 0.74 0.68 1", friction="0.8 0.005 0.0001")
    for zone in tasks.ZONES:
        ET.SubElement(world, "geom", name=f"zone_{zone}", type="box", contype="0", conaffinity="0",
                      size=f"{tasks.ZONE_HALF[0]} {tasks.ZONE_HALF[1]} 0.0005",
                      pos=f"{tasks.ZONE_X} {tasks.ZONE_Y[zone]} 0.0005", rgba=ZONE_RGBA[zone])
    half = tasks.CUBE_SIZE / 2
    for i, colour in enumerate(tasks.COLOURS):
        body = ET.SubElement(world, "body", name=f"cube_{colour}", pos=f"0.5 {0.12 * (i - 1)} {half}")
        ET.SubElement(body, "freejoint", name=f"cube_{colour}")
        ET.SubElement(body, "geom", name=f"cube_{colour}", type="box", size=f"{half} {half} {half}", mass="0.08",
                      rgba=CUBE_RGBA[colour], friction="0.9 0.01 0.0005", condim="4")
    ET.SubElement(world, "camera", name="front", pos=" ".join(map(str, FRONT_POSITION)),
                  xyaxes=" ".join(str(v) for axis in FRONT_AXES for v in axis), fovy=str(FOVY["front"]))
    hand = next(b for b in world.iter("body") if b.get("name") == "robot0_hand")
    ET.SubElement(hand, "camera", name="wrist", pos="0.07 0 0.03", xyaxes="0 1 0 0.95 0 0.31", fovy=str(FOVY["wrist"]))
    return sim


def focal_length(camera: str, size: int) -> float:
    """Focal length of a camera in pixels at `size` x `size`."""
    return size / 2 / math.tan(math.radians(FOVY[camera]) / 2)


def _quality(scene: ET.Element) -> None:
    """Render for a machine without a GPU: no shadows, no multisampling, one bright head light."""
    visual = scene.find("visual")
    visual.find("quality").set("offsamples", "0")
    visual.find("quality").set("shadowsize", "0")
    visual.find("headlight").set("ambient", "0.25 0.25 0.25")
    visual.find("headlight").set("diffuse", "0.20 0.20 0.20")
    ET.SubElement(visual, "global", offwidth="640", offheight="640")
    ET.SubElement(visual, "map", znear="0.02")
    for light in scene.iter("light"):
        light.set("castshadow", "false")
        light.set("diffuse", "0.22 0.22 0.22")
