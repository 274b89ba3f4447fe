"""`vipra config dump`: values with their origin, and a file that real nodes take."""

import json
import re
from pathlib import Path

import pytest
import yaml

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("vipra_ros.msg", reason="messages are not built; run make setup")

from vipra_ros import cli, graph  # noqa: E402
from vipra_ros.config import ConfigError  # noqa: E402
from vipra_ros.control.settings import ExecutorSettings  # noqa: E402
from vipra_ros.nodes import config_dump  # noqa: E402
from vipra_ros.nodes.parameters import declare  # noqa: E402


def dump(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        cli.main(["config", "dump", *words])
    out = capsys.readouterr()
    return ended.value.code, out.out, out.err


@pytest.mark.parametrize("system, given", [("policy", {"record": "out"}), ("sim", {}), ("replay", {"bag": "x"}),
                                           ("teleop", {"gello": "emulated", "expert": "push"})])
def test_every_node_of_every_system(system, given):
    for process in graph.processes(system, given):
        assert config_dump.values(process)


def test_origins(capsys, tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("/**:\n  ros__parameters:\n    speed: 0.5\nexecutor:\n  ros__parameters:\n    host: 10.0.0.1\n"
                    "    home_speed: 0.2\npolicy:\n  ros__parameters:\n    history: {tolerance: 0.08}\n")
    code, out, _ = dump(capsys, "policy", "robot:=172.16.0.9", "checkpoint:=models/tiny", "rate:=2",
                        f"params_file:={file}", "--json")
    table = json.loads(out)
    executor, policy = table["executor"], table["policy"]
    assert not code and "sim" not in table
    assert (executor["speed"]["value"], executor["speed"]["origin"]) == (0.5, str(file))
    assert (executor["host"]["value"], executor["host"]["origin"]) == ("172.16.0.9", "launch argument")
    assert (executor["home_speed"]["value"], executor["start_speed"]["origin"]) == (0.2, "default")
    assert (policy["rate"]["value"], policy["history.tolerance"]["value"]) == (2.0, 0.08)
    assert policy["history.keep"]["origin"] == "default"


@pytest.mark.parametrize("section", ["/**/executor", "/*", "/left/executor", "/left/**", "left: {executor"])
def test_sections_that_ros_takes(capsys, tmp_path, section):
    nested = "{" in section
    namespace = "left" if "left" in section else ""
    file = tmp_path / "my.yaml"
    file.write_text(f"{section}: {{ros__parameters: {{speed: 0.5}}}}" + "}" * nested)
    _, out, _ = dump(capsys, "sim", f"params_file:={file}", f"namespace:={namespace}", "--json")
    assert json.loads(out)["executor"]["speed"] == {**json.loads(out)["executor"]["speed"], "value": 0.5,
                                                    "origin": str(file)}
    file.write_text(file.read_text().replace("speed", "sped"))
    if section not in ("/*", "/left/**"):  # these may be for another node
        code, _, err = dump(capsys, "sim", f"params_file:={file}", f"namespace:={namespace}")
        assert code == 1 and "no parameter 'sped'" in err


@pytest.mark.parametrize("text, said", [("speed: 1", "expected double; write it with a point, as in 1.0"),
                                        ("sped: 0.5", "no parameter 'sped'"), ("speed: 7.0", "at most 1.0"),
                                        ("speed: fast", "expected a number")])
def test_a_file_that_a_node_would_refuse(capsys, tmp_path, text, said):
    file = tmp_path / "my.yaml"
    file.write_text(f"executor:\n  ros__parameters:\n    {text}\n")
    code, out, err = dump(capsys, "sim", f"params_file:={file}")
    assert code == 1 and said in err and not out


def test_the_text_is_a_parameter_file(capsys, tmp_path, unused_ros_domain):
    """A real node reads it and has the values of the dump."""
    given = tmp_path / "given.yaml"
    given.write_text("executor:\n  ros__parameters:\n    speed: 0.25\n    blending: none\n")
    _, out, _ = dump(capsys, "sim", f"params_file:={given}", "namespace:=left")
    assert "speed: 1.0  # default" in out  # a file without the namespace is not for left/executor
    given.write_text(given.read_text().replace("executor:", "/left/executor:").replace("blending: none", "mode: sync"))
    _, out, _ = dump(capsys, "sim", f"params_file:={given}", "namespace:=left")
    assert set(yaml.safe_load(out)) == {"/left/sim", "/left/executor"}
    (tmp_path / "dumped.yaml").write_text(out)
    context = rclpy.Context()
    rclpy.init(args=["--ros-args", "--params-file", str(tmp_path / "dumped.yaml")], context=context,
               domain_id=unused_ros_domain)
    node = rclpy.create_node("executor", namespace="left", context=context)
    try:
        assert declare(node, ExecutorSettings) == ExecutorSettings(speed=0.25, mode="sync")
    finally:
        node.destroy_node()
        rclpy.try_shutdown(context=context)


def test_the_tables_are_those_that_the_nodes_declare():
    for node, tables in config_dump.TABLES.items():
        text = Path(config_dump.__file__).with_name(f"{node}.py").read_text()
        declared = re.findall(r"declare\(self, (\w+)", text)
        assert sorted(declared) == sorted(t.partition(":")[2] for t in tables), node


def test_a_required_value_is_reported_as_missing():
    recorder = graph.Process("recorder", {})
    found = {v.name: v for v in config_dump.values(recorder)}
    assert found["record"].origin == "missing"
    assert "# record:   # missing" in config_dump.as_yaml({"recorder": list(found.values())})
    with pytest.raises(ConfigError, match="record"):
        config_dump.values(graph.Process("recorder", {"record": 7}))
