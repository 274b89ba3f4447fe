"""Which nodes make a system: one description, read by launch/*.launch.py and by `vipra up`.

A system is a list of processes. The launch arguments say what they get: `robot:=sim` starts the simulated
controller beside the executor and gives the executor its address, `robot:=172.16.0.2` does neither. An
argument left empty is not passed on at all, so that the node's own default or `params_file` decides.
This module knows no ROS.
"""

from __future__ import annotations

import os
import tempfile
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vipra_ros import graph_checks, parameter_file
from vipra_ros.config import ConfigError, share
from vipra_ros.policy import shipped
from vipra_ros.policy.deployment import check_folder, mode_of_folder
from vipra_ros.policy.weights import WEIGHTS

#: Where Fast DDS 3 and 2 look for a profile.
PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")


def profile_variables(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Those of `PROFILE_VARIABLES` that are read here; Fast DDS 3 reads the old name too, and complains."""
    return PROFILE_VARIABLES[1:] if environment.get("ROS_DISTRO") == "jazzy" else PROFILE_VARIABLES


@dataclass(frozen=True)
class Argument:
    """One launch argument `name:=value`; an empty default leaves the choice to the node or params file.

    `node` is the node that gets it as a parameter, "*" all of them, "" none as it stands.
    """

    name: str
    default: str
    doc: str
    type: type = str
    choices: tuple[str, ...] = ()
    node: str = ""


@dataclass(frozen=True)
class Process:
    """One node to start.

    Attributes:
        executable: module of vipra_ros.nodes, program in lib/vipra_ros, and the node's name.
        parameters: ROS parameters, with the types the node declares; they win over `params_file`.
        required: its end ends the whole system, as a failure.
        finishes: its end ends the whole system, with its own exit status.
        environment: variables added to the environment.
    """

    executable: str
    parameters: dict[str, bool | int | float | str]
    required: bool = False
    finishes: bool = False
    namespace: str = ""
    params_file: str = ""
    log_level: str = "info"
    environment: dict[str, str] = field(default_factory=dict)

    def ros_arguments(self) -> list[str]:
        """What follows `--ros-args` on the command line of the process."""
        arguments = ["--log-level", self.log_level]
        if self.namespace:
            arguments += ["-r", f"__ns:=/{self.namespace.strip('/')}"]  # rcl takes absolute names only
        if self.params_file:
            arguments += ["--params-file", self.file_beside()]
        for name, value in self.parameters.items():
            arguments += ["-p", f"{name}:={yaml_scalar(value)}"]
        return arguments

    def file_beside(self) -> str:
        """`params_file`, or a copy without what `parameters` say; empty for none."""
        return parameter_file.without(self.params_file, self.parameters) if self.params_file else ""


_ROBOT = (
    Argument("robot", "sim", "'sim' starts a simulated arm; else the address of the arm's control unit"),
)
_EXECUTOR = (
    Argument("profile", "", "robot profile: a name in config/robots or the path of a YAML file",
             node="executor gello demonstrator policy console"),
    Argument("realtime_config", "", "enforce needs a real-time kernel; empty: ignore in simulation, else the "
             "executor's own default", choices=("enforce", "ignore"), node="executor"),
    Argument("dry_run", "", "true: limited commands go to a preview topic, the arm is not moved", bool,
             node="executor"),
    Argument("arm_on_start", "auto", "arm without being asked; auto: a simulated robot only, unless the file says no",
             choices=("auto", "true", "false")),
    Argument("mode", "", "async: the next chunk is computed while one runs; sync: the arm stops and waits",
             choices=("sync", "async"), node="executor policy"),
)
_SIM = (
    Argument("sim_host", "127.0.0.8", "loopback address of the simulated controller, one per robot"),
    Argument("task", "", "task of the simulated scene", choices=("reach", "push", "lift"), node="sim"),
    Argument("seed", "", "random start of the simulated scene", int, node="sim"),
    Argument("camera_rate", "", "images per second and simulated camera", float, node="sim"),
)
_COMMON = (
    Argument("namespace", "", "namespace of all nodes and topics"),
    Argument("use_sim_time", "false", "take the time from /clock", bool, node="*"),
    Argument("params_file", "", "YAML file of ROS parameters for all nodes"),
    Argument("log_level", "info", "least severe messages shown",
             choices=("debug", "info", "warn", "error", "fatal")),
)
_POLICY = (
    Argument("checkpoint", "", "folder of the trained policy; empty: the shipped models/tiny", node="policy"),
    Argument("instruction", "", "what to do, in words; may change later on the topic policy/instruction",
             node="policy"),
    Argument("rate", "", "most chunks per second", float, node="policy"),
    Argument("engine", "", "what computes; auto: fused on a CPU, else torch; remote: a policy server",
             choices=("auto", "torch", "onnx", "tensorrt", "fused", "static", "remote"), node="policy"),
    Argument("device", "", "where it computes: auto (a GPU where torch sees one), cpu, cuda, or cuda:1, the second GPU",
             node="policy"),
    Argument("euler_steps", "", "Euler steps of a chunk, fewer are faster; 0: as many as the checkpoint says", int,
             node="policy"),
    Argument("weights", "", "of the trunk's matrices: as in the checkpoint, or in 8 bits; of engines torch and static",
             choices=WEIGHTS, node="policy"),
    Argument("server", "", "of engine:=remote: ws://HOST:PORT of `vipra serve` or of an openpi server, wss for TLS",
             node="policy"),
    Argument("server_config", "", "YAML file on a server that does not say what it serves", node="policy"),
    Argument("token_file", "", "file with the token that the server asks for", node="policy"),
)
_TELEOP = (
    Argument("gello", "", "emulated: no leader arm, servos that swing about the home pose", choices=("emulated",)),
    Argument("gello_config", "", "YAML file of the GELLO arm: port, joint signs, offsets",
             node="gello demonstrator"),
    Argument("gello_arm", "", "section of that file; empty: the one with our namespace, or the only one",
             node="gello demonstrator"),
    Argument("com_port", "", "serial port of the GELLO; empty: that of gello_config", node="gello"),
    Argument("sink", "velocity", "last hop of the commands: short velocity motions that end by themselves, one motion "
             "a chunk, or compliant", choices=("waypoints", "velocity", "impedance"), node="executor"),
    Argument("expert", "", "a scripted expert moves the emulated GELLO: it demonstrates this task in the "
             "simulated scene, recorded into record, or out/teleop", choices=("reach", "push", "lift")),
    Argument("episodes", "", "demonstrations of the expert, each with the next seed; then the system ends", int,
             node="demonstrator"),
)
_RECORD = (
    Argument("record", "", "folder for the episodes; empty: nothing is recorded", node="recorder"),
)
_CONSOLE = (
    Argument("console", "false", "true: a web page for the operator, at http://127.0.0.1:8090", bool),
    Argument("deadman_timeout", "", "s; the arm moves only while the console's hold-to-run is held, and stops after "
             "this silence; empty: no dead-man", float, node="executor"),
)
_REPLAY = (
    Argument("bag", "", "recorded episode to replay through the executor", node="replay"),
    Argument("dataset", "", "instead of a bag: folder of a data set", node="replay"),
    Argument("episode", "", "number of the episode in the data set", int, node="replay"),
)

#: system -> (one sentence, launch arguments, nodes beside the executor)
SYSTEMS: dict[str, tuple[str, tuple[Argument, ...], tuple[str, ...]]] = {
    "policy": ("A trained policy drives the arm.", _ROBOT + _POLICY + _RECORD + _CONSOLE + _EXECUTOR + _SIM + _COMMON,
               ("policy", "recorder")),
    "teleop": ("A person drives the arm with a GELLO, and may record.",
               _ROBOT + _TELEOP + _RECORD + _CONSOLE + _EXECUTOR + _SIM + _COMMON, ("gello", "recorder")),
    "sim": ("A simulated arm with table and cameras, and its executor.", _CONSOLE + _EXECUTOR + _SIM + _COMMON, ()),
    "replay": ("A recorded episode drives the arm.", _ROBOT + _REPLAY + _CONSOLE + _EXECUTOR + _SIM + _COMMON,
               ("replay",)),
}
#: The system has no meaning without these: when one ends, all end.
REQUIRED = ("executor", "sim")
#: They have one job: when it is done, all end.
FINISHING = ("demonstrator", "replay")


def arguments(system: str) -> tuple[Argument, ...]:
    """The launch arguments of `system`; ConfigError when there is no such system."""
    if system not in SYSTEMS:
        raise ConfigError(f"no system {system!r}; known systems: {', '.join(SYSTEMS)}")
    return SYSTEMS[system][1]


def resolve(system: str, given: dict[str, str]) -> dict[str, str]:
    """Every launch argument of `system` with its value as text, those of `given` checked.

    Raises:
        ConfigError: an argument is unknown, not of its type, or makes no sense with the others.
    """
    known = {a.name: a for a in arguments(system)}
    for name in given:
        if name not in known:
            raise ConfigError(f"{system}: unknown argument {name!r}; known: {', '.join(known)}")
    values = {name: given.get(name) or a.default for name, a in known.items()}
    for name, text in values.items():
        if text:
            _typed(known[name], text)
    graph_checks.check(system, values, {a.name: a.default for a in _SIM})
    return values


def processes(system: str, given: dict[str, str]) -> list[Process]:
    """The processes of `system`, in the order to start them.

    Raises:
        ConfigError: as :func:`resolve`, the policy is not for a real arm, or this version lacks a node of the system.
    """
    values = resolve(system, given)
    simulated = values.get("robot", "sim") == "sim"
    names = ["sim"] * simulated + ["executor"]
    names += [n for n in SYSTEMS[system][2] if n != "recorder" or values["record"]]
    names += ["console"] * (values["console"] == "true")
    names += ["demonstrator"] * bool(values.get("expert"))
    in_file = {name: parameter_file.of_node(values["params_file"], values["namespace"], name) for name in names}
    parameters = {name: {a.name: _typed(a, values[a.name]) for a in arguments(system)
                         if {name, "*"} & set(a.node.split()) and values[a.name]
                         and (given.get(a.name) or a.name not in in_file[name])} for name in names}
    host = values["sim_host"] if simulated else values["robot"]
    armed = simulated if values["arm_on_start"] == "auto" else values["arm_on_start"] == "true"
    parameters["executor"] |= {"host": host}
    # An arm of metal is armed by the argument alone: a file may come from a simulation.
    if given.get("arm_on_start") or not simulated or "arm_on_start" not in in_file["executor"]:
        parameters["executor"]["arm_on_start"] = armed
    if simulated:
        if "realtime_config" not in in_file["executor"]:
            parameters["executor"].setdefault("realtime_config", "ignore")
        parameters["sim"]["host"] = host
        if "publish_clock" not in in_file["sim"]:
            clock = parameters["sim"].get("use_sim_time", in_file["sim"].get("use_sim_time", False))
            parameters["sim"]["publish_clock"] = clock is True
    if "policy" in names:
        if simulated:
            parameters["policy"]["simulated"] = True
        if checkpoint := values["checkpoint"] or in_file["policy"].get("checkpoint"):
            check_folder(str(checkpoint), simulated)
        if values["checkpoint"]:
            shipped.resolve(values["checkpoint"])
            if not values["mode"] and mode_of_folder(values["checkpoint"]) == "sync":
                for name in ("executor", "policy"):
                    parameters[name] |= {} if "mode" in in_file[name] else {"mode": "sync"}
    if values.get("expert"):
        # One port a robot, as there is one address; both sides learn it here.
        port = str(Path(tempfile.gettempdir(), f"gello-{values['sim_host']}"))
        parameters["demonstrator"]["com_port"] = port
        parameters["gello"] |= {"com_port": port, "retry": 0.5}
    elif values.get("gello"):
        parameters["gello"]["emulate"] = "sine"
    for name in names:
        if not (Path(__file__).parent / "nodes" / f"{name}.py").exists():
            raise ConfigError(f"{system}: this version has no node {name!r} yet; see CHANGELOG.md")
    return [Process(name, parameters[name], required=name in REQUIRED, finishes=name in FINISHING,
                    namespace=values["namespace"],
                    params_file=values["params_file"], log_level=values["log_level"],
                    environment=environment(name, simulated))
            for name in names]


def environment(executable: str, simulated: bool) -> dict[str, str]:
    """Variables for a node, without those that the user has set.

    Raw pictures are lost almost whole in Fast DDS' usual shared memory, so their publisher gets a profile with more of
    it. FASTDDS_BUILTIN_TRANSPORTS=LARGE_DATA does that too, but then other nodes without it are not found. What belongs
    to a simulated arm stays on this computer: a real one may listen in the same network.
    """
    found = {"PYTHONUNBUFFERED": "1"}
    variables = profile_variables(os.environ)
    if executable == "sim" and not any(v in os.environ for v in variables):
        found[variables[0]] = str(share("config", "fastdds.xml"))
    if simulated:
        found["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    return {k: v for k, v in found.items() if k not in os.environ}


def describe(system: str) -> str:
    """The launch arguments of `system` for people to read, in the form of `ros2 launch --show-args`; 80 columns."""
    rows = arguments(system)
    lines = [f"{system}: {SYSTEMS[system][0]}", "", "Arguments (pass as name:=value):"]
    for a in rows:
        choices = f" One of: {', '.join(a.choices)}." if a.choices else ""
        said = textwrap.fill(f"{a.doc}.{choices}", 80, initial_indent=" " * 8, subsequent_indent=" " * 8,
                             break_on_hyphens=False)
        lines += ["", f"    '{a.name}':", said, f"        (default: '{a.default}')"]
    return "\n".join(lines)


def parse(words: list[str]) -> dict[str, str]:
    """`["robot:=sim", "rate:=2"]` as a mapping; ConfigError for a word that is no `name:=value`."""
    given = {}
    for word in words:
        name, separator, value = word.partition(":=")
        if not separator or not name:
            raise ConfigError(f"{word!r} is no argument; write name:=value, for instance robot:=sim")
        given[name] = value
    return given


def _typed(argument: Argument, text: str) -> bool | int | float | str:
    """`text` as a value of the argument's type."""
    choices = argument.choices or (("true", "false") if argument.type is bool else ())
    if choices and text not in choices:
        raise ConfigError(f"{argument.name}:={text}: choose one of {', '.join(choices)}")
    if argument.type is bool:
        return text == "true"
    try:
        return argument.type(text)
    except ValueError:
        kind = {int: "a whole number", float: "a number"}[argument.type]
        raise ConfigError(f"{argument.name}:={text}: expected {kind} ({argument.doc})") from None


def yaml_scalar(value: bool | int | float | str) -> str:
    """A parameter value as the YAML scalar of the same type, whatever the text looks like."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    return repr(value)
