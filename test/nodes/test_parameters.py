"""ROS parameters from configuration dataclasses, on a real node."""

import ast
import dataclasses
import importlib
from dataclasses import dataclass
from pathlib import Path

import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2 (make setup)")

from rcl_interfaces.msg import ParameterType  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402

from vipra_ros import graph  # noqa: E402
from vipra_ros.config import ConfigError, param  # noqa: E402
from vipra_ros.nodes.parameters import declare, read, watch  # noqa: E402

NODES = Path(graph.__file__).parent / "nodes"


@dataclass(frozen=True)
class Limits:
    scale: float = param(0.5, doc="share of the limits", low=0.0, high=1.0)


@dataclass(frozen=True)
class Settings:
    host: str = param("127.0.0.8", doc="address")
    rate: float = param(15.0, doc="passes", unit="Hz", low=1.0, high=60.0)
    depth: int = param(3, doc="messages kept", low=0, read_only=False)
    mode: str = param("async", doc="manner", choices=("sync", "async"), read_only=False)
    armed: bool = param(False, doc="start armed")
    home: tuple[float, ...] = param((0.0, 0.5), doc="pose", unit="rad")
    offsets: tuple[float, ...] = param((), doc="may be empty", unit="rad")
    names: list[str] = param([], doc="may be empty")
    timeout: float | None = param(None, doc="none: wait for ever", unit="s", low=0.0)
    limits: Limits = param(Limits(scale=0.25), doc="limits")


@dataclass(frozen=True)
class Required:
    checkpoint: str = param(doc="folder of the policy")


@pytest.fixture
def node(unused_ros_domain):
    """Make real nodes with given command lines."""
    made = []

    def make(*parameters, params_file=None):
        arguments = ["--ros-args"] + [w for p in parameters for w in ("-p", p)]
        if params_file:
            arguments += ["--params-file", str(params_file)]
        context = rclpy.Context()
        rclpy.init(args=arguments, context=context)
        made.append((rclpy.create_node("probe", context=context), context))
        return made[-1][0]

    yield make
    for n, context in made:
        n.destroy_node()
        context.shutdown()


def test_defaults_come_from_the_table(node):
    n = node()
    assert declare(n, Settings) == Settings()
    assert n.get_parameter("limits.scale").value == 0.25  # the field's default, not the nested class'


def test_descriptors_tell_description_unit_range_and_whether_it_can_change(node):
    n = node()
    declare(n, Settings)
    rate = n.describe_parameter("rate")
    assert rate.type == ParameterType.PARAMETER_DOUBLE and rate.read_only
    assert rate.description == "passes [Hz]"
    assert (rate.floating_point_range[0].from_value, rate.floating_point_range[0].to_value) == (1.0, 60.0)
    depth = n.describe_parameter("depth")
    assert not depth.read_only and depth.integer_range[0].from_value == 0
    assert "sync, async" in n.describe_parameter("mode").additional_constraints


def test_command_line(node):
    n = node("rate:=20.0", "depth:=7", "mode:=sync", "armed:=true", "home:=[0.1,0.2,0.3]", "offsets:=[1.0]",
             "names:=[a,b]", "timeout:=2.5", "limits.scale:=1.0", 'host:="1.5"')
    assert declare(n, Settings) == Settings("1.5", 20.0, 7, "sync", True, (0.1, 0.2, 0.3), (1.0,), ["a", "b"],
                                            2.5, Limits(1.0))


def test_what_the_graph_writes_is_what_the_node_reads(node):
    text = 'say "2": it\'s 3 \\ or # not'
    p = graph.Process("probe", {"host": text, "rate": 20.0, "armed": True, "depth": 4})
    words = [w for w in p.ros_arguments() if ":=" in w]
    expected = dataclasses.replace(Settings(), host=text, rate=20.0, armed=True, depth=4)
    assert declare(node(*words), Settings) == expected


def test_params_file_and_what_wins_over_it(node, tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("/**: {ros__parameters: {rate: 30.0, depth: 9, limits: {scale: 0.75}}}")
    settings = declare(node(params_file=file), Settings)
    assert (settings.rate, settings.depth, settings.limits.scale) == (30.0, 9, 0.75)
    p = graph.Process("probe", {"depth": 2}, params_file=str(file))
    context = rclpy.Context()
    rclpy.init(args=["--ros-args", *p.ros_arguments()], context=context)
    n = rclpy.create_node("probe", context=context)
    settings = declare(n, Settings)
    n.destroy_node()
    context.shutdown()
    assert (settings.rate, settings.depth) == (30.0, 2)


@pytest.mark.parametrize("order", [1, -1])
def test_what_a_launch_argument_says_wins_over_every_section(node, tmp_path, order):
    """rcl merges the command line into the section for all, and a node's own section after it would win."""
    sections = ["/**: {ros__parameters: {depth: 9, rate: 30.0}}", "/**/probe: {ros__parameters: {host: '10.0.0.1'}}",
                "probe: {ros__parameters: {armed: true}}"][::order]
    file = tmp_path / "p.yaml"
    file.write_text("\n".join(sections))
    p = graph.Process("probe", {"host": "127.0.0.9", "armed": False}, params_file=str(file))
    words = p.ros_arguments()
    copy = words[words.index("--params-file") + 1]
    n = node(*(w for w in words if ":=" in w), params_file=copy)
    settings = declare(n, Settings)
    assert (settings.host, settings.armed, settings.depth, settings.rate) == ("127.0.0.9", False, 9, 30.0)


@pytest.mark.parametrize("given, said", [
    ("rate:=20", "probe: parameter rate = 20: expected double; write it with a point"),
    ("rate:=99.0", "probe: parameter rate = 99.0: must be at least 1.0 and at most 60.0"),
    ("rate:=.nan", "rate"),
    ("depth:=-1", "probe: parameter depth = -1: must be at least 0"),
    ("armed:=3", "probe: parameter armed = 3: expected bool"),
    ("mode:=turbo", "probe parameters: mode = 'turbo': choose one of 'sync', 'async'"),
    ("limits.scale:=2.0", "probe: parameter limits.scale = 2.0: must be"),
])
def test_bad_values_are_refused_with_name_value_and_remedy(node, given, said):
    with pytest.raises(ConfigError) as error:
        declare(node(given), Settings)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_missing_required_parameter(node):
    with pytest.raises(ConfigError, match=r"checkpoint is missing.*-p checkpoint:=.*folder of the policy"):
        declare(node(), Required)
    assert declare(node("checkpoint:=models/tiny"), Required) == Required("models/tiny")


def test_changes_while_running(node):
    n = node()
    declare(n, Settings)
    seen = []

    def apply(settings):
        if settings.depth == 13:
            raise ConfigError("depth = 13: not that one; take 12")
        seen.append(settings)

    watch(n, Settings, apply)

    def change(**values):
        return n.set_parameters([Parameter(k, value=v) for k, v in values.items()])[0]

    assert change(depth=5).successful and seen[-1].depth == 5 and read(n, Settings).depth == 5
    assert "choose one of" in change(mode="turbo").reason
    assert "take 12" in change(depth=13).reason
    assert "read-only" in change(rate=20.0).reason
    assert len(seen) == 1 and read(n, Settings) == dataclasses.replace(Settings(), depth=5)


@pytest.mark.parametrize("path", [p for p in sorted(NODES.glob("*.py"))
                                  if all(word in p.read_text() for word in ("\ndef main(", " declare("))],
                         ids=lambda p: p.stem)
def test_the_launch_arguments_are_parameters_of_the_nodes(path):
    """Every parameter the graph gives to a node is one the node declares, of the same type."""
    tables = [c.args[1].id for c in ast.walk(ast.parse(path.read_text()))
              if isinstance(c, ast.Call) and ast.unparse(c.func) == "declare"]
    module = importlib.import_module(f"vipra_ros.nodes.{path.stem}")
    declared = {f.name: f.type for table in tables for f in dataclasses.fields(getattr(module, table))}
    listed = [a for system in graph.SYSTEMS for a in graph.arguments(system) if a.node == path.stem]
    derived = {"executor": {"host": str, "arm_on_start": bool}, "sim": {"host": str, "publish_clock": bool}}
    given = {a.name: a.type for a in listed} | derived.get(path.stem, {})
    assert tables and {n: t.__name__ for n, t in given.items()}.items() <= declared.items()
