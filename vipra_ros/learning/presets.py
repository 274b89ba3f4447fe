"""Training configurations: a YAML file with dotted overrides."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from vipra_ros.config import ConfigError, build, read_yaml, share

T = TypeVar("T")
#: Keys of which a file gives one; overriding one takes the other out.
EXCLUSIVE = {"steps": "minutes", "minutes": "steps"}


def read(cls: type[T], preset: str | Path, job: str, overrides: dict[str, Any]) -> T:
    """The dataclass of config/learning/<preset>/<job>.yaml, or of a YAML path, with `overrides` applied.

    Args:
        overrides: dotted keys, e.g. {"loop.minutes": 5}; one of loop.steps and loop.minutes replaces the other.
    """
    text = str(preset)
    path = Path(text) if text.endswith((".yaml", ".yml")) else share("config", "learning", text, f"{job}.yaml")
    values = read_yaml(path)
    for key, value in overrides.items():
        *parts, last = key.split(".")
        table = values
        for part in parts:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise ConfigError(f"override {key}: {part} is a value, not a table")
        if parts[-1:] == ["loop"] and last in EXCLUSIVE and ".".join([*parts, EXCLUSIVE[last]]) not in overrides:
            table.pop(EXCLUSIVE[last], None)
        table[last] = value
    return build(cls, values, source=str(path))


def dotted(table: dict[str, Any]) -> dict[str, Any]:
    """`table` with dotted keys alone, as overrides are. What is nested came on top of a dotted key: --set nests."""
    nested = {f"{key}.{name}": value for key, inner in table.items() if isinstance(inner, dict)
              for name, value in dotted(inner).items()}
    made = {key: value for key, value in table.items() if not isinstance(value, dict)}
    for name, other in EXCLUSIVE.items():
        if f"loop.{name}" in nested and f"loop.{other}" not in nested:
            made.pop(f"loop.{other}", None)
    return made | nested


def completed(cls: type, kept: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """`kept`, values of `cls` from an earlier version, with the keys that only `now` has where these are defaults."""
    defaults = {f.name: f.default for f in dataclasses.fields(cls)}
    defaults |= {f.name: dataclasses.asdict(f.default_factory()) for f in dataclasses.fields(cls)
                 if dataclasses.is_dataclass(f.default_factory)}
    types, made = get_type_hints(cls), dict(kept)
    for key, value in now.items():
        if key in kept and dataclasses.is_dataclass(types.get(key)):
            made[key] = completed(types[key], kept[key], value)
        elif key not in kept and value == defaults.get(key, dataclasses.MISSING):
            made[key] = value
    return made


def variant(name: str, job: str) -> dict[str, Any]:
    """Overrides of `job` (latent, pretrain, finetune) in config/learning/variants/<name>.yaml; none for an empty name.

    Raises:
        ConfigError: no such variant, or it has no such job.
    """
    if not name:
        return {}
    values = read_variant(name)
    if job == "latent":  # most variants share the latent actions of the preset
        return values.get(job, {})
    if job not in values:
        raise ConfigError(f"variant {name} has no {job}; go on with {', '.join(values)}")
    return values[job]


def read_variant(name: str) -> dict[str, dict[str, Any]]:
    """All of config/learning/variants/<name>.yaml: job -> overrides.

    Raises:
        ConfigError: no such variant.
    """
    folder = share("config", "learning", "variants")
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"variant = {name!r}: choose one of {', '.join(known)}")
    return read_yaml(folder / f"{name}.yaml")
