"""Parameter files are read as ROS reads them."""

import pytest

from vipra_ros import parameter_file
from vipra_ros.config import ConfigError

TEXT = """# a site's own file
/**: {ros__parameters: {rate: 30.0, host: "1.5"}}
/left/executor:
  ros__parameters: {host: 10.0.0.1, limits: {scale: 3e-4}}
right:
  executor:
    ros__parameters:
      host: 10.0.0.2
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(TEXT)
    return path


def test_sections(file):
    found = dict(parameter_file.sections(file))
    assert list(found) == ["/**", "/left/executor", "/right/executor"]
    assert list(found["/left/executor"]) == ["host", "limits.scale"]


@pytest.mark.parametrize("section, node, yes", [
    ("/**", "/executor", True), ("/**", "/left/executor", True), ("/*", "/executor", True),
    ("/*", "/left/executor", False), ("/left/*", "/left/executor", True), ("/**/executor", "/executor", True),
    ("/**/executor", "/a/b/executor", True), ("/executor", "/left/executor", False), ("/left/**", "/executor", False),
])
def test_matches(section, node, yes):
    assert parameter_file.matches(section, node) is yes


def test_a_copy_without_what_is_given_otherwise(file):
    copy = parameter_file.without(file, {"host", "speed"})
    found = dict(parameter_file.sections(copy))
    assert list(found) == ["/**", "/left/executor"]  # an empty section would be refused by rcl
    assert found["/**"] == {"rate": 30.0}
    assert "3e-4" in open(copy).read() and "'3e-4'" not in open(copy).read()  # a number for rcl, and still one


def test_nothing_to_take_out_is_the_file_itself(file):
    assert parameter_file.without(file, {"speed"}) == str(file)


def test_nothing_left(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("executor: {ros__parameters: {host: x}}")
    assert list(parameter_file.sections(parameter_file.without(path, {"host"}))) == []


def test_parameters_that_are_none_are_named(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("/**: {ros__parameters: 5}")
    with pytest.raises(ConfigError, match="ros__parameters is 5; write names and values below it"):
        list(parameter_file.sections(path))
    path.write_text("'/left(arm': {ros__parameters: {a: 1}}")
    assert parameter_file.of_node(path, "left", "executor") == {}
