"""Somebody else's reader finds the links of our URDF where our kinematics put them, and the capsules in it."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from vipra_ros import cli
from vipra_ros.control.kinematics import frames
from vipra_ros.control.profile import load_profile
from vipra_ros.control.urdf import urdf


def turn(axis, angle):
    """Rotation (3, 3) about a coordinate axis."""
    c, s = np.cos(angle), np.sin(angle)
    i, j = {0: (1, 2), 1: (2, 0), 2: (0, 1)}[axis]
    out = np.eye(3)
    out[i, i] = out[j, j] = c
    out[i, j], out[j, i] = -s, s
    return out


def origin(element):
    """(4, 4) of an <origin>: URDF turns about fixed x, then y, then z."""
    xyz, (r, p, y) = ([float(v) for v in element.find("origin").get(k).split()] for k in ("xyz", "rpy"))
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn(2, y) @ turn(1, p) @ turn(0, r), xyz
    return pose


@pytest.mark.parametrize("name", ["fr3", "panda"])
def test_links_are_where_the_kinematics_put_them(name):
    pin = pytest.importorskip("pinocchio")
    profile, rng = load_profile(name), np.random.default_rng(0)
    model = pin.buildModelFromXML(urdf(profile))
    assert tuple(model.names)[1:] == profile.joint_names
    data, links = model.createData(), [*(f"{name}_link{i}" for i in range(1, 9)), f"{name}_hand_tcp"]
    for q in rng.uniform(profile.lower, profile.upper, (20, 7)):
        pin.framesForwardKinematics(model, data, q)
        got = [data.oMf[model.getFrameId(link)].homogeneous for link in links]
        assert np.allclose(got, frames(profile, q), atol=1e-9)
    assert np.allclose(model.lowerPositionLimit, profile.q_min) and np.allclose(model.velocityLimit, profile.velocity)


def test_every_capsule_is_drawn_from_end_to_end():
    profile = load_profile("fr3")
    links = ET.fromstring(urdf(profile)).findall("link")
    for capsule in profile.capsules:
        balls, found = {tuple(capsule.start), tuple(capsule.end)}, False
        visuals = links[capsule.link].findall("visual")
        centres = {tuple(np.round(origin(v)[:3, 3], 9)) for v in visuals if v.find("geometry/sphere") is not None}
        assert balls <= centres
        for v in visuals:
            if (rod := v.find("geometry/cylinder")) is not None and float(rod.get("radius")) == capsule.radius:
                half = origin(v) @ [0, 0, float(rod.get("length")) / 2, 0]
                ends = origin(v)[:3, 3] + np.outer([-1, 1], half[:3])
                found |= np.allclose(ends, [capsule.start, capsule.end], atol=1e-9)
        assert found, capsule


def test_the_command_prints_a_file_and_names_the_profiles_when_asked_for_another(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["urdf", "panda"])
    text = capsys.readouterr().out
    assert not ended.value.code and ET.fromstring(text).get("name") == "panda"
    # As a parameter on a command line (-p robot_description:="$(vipra urdf)") it is read as YAML.
    assert ":" not in text and "#" not in text
    with pytest.raises(SystemExit):
        cli.main(["urdf", "ur5"])
    assert "'ur5' is unknown; use fr3, panda" in capsys.readouterr().err
