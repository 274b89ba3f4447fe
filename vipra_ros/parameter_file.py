"""ROS parameter files, read as rcl and rclpy read them; no ROS is needed for it.

A file has sections, `/**` or a node's name, `/left/executor` or `left: executor:`; a node gets those that match its
name, and what stands later in the file wins.
"""

from __future__ import annotations

import atexit
import re
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from vipra_ros.config import ConfigError, read_yaml

PARAMETERS = "ros__parameters"


def sections(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name, with a leading slash, and dotted parameters of each section.

    Raises:
        ConfigError: the file is not there, or no YAML mapping, or a section's parameters are none.
    """
    for name, given in _sections(read_yaml(path), ""):
        if not isinstance(given, dict):
            raise ConfigError(f"{path}: {name}: {PARAMETERS} is {given!r}; write names and values below it")
        yield name, _flat(given)


def of_node(path: str | Path, namespace: str, node: str) -> dict[str, Any]:
    """The parameters that a node gets, as the last of its sections in the file says; none without a path."""
    found = sections_of(path, namespace, node) if path else ()
    return {name: value for _, given in found for name, value in given.items()}


def sections_of(path: str | Path, namespace: str, node: str) -> list[tuple[str, dict[str, Any]]]:
    """Those of `sections` that are for a node."""
    name = "/" + "/".join(part for part in (namespace.strip("/"), node) if part)
    return [section for section in sections(path) if matches(section[0], name)]


def _sections(table: dict[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if key == PARAMETERS:
            yield name or "/", {} if value is None else value
        elif isinstance(value, dict):
            yield from _sections(value, f"{name}/{str(key).strip('/')}")


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def matches(section: str, node: str) -> bool:
    """Whether `section` is for the node of this full name: `*` is one part of a name, `**` any number of them."""
    return re.fullmatch(re.escape(section).replace(r"/\*", r"(/\w+)").replace(r"\*", "*"), node) is not None


def without(path: str | Path, names: Collection[str]) -> str:
    """`path`, or a copy for one process in which no section has the parameters `names`, which it gets by other ways.

    rcl keeps what comes from the command line in the section `/**`, and where the file has one, in its place: a section
    after it would win, and `robot:=sim` move the arm whose address the file has.
    """
    tree = yaml.compose(Path(path).read_text())  # not loaded: what is written stays as it is written
    if not isinstance(tree, yaml.MappingNode) or not _take(tree, names):
        return str(path)
    handle, copy = tempfile.mkstemp(prefix="vipra-parameters-", suffix=".yaml")
    atexit.register(Path(copy).unlink, missing_ok=True)
    with open(handle, "w") as file:
        file.write(yaml.serialize(tree) if tree.value else "")
    return copy


def _take(tree: yaml.MappingNode, names: Collection[str], parameters: bool = False) -> bool:
    """Take `names` out of every section, and what becomes empty, as rcl takes no empty section; whether any was."""
    taken, kept = False, []
    for key, value in tree.value:
        if parameters and key.value in names:
            taken = True
            continue
        if isinstance(value, yaml.MappingNode) and not parameters:
            taken |= _take(value, names, key.value == PARAMETERS)
            if not value.value:
                continue
        kept.append((key, value))
    tree.value = kept
    return taken
