"""`vipra config dump`: every parameter of every node of a system, its value, and where that comes from.

What `vipra up SYSTEM name:=value ...` would give the nodes, without starting one. The text is itself a parameter file.
"""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from vipra_ros import graph, parameter_file
from vipra_ros.config import ConfigError, build
from vipra_ros.nodes.parameters import _rows

#: Parameter tables of a node, as it declares them.
TABLES = {
    "executor": ("nodes.executor:ExecutorNodeSettings", "robot.connect:ConnectionSettings",
                 "control.settings:ExecutorSettings"),
    "sim": ("nodes.sim:SimSettings",),
    "policy": ("nodes.policy_settings:PolicySettings",),
    "gello": ("nodes.gello:GelloNodeSettings", "teleop.follow:FollowSettings"),
    "recorder": ("nodes.recorder:RecorderSettings",),
    "console": ("nodes.console:ConsoleSettings",),
    "demonstrator": ("nodes.demonstrator:DemonstratorSettings",),
    "replay": ("nodes.replay:ReplaySettings",),
}
DEFAULT, LAUNCH, MISSING = "default", "launch argument", "missing"
#: Parameters that ROS itself declares on every node.
ROS_OWN = ("use_sim_time",)


@dataclass(frozen=True)
class Value:
    """One parameter. origin: DEFAULT, LAUNCH, MISSING (required, and not given) or the path of a parameter file."""

    name: str
    value: Any
    origin: str
    doc: str


def values(process: graph.Process) -> list[Value]:
    """The parameters of a node in the order it declares them; a launch argument wins over the file.

    Raises:
        ConfigError: a value is of a wrong type or out of range, or the node does not know the parameter.
    """
    name, file = process.executable, process.params_file
    sections = parameter_file.sections_of(file, process.namespace, name) if file else []
    given = {k: v for _, parameters in sections for k, v in parameters.items()}
    found, known = [], set()
    for path in TABLES[name]:
        module, _, table = path.partition(":")
        cls = getattr(import_module(f"vipra_ros.{module}"), table)
        rows = list(_rows(cls, ""))
        known |= {row.name for row in rows}
        chosen = {}
        for row in rows:
            value, origin = row.default, DEFAULT
            if row.name in given:
                value, origin = given[row.name], file
                if row.type.name.startswith("DOUBLE") and not row.optional:
                    _as_ros(value, f"{file}: {name}: {row.name}")
            if row.name in process.parameters:
                value, origin = process.parameters[row.name], LAUNCH
            if not isinstance(value, (bool, int, float, str, list, tuple, type(None))):
                value, origin = None, MISSING
            if origin not in (DEFAULT, MISSING):
                chosen[row.name] = value
            found.append(Value(row.name, value, origin, row.field.metadata.get("doc", "")))
        missing = {v.name for v in found if v.origin == MISSING}
        if not missing & {row.name for row in rows}:
            build(cls, _nested(chosen, rows), source=f"{name} parameters")
    own = {k for section, parameters in sections if section.endswith(f"/{name}") for k in parameters}
    unknown = sorted(own - known - set(ROS_OWN))
    if unknown:
        raise ConfigError(f"{file}: {name} has no parameter {unknown[0]!r}; without params_file they are listed")
    return found


def _nested(chosen: dict[str, Any], rows: Sequence) -> dict[str, Any]:
    """Dotted names as the mapping that `build` takes; groups of which a part is given are filled with defaults."""
    groups = {n.split(".")[0] for n in chosen if "." in n}
    full = {r.name: r.default for r in rows if r.name.split(".")[0] in groups} | chosen
    made: dict[str, Any] = {}
    for name, value in full.items():
        *path, last = name.split(".")
        here = made
        for part in path:
            here = here.setdefault(part, {})
        here[last] = value
    return made


def _as_ros(value: Any, what: str) -> None:
    """ConfigError for a whole number where a node wants a double: ROS does not convert it."""
    for v in value if isinstance(value, list) else [value]:
        if isinstance(v, int) and not isinstance(v, bool):
            raise ConfigError(f"{what} = {value}: expected double; write it with a point, as in {float(v)}")


def as_yaml(nodes: dict[str, list[Value]], namespace: str = "") -> str:
    """A ROS parameter file; the origin of each value is its comment."""
    lines = []
    for node, rows in nodes.items():
        lines += ["/" + "/".join(p for p in (namespace.strip("/"), node) if p) + ":", "  ros__parameters:"]
        for row in rows:
            value = list(row.value) if isinstance(row.value, tuple) else row.value
            empty = row.origin == MISSING or value is None or value == []  # ROS has no type for these
            lines.append(f"    {'# ' * empty}{row.name}: {'' if value is None else json_module.dumps(value)}"
                         f"  # {row.origin}")
    return "\n".join(lines)


def dump(system: str, arguments: list[str], json: bool) -> None:
    """`vipra config dump`."""
    processes = graph.processes(system, graph.parse(arguments))
    nodes = {p.executable: values(p) for p in processes}
    if json:
        print(json_module.dumps({n: {v.name: {"value": v.value, "origin": v.origin, "doc": v.doc} for v in rows}
                                 for n, rows in nodes.items()}, indent=1))
    else:
        print(as_yaml(nodes, processes[0].namespace))
