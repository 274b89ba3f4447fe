"""What a command of `vipra` is: a row of a table."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

#: Tasks of the simulated table.
TASKS = ("reach", "push", "lift")


def arg(*flags: str, **keywords: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """One argument of a command, as argparse's add_argument takes it."""
    return flags, keywords


@dataclass(frozen=True)
class Command:
    """One command. `run` gets the parsed arguments; what it returns is the exit status (None: 0)."""

    name: str
    group: str
    doc: str
    example: str
    arguments: tuple
    run: Callable[[argparse.Namespace], int | None]


def room(path: str) -> Callable:
    """The function at `module:function` inside vipra_ros, imported now."""
    module, _, function = path.partition(":")
    return getattr(importlib.import_module(f"vipra_ros.{module}"), function)


def to(path: str) -> Callable[[argparse.Namespace], int | None]:
    """Runs the function at `path`, imported then, with the arguments of the command by their names."""
    return lambda a: room(path)(**{k: v for k, v in vars(a).items() if k not in ("run", "debug")})


def settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`["loop.minutes=5"]` as {"loop.minutes": 5}; values are YAML."""
    from vipra_ros.config import ConfigError, parse_yaml

    result = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise ConfigError(f"--set {pair}: write KEY=VALUE")
        result[key] = parse_yaml(value, f"--set {pair}")
    return result


#: What computes a policy; `eager` is for comparison and stands in the benchmark only.
ENGINES = ("auto", "torch", "onnx", "tensorrt", "fused", "static")
DEVICE = arg("--device", default="auto", metavar="DEVICE",
             help="where: auto (a GPU where torch sees one), cpu, cuda, or cuda:1 (%(default)s)")
EULER_STEPS = arg("--euler-steps", type=int, default=0, metavar="N",
                  help="of a chunk, fewer are faster; 0: the checkpoint's own (%(default)s)")
WEIGHTS = arg("--weights", default="full", metavar="NAME",
              help="of the trunk's matrices: full, int8, fp8, int8_dynamic, fp8_dynamic; engines torch and static "
                   "(%(default)s)")
CHECKPOINT = arg("--checkpoint", default="models/tiny", metavar="DIR", help="the policy (%(default)s)")
