"""docs/safety.md says what the code does: transitions and limits."""

import re
from pathlib import Path

import pytest

from vipra_ros.control.guard import transition_table
from vipra_ros.control.profile import load_profile
from vipra_ros.control.sinks import SINKS

PAGE = (Path(__file__).parents[2] / "docs" / "safety.md").read_text()


def part(name):
    return re.search(rf"<!-- {name} -->\n(.*)<!-- /{name} -->", PAGE, re.S).group(1).strip()


def test_the_transition_table_is_the_codes():
    assert part("transitions") == transition_table()


@pytest.mark.parametrize("robot", ["fr3", "panda"])
def test_the_limits_are_those_in_force(robot):
    for name, values in zip(("velocity", "acceleration", "jerk"), load_profile(robot).limits):
        assert f"| {robot} | {name} | " + " | ".join(f"{v:.4g}" for v in values) + " |" in part("limits")


def test_every_sink_is_explained():
    assert all(f"| `{sink}` |" in PAGE for sink in SINKS)
