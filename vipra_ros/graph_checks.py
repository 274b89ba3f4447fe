"""Launch arguments that make no sense together, or would move a real arm by what is meant for a simulated one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vipra_ros import parameter_file
from vipra_ros.config import ConfigError
from vipra_ros.policy.device import check_device


def check(system: str, values: dict[str, str], simulated: Mapping[str, str]) -> None:
    """Check the launch arguments of `system`, all of them, as text; the expert's are completed.

    Args:
        simulated: defaults of the arguments that only a simulated arm has.

    Raises:
        ConfigError: with the argument and what to write instead.
    """
    _files(system, values)
    if values.get("robot", "sim") != "sim":
        wrong = next((name for name, default in simulated.items() if values[name] != default), None)
        if wrong:
            raise ConfigError(f"{system}: {wrong}:={values[wrong]} is for robot:=sim only; leave it out")
    if (values.get("engine") == "remote") != bool(values.get("server")):
        raise ConfigError(f"{system}: engine:=remote and server:=ws://HOST:PORT go together; add the other one")
    if values.get("device"):
        check_device(values["device"])
    if values.get("expert"):
        _expert(values)
    elif values.get("episodes"):
        raise ConfigError(f"{system}: episodes:={values['episodes']} is for the expert; add expert:=push")
    if system == "replay" and bool(values["bag"]) == bool(values["dataset"]):
        raise ConfigError("replay: give one episode; add bag:=FOLDER, or dataset:=FOLDER episode:=NUMBER")
    _real_arm(system, values)


def _files(system: str, values: Mapping[str, str]) -> None:
    for name, remedy in (("params_file", ""), ("gello_config", "; vipra gello calibrate makes one")):
        if values.get(name) and not Path(values[name]).is_file():
            if values[name].startswith("~"):
                remedy = "; no shell turns ~ into your folder behind :=, write $HOME"
            raise ConfigError(f"{system}: {name}:={values[name]}: no such file{remedy}")


def _expert(values: dict[str, str]) -> None:
    """The expert knows the simulated scene alone, and needs servos that it can move."""
    if values["robot"] != "sim" or values["gello"] != "emulated":
        raise ConfigError(f"teleop: expert:={values['expert']} needs robot:=sim and gello:=emulated")
    if values["com_port"]:
        raise ConfigError(f"teleop: com_port:={values['com_port']}: expert brings a port of its own; leave it out")
    if values["task"] not in ("", values["expert"]):
        raise ConfigError(f"teleop: task:={values['task']} and expert:={values['expert']}; leave task out")
    values["task"], values["record"] = values["expert"], values["record"] or "out/teleop"


def _real_arm(system: str, values: Mapping[str, str]) -> None:
    """What is meant for a simulated arm moves none of metal, but for a dry run."""
    executor, policy, gello = (parameter_file.of_node(values["params_file"], values["namespace"], node)
                               for node in ("executor", "policy", "gello"))
    if values.get("robot", "sim") == "sim" or values["dry_run"] == "true" or (
            not values["dry_run"] and executor.get("dry_run") is True):
        return
    if values.get("gello"):
        raise ConfigError(f"{system}: gello:={values['gello']} swings the arm by itself; it is for robot:=sim, or add "
                          "dry_run:=true")
    # A file may come from a simulation: `vipra config dump` writes down what the arguments set.
    if system == "teleop" and gello.get("emulate"):
        raise ConfigError(f"teleop: emulate: {gello['emulate']} in {values['params_file']} is for robot:=sim: "
                          "nobody leads; take it out, or add dry_run:=true")
    if system == "policy" and policy.get("simulated"):
        raise ConfigError(f"policy: simulated: {policy['simulated']} in {values['params_file']} is for robot:=sim: "
                          "any policy may move it; take it out, or add dry_run:=true")
    if system == "policy" and not any(values[name] or policy.get(name) for name in ("checkpoint", "server")):
        raise ConfigError("policy: the shipped models/tiny knows the simulated table only; add checkpoint:=FOLDER, or "
                          "dry_run:=true")
