"""docs/reference says what the code says now."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docs"))
import generate


@pytest.mark.parametrize("name", generate.PAGES)
def test_page_is_up_to_date(name):
    if name == "parameters.md":
        pytest.importorskip("rclpy")
    assert (generate.OUT / name).read_text() == generate.PAGES[name](), "type: make reference"


def test_topics_are_found_in_the_code():
    """The reader of the sources: constants, f-strings, alternatives, loops, helpers, quality of service."""
    found = {(e.node, e.what, e.topic): e for e in generate.endpoints()}
    chunk = found["executor", "subscribes", "policy/chunk"]
    assert chunk.kind == "vipra_ros/ActionChunk" and chunk.quality == "reliable"
    assert found["executor", "publishes", "executor/status"].quality == "latched"
    pictures = found["policy", "subscribes", "camera/<camera>/image_raw/compressed"]
    assert pictures.kind == "sensor_msgs/CompressedImage" and pictures.quality == "best effort"
    assert found["policy", "subscribes", "camera/<camera>/image_raw"].kind == "sensor_msgs/Image"
    assert ("executor", "serves", "executor/recover") in found and ("recorder", "serves", "recorder/discard") in found


def test_every_command_and_option_is_on_the_page():
    from vipra_ros import cli
    page = (generate.OUT / "command_line.md").read_text()
    for command in cli.COMMANDS:
        part = page.split(f"### vipra {command.name}\n")[1].split("\n### ")[0]
        for flags, _ in command.arguments:
            assert not flags[0].startswith("-") or f"`{flags[0]}`" in part
