"""ROS parameters from the same table as everything else: a dataclass of `config.param` fields.

:func:`declare` declares one ROS parameter per field (type, description, range, read-only or not) and
returns the frozen dataclass that command line and params files make. :func:`watch` lets a running node
take new values of the fields that are not read-only. A nested dataclass becomes parameters with a dot:
`limits.scale`.
"""

from __future__ import annotations

import array
import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import (
    InvalidParameterTypeException,
    InvalidParameterValueException,
    ParameterUninitializedException,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from vipra_ros.config import ConfigError, build

T = TypeVar("T")

_TYPES = {bool: Parameter.Type.BOOL, int: Parameter.Type.INTEGER,
          float: Parameter.Type.DOUBLE, str: Parameter.Type.STRING}
_ARRAYS = {bool: Parameter.Type.BOOL_ARRAY, int: Parameter.Type.INTEGER_ARRAY,
           float: Parameter.Type.DOUBLE_ARRAY, str: Parameter.Type.STRING_ARRAY}
_INT64 = (-2 ** 63, 2 ** 63 - 1)


class _Row(NamedTuple):
    """One ROS parameter: where it stands in the dataclass, its ROS type, whether None is a value of it."""

    name: str
    field: dataclasses.Field
    type: Parameter.Type
    optional: bool
    default: Any


def declare(node: Node, cls: type[T], prefix: str = "") -> T:
    """Declare every field of `cls` on `node` and return the dataclass their values make.

    Raises:
        ConfigError: a parameter is missing, of a wrong type or out of range; one line with the remedy.
    """
    for row in _rows(cls, prefix):
        try:
            node.declare_parameter(row.name, _ros_value(row), _descriptor(row))
        except InvalidParameterTypeException as error:
            given = re.search(r"to '(.*)' of type '(\w+)'", str(error), re.DOTALL)
            hint = "; write it with a point, as in 15.0" if row.type == Parameter.Type.DOUBLE else ""
            raise ConfigError(f"{node.get_name()}: parameter {row.name} = {given[1] if given else error}: "
                              f"expected {row.type.name.lower().replace('_', ' ')}{hint}") from None
        except InvalidParameterValueException as error:
            given = re.search(r"value \((.*?)\) for parameter", str(error))
            raise ConfigError(f"{node.get_name()}: parameter {row.name} = {given[1] if given else error}: "
                              f"{_limits(row.field)}; correct the params file or "
                              f"-p {row.name}:=...") from None
    return read(node, cls, prefix)


def read(node: Node, cls: type[T], prefix: str = "") -> T:
    """The dataclass `cls` from the values that the declared parameters of `node` have now.

    Raises:
        ConfigError: as :func:`declare`.
    """
    return _read(node, cls, prefix, {})


def watch(node: Node, cls: type[T], apply: Callable[[T], None], prefix: str = "") -> None:
    """Check every change of a parameter of `cls` on the running node; hand the new dataclass to `apply`.

    A change that the table or `apply` refuses (ConfigError) is answered with the reason; nothing changes.
    """
    names = {row.name for row in _rows(cls, prefix)}

    def on_set(parameters: list[Parameter]) -> SetParametersResult:
        changed = {p.name: p.value for p in parameters if p.name in names}
        if changed:
            try:
                apply(_read(node, cls, prefix, changed))
            except ConfigError as error:
                return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(on_set)


def _read(node: Node, cls: type[T], prefix: str, changed: dict[str, Any]) -> T:
    values: dict[str, Any] = {}
    for row in _rows(cls, prefix):
        try:
            value = changed[row.name] if row.name in changed else node.get_parameter(row.name).value
        except ParameterUninitializedException:
            value = None
        if value is None and not row.optional:
            raise ConfigError(f"{node.get_name()}: parameter {row.name} is missing; set it in the params "
                              f"file or with -p {row.name}:=... ({row.field.metadata.get('doc', '')})")
        if isinstance(value, array.array | tuple):
            value = list(value)
        path = row.name.removeprefix(prefix).split(".")
        here = values
        for part in path[:-1]:
            here = here.setdefault(part, {})
        here[path[-1]] = value
    return build(cls, values, source=f"{node.get_name()} parameters")


def _rows(cls: type, prefix: str, inherited: Any = dataclasses.MISSING) -> Iterator[_Row]:
    """Every parameter of `cls`, nested ones too; `inherited` is an instance that gives their defaults."""
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        default = _default(f) if inherited is dataclasses.MISSING else getattr(inherited, f.name)
        hint, optional = hints[f.name], False
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            optional = type(None) in typing.get_args(hint)
            hint = next(o for o in typing.get_args(hint) if o is not type(None))
        if dataclasses.is_dataclass(hint):
            yield from _rows(hint, f"{prefix}{f.name}.", default)
            continue
        kind = _TYPES.get(hint)
        if kind is None and typing.get_origin(hint) in (tuple, list):
            kind = _ARRAYS.get(typing.get_args(hint)[0])
        if kind is None:
            raise TypeError(f"{cls.__name__}.{f.name}: {hint} has no ROS parameter type; use bool, int, "
                            "float, str, a list or tuple of one of them, or a nested dataclass")
        yield _Row(prefix + f.name, f, kind, optional, default)


def _default(f: dataclasses.Field) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def _ros_value(row: _Row) -> Any:
    """The default in the form rclpy wants; its type alone when there is none."""
    if row.default is dataclasses.MISSING:
        return row.type
    if row.default is None:
        return None
    if isinstance(row.default, list | tuple):
        return [float(v) if row.type == Parameter.Type.DOUBLE_ARRAY else v for v in row.default]
    return float(row.default) if row.type == Parameter.Type.DOUBLE else row.default


def _descriptor(row: _Row) -> ParameterDescriptor:
    meta = row.field.metadata
    unit = f" [{meta['unit']}]" if meta.get("unit") else ""
    low, high = meta.get("low"), meta.get("high")
    empty = isinstance(row.default, list | tuple) and not row.default  # rclpy takes an empty list for bytes
    descriptor = ParameterDescriptor(
        description=meta.get("doc", "") + unit, read_only=bool(meta.get("read_only", True)),
        additional_constraints=_limits(row.field), dynamic_typing=row.optional or empty)
    if low is None and high is None:
        return descriptor
    if row.type == Parameter.Type.DOUBLE:
        low, high = -math.inf if low is None else low, math.inf if high is None else high
        descriptor.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
    elif row.type == Parameter.Type.INTEGER:
        low, high = _INT64[0] if low is None else low, _INT64[1] if high is None else high
        descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high))]
    return descriptor


def _limits(f: dataclasses.Field) -> str:
    low, high, choices = (f.metadata.get(k) for k in ("low", "high", "choices"))
    parts = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
    if choices:
        parts.append("one of " + ", ".join(map(str, choices)))
    return "must be " + " and ".join(parts) if parts else ""

