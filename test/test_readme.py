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


def test_the_tables_say_of_every_parameter_what_the_code_says():
    """Default, unit, meaning and choices; and there is no row of something else."""
    rows = set(re.findall(r"^\| \w+ \| .*$", README.partition("## Parameters")[2].replace("`", ""), re.M))
    rows -= {"| parameter | default | unit | meaning |"}
    expected = set()
    for field in parameters():
        if dataclasses.is_dataclass(field.default):
            assert f"`{field.name}.*`" in README
        else:
            unit, doc = field.metadata["unit"], field.metadata["doc"].replace("`", "")
            if field.metadata["choices"]:
                doc += f" ({', '.join(field.metadata['choices'])})"
            expected.add(f"| {field.name} | {field.default} | {unit} | {doc} |")
    assert rows == expected


def test_commands_exist():
    from vipra_ros.cli import COMMANDS
    known = {c.name for c in COMMANDS}
    for line in re.findall(r"^(?:\S*bin/)?vipra (\w+(?: \w+)?)", README, re.M):
        assert line in known or line.split()[0] in known, line


def test_the_changelog_names_every_command():
    from vipra_ros.cli import COMMANDS
    changes = " ".join((ROOT / "CHANGELOG.md").read_text().split())
    listed = {f"{first} {job}" for first, jobs in re.findall(r"`vipra (\w+) (\w+(?: \| \w+)+)`", changes)
              for job in jobs.split(" | ")}
    assert not [c.name for c in COMMANDS if c.name not in listed and f"`vipra {c.name}" not in changes]


def test_pictures_and_files_exist():
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_it_says_what_it_is_not():
    assert "Not safety-rated" in README
