"""Configuration: frozen dataclasses read from YAML, checked at start.

One table serves everything: a dataclass whose fields are made with :func:`param` is the YAML
schema, the validation, the ROS parameter declaration (`vipra_ros.nodes.parameters`) and the
documentation. An unknown key, a wrong type or a value out of range is a :class:`ConfigError`
that names the key, the value and the remedy; nothing is silently defaulted or coerced.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")
#: Bytes of a YAML file that is read, brackets within brackets, and characters of a value that an error shows.
MOST_BYTES, MOST_BRACKETS, MOST_SHOWN = 1 << 18, 50, 200


class ConfigError(ValueError):
    """A configuration value cannot be used; the message names key, value and remedy."""


def param(default: Any = dataclasses.MISSING, *, doc: str, unit: str = "", low: float | None = None,
          high: float | None = None, choices: tuple | None = None, read_only: bool = True) -> Any:
    """Declare one configuration value (a dataclass field).

    Args:
        default: value when the key is absent; required when omitted.
        doc: one sentence for the user.
        unit: SI unit, empty for a pure number or text.
        low, high: inclusive range of a number, applied to every element of a list.
        choices: the allowed values.
        read_only: False lets a running node change it; safety parameters never do.
    """
    metadata = dict(doc=doc, unit=unit, low=low, high=high, choices=choices, read_only=read_only)
    if isinstance(default, (list, dict)):
        value = default
        return dataclasses.field(default_factory=lambda: type(value)(value), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def build(cls: type[T], values: dict[str, Any], source: str = "configuration") -> T:
    """Make the frozen dataclass `cls` from a mapping, refusing anything it does not declare.

    Raises:
        ConfigError: unknown or missing key, wrong type, number out of range or not finite.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected a mapping of keys, got {type(values).__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(fields), key=str)
    if unknown:
        raise ConfigError(f"{source}: unknown key {_shown(unknown[0])}; known keys: {', '.join(sorted(fields))}")
    made = {}
    for name, f in fields.items():
        if name in values:
            made[name] = _checked(values[name], hints[name], f, f"{source}: {name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{source}: {name} is missing; add it ({f.metadata.get('doc', '')})")
    return cls(**made)


def load(cls: type[T], path: str | Path, **overrides: Any) -> T:
    """Read `cls` from the YAML file `path`; keyword arguments win over the file."""
    return build(cls, {**read_yaml(path), **overrides}, source=str(path))


class PlainLoader(yaml.SafeLoader):
    """The safe loader without aliases, as ROS 2's own reader of parameters: a few lines of them fill a memory.

    Brackets that are not closed take a time that grows with their number squared.
    """

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level >= MOST_BRACKETS:
            text = f"more than {MOST_BRACKETS} brackets in one another"
            raise yaml.scanner.ScannerError(None, None, text, self.get_mark())
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not taken, write it out", mark)
        return super().compose_node(parent, index)


#: YAML 1.1, which PyYAML speaks, takes 3e-4 and 1.0e5 for text; YAML 1.2 and ROS 2 take them for numbers.
PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789"))


def parse_yaml(content: str | bytes, source: str) -> Any:
    """The value of a YAML text; ConfigError, beginning with `source`, when it is none."""
    try:
        return yaml.load(content.decode() if isinstance(content, bytes) else content, Loader=PlainLoader)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        # Beside its own errors the safe loader lets those of dates, numbers and deep nesting through.
        text = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{source}: not valid YAML ({text[:MOST_SHOWN]})") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping with the safe loader, with errors that name the file.

    Raises:
        ConfigError: it cannot be read, is larger than a configuration can be, or no YAML mapping.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a YAML configuration") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the path of a YAML configuration") from None
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{path} has more than {MOST_BYTES} bytes; a configuration is smaller")
    values = parse_yaml(content, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping at the top level, got {type(values).__name__}")
    return values


def share(*parts: str) -> Path:
    """A file shipped with the package (`config/`, `models/`, `launch/`): source tree or install."""
    here = Path(__file__).resolve().parent
    prefix = here.parents[min(3, len(here.parents) - 1)]  # PREFIX/lib/python3.x/site-packages/vipra_ros
    candidates = [here.parent, prefix / "share" / "vipra_ros", here / "share"]
    for root in candidates:
        path = root.joinpath(*parts)
        if path.exists():
            return path
    import os
    for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(":"):
        path = Path(prefix, "share", "vipra_ros", *parts)
        if prefix and path.exists():
            return path
    name = "/".join(parts)
    raise ConfigError(f"{name} is not in the package; looked in {candidates[0]} and in AMENT_PREFIX_PATH")


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or of lists in lists
        return f"a very large {type(value).__name__}"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _checked(value: Any, hint: Any, f: dataclasses.Field, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        return _checked(value, next(o for o in options if o is not type(None)), f, where)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, source=where)
    if origin in (tuple, list):
        if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
            raise ConfigError(f"{where} = {_shown(value)}: expected a list")
        inner = typing.get_args(hint)[0] if typing.get_args(hint) else typing.Any
        return origin(_checked(v, inner, f, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict or hint is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} = {_shown(value)}: expected a mapping")
        return dict(value)
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{where} = {_shown(value)}: expected a number")
        try:
            value = float(value)
        except OverflowError:  # a whole number of 300 digits and more
            value = math.inf
        if not math.isfinite(value):
            raise ConfigError(f"{where} = {_shown(value)}: must be finite")
    elif hint in (int, bool, str):
        if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
            raise ConfigError(f"{where} = {_shown(value)}: expected {hint.__name__}")
    low, high, choices = (f.metadata.get(k) for k in ("low", "high", "choices"))
    unit = f" {f.metadata.get('unit')}" if f.metadata.get("unit") else ""
    if hint in (int, float) and low is not None and value < low:
        raise ConfigError(f"{where} = {_shown(value)}{unit}: must be at least {low}{unit}")
    if hint in (int, float) and high is not None and value > high:
        raise ConfigError(f"{where} = {_shown(value)}{unit}: must be at most {high}{unit}")
    if choices and value not in choices:
        raise ConfigError(f"{where} = {_shown(value)}: choose one of {', '.join(map(repr, choices))}")
    return value
