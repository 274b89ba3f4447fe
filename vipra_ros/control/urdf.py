"""A URDF of a robot profile: its kinematics and its capsules, for viewers such as rviz and Foxglove.

Joints and their order are those of `kinematics.frames`, so that robot_state_publisher, fed with our joint_states, puts
the links where the executor thinks they are. Shapes are the capsules by which links are kept apart; URDF has none, so
each is a cylinder and two spheres. No masses: nothing is to be simulated with it.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence

import numpy as np

from vipra_ros.control.profile import Capsule, RobotProfile, load_profile

WHITE = "0.93 0.93 0.95 1"


def urdf(profile: RobotProfile) -> str:
    """The file's text: links <name>_link0 (base) to 7, 8 (flange) and <name>_hand_tcp."""
    robot = ET.Element("robot", name=profile.name)
    names = [f"{profile.name}_link{i}" for i in range(9)]
    for number, name in enumerate(names):
        link = ET.SubElement(robot, "link", name=name)
        for capsule in profile.capsules:
            if capsule.link == number:
                _draw(link, capsule)
    ET.SubElement(robot, "link", name=f"{profile.name}_hand_tcp")
    # Modified DH: Rot_x(alpha) Trans_x(a), then along the new z.
    for i, (a, d, alpha) in enumerate(zip(profile.dh_a, profile.dh_d, profile.dh_alpha, strict=True)):
        joint = _joint(robot, profile.joint_names[i], "revolute", names[i], names[i + 1],
                       (a, -d * np.sin(alpha), d * np.cos(alpha)), (alpha, 0.0, 0.0))
        ET.SubElement(joint, "axis", xyz="0 0 1")
        ET.SubElement(joint, "limit", lower=f"{profile.q_min[i]:g}", upper=f"{profile.q_max[i]:g}",
                      velocity=f"{profile.velocity[i]:g}", effort="0")
    _joint(robot, f"{profile.name}_joint8", "fixed", names[7], names[8], (0.0, 0.0, profile.flange))
    _joint(robot, f"{profile.name}_hand_tcp_joint", "fixed", names[8], f"{profile.name}_hand_tcp",
           (0.0, 0.0, profile.tcp), (0.0, 0.0, profile.tcp_rotation))
    ET.indent(robot)
    return ET.tostring(robot, encoding="unicode") + "\n"


def main(profile: str = "fr3") -> None:
    """The command `vipra urdf`: print it."""
    print(urdf(load_profile(profile)), end="")


def _joint(robot: ET.Element, name: str, kind: str, parent: str, child: str, xyz: Sequence[float],
           rpy: Sequence[float] = (0.0, 0.0, 0.0)) -> ET.Element:
    joint = ET.SubElement(robot, "joint", name=name, type=kind)
    ET.SubElement(joint, "parent", link=parent)
    ET.SubElement(joint, "child", link=child)
    ET.SubElement(joint, "origin", xyz=_numbers(xyz), rpy=_numbers(rpy))
    return joint


def _draw(link: ET.Element, capsule: Capsule) -> None:
    """Cylinders stand along z: pitched and yawed until it is the capsule's own way."""
    start, end = np.asarray(capsule.start), np.asarray(capsule.end)
    x, y, z = end - start
    length, radius = float(np.linalg.norm(end - start)), f"{capsule.radius:g}"
    _visual(link, (start + end) / 2, (0.0, np.arctan2(np.hypot(x, y), z), np.arctan2(y, x)),
            "cylinder", radius=radius, length=_numbers([length]))
    for ball in (start, end):
        _visual(link, ball, (0.0, 0.0, 0.0), "sphere", radius=radius)


def _visual(link: ET.Element, xyz: Sequence[float], rpy: Sequence[float], kind: str, **sizes: str) -> None:
    visual = ET.SubElement(link, "visual")
    ET.SubElement(visual, "origin", xyz=_numbers(xyz), rpy=_numbers(rpy))
    ET.SubElement(ET.SubElement(visual, "geometry"), kind, sizes)
    # Materials are named in a file; one name may hold one colour only.
    ET.SubElement(ET.SubElement(visual, "material", name="white"), "color", rgba=WHITE)


def _numbers(values: Sequence[float]) -> str:
    """Ten digits: the DH table to a nanometre; 0 for the -0 and 1e-17 of sines."""
    return " ".join(f"{round(float(v), 12) + 0.0:.10g}" for v in values)
