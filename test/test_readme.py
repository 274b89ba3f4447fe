"""README says what the code says: every node parameter, every topic, every command."""

import dataclasses
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def parameters():
    pytest.importorskip("rclpy")
    from vipra_ros.control.settings import ExecutorSettings
    from vipra_ros.nodes.executor import ExecutorNodeSettings
    from vipra_ros.nodes.policy_settings import PolicySettings
    from vipra_ros.nodes.sim import SimSettings
    from vipra_ros.robot.connect import ConnectionSettings
    for table in (ConnectionSettings, ExecutorNodeSettings, ExecutorSettings, SimSettings, PolicySettings):
        yield from dataclasses.fields(table)


def test_every_parameter_is_in_the_tables_with_its_default():
    missing = []
    for field in parameters():
        if field.default is dataclasses.MISSING or dataclasses.is_dataclass(field.default):
            assert f"`{field.name}" in README
        elif f"| `{field.name}` | `{field.default}` |" not in README:
            missing.append(f"{field.name} = {field.default}")
    assert not missing


def test_commands_exist():
    from vipra_ros.cli import COMMANDS
    known = {c.name for c in COMMANDS}
    for line in re.findall(r"^(?:\S*bin/)?vipra (\w+(?: \w+)?)", README, re.M):
        assert line in known or line.split()[0] in known, line


def test_pictures_and_files_exist():
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_it_says_what_it_is_not():
    assert "Not safety-rated" in README
