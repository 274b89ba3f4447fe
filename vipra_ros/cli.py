"""`vipra`: one thin command per job.

The table COMMANDS is all there is, most of it in cli_data.py, cli_learn.py, cli_policy.py and cli_tools.py: what a
command is called, what it takes, an example, and the function of the room that does it, imported only when it runs.
argparse rather than click or typer: it is in the standard library, and imports in 5 ms where click takes 60 and typer
130 of the 300 that `vipra --help` may take.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from vipra_ros import __version__, cli_data, cli_learn, cli_policy, cli_tools
from vipra_ros.command import CHECKPOINT, TASKS, Command, arg, room, to
from vipra_ros.config import ConfigError

#: What to install when an import fails: module -> extra of setup.py.
EXTRAS = {"franky": "robot", "ruckig": "robot", "dynamixel_sdk": "robot", "mujoco": "sim", "franky_sim": "sim"}
EXTRAS |= dict.fromkeys(("torch", "transformers", "tokenizers", "safetensors"), "train")
EXTRAS |= {"ray": "ray", "onnx": "onnx", "onnxruntime": "onnx", "onnxscript": "onnx"}
EXTRAS |= {"websockets": "serve", "msgpack": "serve", "nicegui": "console", "fastapi": "console", "uvicorn": "console"}
EXTRAS |= {"rerun": "view"}
EXTRAS |= dict.fromkeys(("pyarrow", "av", "cv2", "rosbags", "matplotlib"), "train")
ROS_HINT = "use the .venv of `make setup`, or source a ROS 2 with this package built in it"
BUILD_HINT = "make setup, or colcon build and source install/setup.bash"


def _up(a: argparse.Namespace) -> int:
    from vipra_ros import graph
    if a.show_args:
        print(graph.describe(a.system))
        return 0
    given = graph.parse(a.arguments)
    graph.processes(a.system, given)  # a wrong argument is said before anything starts
    return room("up:up")(a.system, given)


def _node(a: argparse.Namespace) -> None:
    modules = (Path(__file__).parent / "nodes").glob("*.py")
    known = sorted(p.stem for p in modules if "\ndef main(" in p.read_text())
    if a.name not in known:
        raise ConfigError(f"no node {a.name!r}; known nodes: {', '.join(known)}")
    if a.ros_arguments and a.ros_arguments[0] != "--ros-args":  # rclpy passes over them: the arm would move in earnest
        raise ConfigError(f"{a.name}: {a.ros_arguments[0]!r} has no meaning before --ros-args; write "
                          f"vipra node {a.name} --ros-args -p name:=value, and options of vipra before `node`")
    # Until the node takes the signals over, which is after seconds of imports, there is nothing to bring to an end;
    # Python's own answer, a traceback out of a half-imported library, would be reported as a crash.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    room(f"nodes.{a.name}:main")(a.ros_arguments)


def _demo(a: argparse.Namespace) -> int | None:
    return room("demo:run")(room("policy.shipped:resolve")(a.checkpoint), a.task, a.seed, Path(a.out))


def _demo_teleop(a: argparse.Namespace) -> int:
    return room("demo_teleop:run")(a.task, a.seed, a.episodes, Path(a.out))


def _collect(a: argparse.Namespace) -> None:
    tasks = TASKS if a.task == "all" else (a.task,)
    after = room("policy.shipped:resolve")(a.after) if a.after else ""
    count = room("sim.collect:collect")(a.out, tasks, a.episodes, a.seed, a.lane, a.workers, a.cameras.split(","),
                                        after=after, body=a.body)
    for task, (good, new) in count.items():
        print(f"{task}: {good} of {new} new demonstrations successful")


def _convert(a: argparse.Namespace) -> None:
    changes = {"topics": room("data.mapping:load_map")(a.topics)} if a.topics else {}
    changes |= {k: v for k, v in (("action_space", a.actions), ("profile", a.profile)) if v}
    changes |= {"refuse": tuple(a.refuse.split(","))} if a.refuse else {}
    settings = room("data.work:load_settings")(a.settings, **changes)
    room("data.convert:convert")([Path(b) for b in a.bags], Path(a.out), fps=a.fps, resume=a.resume,
                                  workers=a.workers, settings=settings, ray=a.ray)


def _bench_data(a: argparse.Namespace) -> None:
    episodes, lengths = ([kind(v) for v in text.split(",")] for kind, text in ((int, a.episodes), (float, a.lengths)))
    room("data.bench:bench")(a.seconds, episodes, lengths, a.workers, a.seed, a.json)


def _gello_read(a: argparse.Namespace) -> None:
    room("teleop.calibrate:read_main")(a.config, a.port, a.profile, a.arm)


def _gello_calibrate(a: argparse.Namespace) -> None:
    room("teleop.calibrate:calibrate_main")(a.config, a.port, a.profile, a.out, arm=a.arm)


def _gello_emulate(a: argparse.Namespace) -> None:
    room("teleop.emulator:emulate_main")(a.config, a.arm, a.port, a.profile, a.motion, a.seed, a.fault, a.seconds)


GELLO = (
    arg("--config", default="", metavar="FILE", help="YAML file of the leader arm; default: config/gello.yaml"),
    arg("--arm", default="", help="section of that file, when it describes several"),
    arg("--port", default="", help="serial port; default: that of the file"),
    arg("--profile", default="fr3", help="robot profile of the follower (%(default)s)"),
)
COMMANDS = (
    Command("demo", "Run", "A trained policy does three tasks it is told in words, on the simulated arm.",
            "vipra demo --task push --seed 7",
            (CHECKPOINT, arg("--task", default="reach", choices=TASKS, help="the first of the three (%(default)s)"),
             arg("--seed", type=int, default=1005, help="random start of the scene (%(default)s)"),
             arg("--out", default="out/demo", metavar="DIR", help="for video, plot (%(default)s)")), _demo),
    Command("demo-teleop", "Run", "Emulated GELLO to simulated arm, bags, data set and replay, in one go.",
            "vipra demo-teleop --task reach push",
            (arg("--task", nargs="+", default=["reach", "push"], choices=TASKS, help="tasks (reach push)"),
             arg("--seed", type=int, default=1000, help="scene of the first demonstration (%(default)s)"),
             arg("--episodes", type=int, default=1, metavar="N", help="per task (%(default)s)"),
             arg("--out", default="out/demo-teleop", metavar="DIR",
                 help="for bags, data set, logs (%(default)s, where an earlier run is replaced)")), _demo_teleop),
    Command("up", "Run", "Start the nodes of a system: policy, teleop, sim or replay.",
            "vipra up policy robot:=sim task:=lift instruction:='lift the red cube'",
            (arg("system", help="policy, teleop, sim or replay"),
             arg("arguments", nargs="*", metavar="name:=value", help="launch arguments, as for ros2 launch"),
             arg("--show-args", action="store_true", help="list the launch arguments and stop")), _up),
    Command("call", "Run", "Ask the running executor: home, arm, hold, stop, recover or reset.",
            "vipra call arm",
            (arg("name", choices=("home", "arm", "hold", "stop", "recover", "reset"), metavar="SERVICE",
                 help="home, arm, hold, stop, recover or reset"),
             arg("--namespace", default="", metavar="NAME", help="namespace of the executor")), to("nodes.call:call")),
    Command("node", "Run", "Run one node in this terminal.",
            "vipra node executor --ros-args -p host:=127.0.0.8 -p realtime_config:=ignore",
            (arg("name", help="executor, policy, sim, ..."),
             arg("ros_arguments", nargs=argparse.REMAINDER, metavar="...", help="--ros-args and so on")),
            _node),
    Command("gello read", "Run", "Show where the joints of the GELLO leader arm are.",
            "vipra gello read --port /dev/ttyUSB0", GELLO, _gello_read),
    Command("gello calibrate", "Run", "Find signs, offsets and gripper range of the leader arm step by step.",
            "vipra gello calibrate gello.yaml --port /dev/ttyUSB0",
            (arg("out", metavar="OUT", help="YAML file to write"), *GELLO), _gello_calibrate),
    Command("gello emulate", "Run", "Servos without an arm, at a serial port that any GELLO driver may open.",
            "vipra gello emulate --motion sine --fault '10 unplug' --fault '13 plug'",
            (arg("--motion", default="sine", metavar="M",
                 help="home, sine, a YAML script, a bag, or the expert's reach, push, lift (%(default)s)"),
             arg("--seed", type=int, default=1000, help="scene of the expert (%(default)s)"),
             arg("--fault", action="append", default=[], metavar="'[S] WORDS'",
                 help="after S seconds: missing N, spoilt N, overheated N, garbage, unplug, ...; repeatable"),
             arg("--seconds", type=float, default=0.0, help="end after this time; 0: at Ctrl-C"),
             arg("--port", default="", help="path at which the port is to appear; default: a new one"),
             arg("--config", default="", metavar="FILE", help="YAML file of the leader arm to be"),
             arg("--arm", default="", help="section of that file, when it describes several"),
             arg("--profile", default="fr3", help="robot profile of the follower (%(default)s)")),
            _gello_emulate),
    Command("collect", "Data", "Record scripted demonstrations in simulation as rosbag2 episodes.",
            "vipra collect --expert --task all --episodes 100 --seed 0 out/bags",
            (arg("out", metavar="OUT", help="folder for the episodes; what is there already is kept"),
             arg("--expert", action="store_true", required=True, help="the scripted expert acts"),
             arg("--task", default="all", choices=(*TASKS, "all"), help="task (%(default)s)"),
             arg("--episodes", type=int, default=100, metavar="N", help="per task (%(default)s)"),
             arg("--seed", type=int, default=0, help="seed of the first episode (%(default)s)"),
             arg("--lane", default="lockstep", choices=("lockstep", "fci"),
                 help="lockstep: faster than real time; fci: through franky and the simulated controller"),
             arg("--cameras", default="front,wrist", metavar="A,B", help="cameras recorded (%(default)s)"),
             arg("--after", default="", metavar="CHECKPOINT",
                 help="this policy acts first and the expert takes over from wherever it has got to"),
             arg("--body", default="robot", choices=("robot", "hand"),
                 help="hand: draw a free-floating hand in place of the arm, for videos of another body"),
             arg("--workers", type=int, default=1, metavar="N", help="processes (%(default)s)")), _collect),
    *cli_data.RECORDING,
    Command("convert", "Data", "Make a LeRobot data set from recorded episodes.",
            "vipra convert out/bags out/dataset --fps 15",
            (arg("bags", nargs="+", metavar="BAGS", help="rosbag2 episodes, or folders of them"),
             arg("out", metavar="OUT", help="folder of the data set"),
             arg("--fps", type=float, help="rate of the data set, Hz (15, or that of --settings)"),
             arg("--topics", default="", metavar="MAP", help="what is what in foreign bags: YAML file, or a name in "
                 "config/topics"),
             arg("--actions", choices=("joint_position", "joint_delta", "ee_delta"), help="meaning of the action "
                 "columns (joint_position)"),
             arg("--profile", default="", help="robot profile, for ee_delta (fr3)"),
             arg("--refuse", default="", metavar="A,B", help="findings that leave an episode out, e.g. frozen,jump"),
             arg("--ray", default="", metavar="ADDRESS", help="work on this Ray cluster (auto, HOST:PORT, local)"),
             arg("--settings", default="", metavar="FILE", help="YAML of all settings; config/convert.yaml explains"),
             arg("--resume", action="store_true", help="go on where an interrupted conversion stopped"),
             arg("--workers", type=int, default=1, metavar="N", help="processes (%(default)s)")), _convert),
    Command("bench data", "Data", "Measure speed and memory of the conversion on this machine.",
            "vipra bench data --workers 2 --json out/bench_data.json",
            (arg("--seconds", type=float, default=20.0, help="length of an episode, s (%(default)s)"),
             arg("--episodes", default="10,40", metavar="N,N", help="measured with so many (%(default)s)"),
             arg("--lengths", default="20,120", metavar="S,S", help="bags whose memory is measured, s (%(default)s)"),
             arg("--workers", type=int, default=2, metavar="N", help="processes (%(default)s)"),
             arg("--seed", type=int, default=0, help="of the pictures (%(default)s)"),
             arg("--json", metavar="FILE", help="write the figures here")), _bench_data),
    *cli_data.DATASETS,
    *cli_learn.LEARNING,
    *cli_policy.POLICY,
    *cli_tools.TOOLS,
)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    common = dict(formatter_class=argparse.RawDescriptionHelpFormatter, parents=[debug])

    # As wide as the terminal, as argparse writes the options; a line the terminal breaks hides where a name begins.
    width = max(50, shutil.get_terminal_size().columns - 2)

    def listing(commands: Sequence[Command]) -> str:
        return "\n".join(textwrap.fill(c.doc, width, initial_indent=f"  {c.name:15} ", subsequent_indent=" " * 18)
                         for c in commands)

    groups = "\n\n".join(f"{group}:\n" + listing([c for c in COMMANDS if c.group == group])
                         for group in dict.fromkeys(c.group for c in COMMANDS))
    text = f"Robot policies pretrained on video, driving a Franka arm.\n\n{groups}"
    top = argparse.ArgumentParser("vipra", usage="vipra COMMAND ... [--debug]", description=text, **common,
                                  epilog="vipra COMMAND --help says more.  Not safety-rated: see README.md.")
    top.add_argument("--version", action="version", version=f"vipra_ros {__version__}")
    levels = {"": top.add_subparsers(metavar="COMMAND", help=argparse.SUPPRESS, required=True)}
    for c in COMMANDS:
        parent, _, name = c.name.rpartition(" ")
        if parent not in levels:
            own = [d for d in COMMANDS if d.name.startswith(parent + " ")]
            middle = levels[""].add_parser(parent, prog=f"vipra {parent}", usage=f"vipra {parent} JOB ...",
                                           description=listing(own), **common)
            levels[parent] = middle.add_subparsers(metavar="JOB", help=argparse.SUPPRESS, required=True)
        sub = levels[parent].add_parser(name, prog=f"vipra {c.name}", description=c.doc, **common,
                                        epilog=f"example:\n  {c.example}")
        for flags, keywords in c.arguments:
            sub.add_argument(*flags, **keywords)
        sub.set_defaults(run=c.run)
    return top


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; an error is one line with its remedy, with --debug the traceback."""
    a = parser().parse_args(argv)
    try:
        status = a.run(a)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `vipra ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        if getattr(a, "debug", False):
            raise
        print(f"vipra: {_explained(error)}", file=sys.stderr)
        sys.exit(1)
    sys.exit(status)


def node(name: str) -> None:
    """Entry of the programs in lib/vipra_ros: the node `name` with the ROS arguments of this process."""
    main(["node", name, *sys.argv[1:]])


def _explained(error: Exception) -> str:
    """One line: our own errors carry their remedy, others get a hint."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ImportError):
        package, _, module = (error.name or "").partition(".")
        if package in EXTRAS:
            return f"{package} is not installed; type in the checkout: pip install '.[{EXTRAS[package]}]'"
        if error.name in ("vipra_ros.msg", "vipra_ros.srv"):
            return f"messages are not built: {BUILD_HINT}"
        if package == "rclpy" and module:
            return f"this ROS 2 is too old ({text}): source Jazzy or Kilted, or none and {ROS_HINT}"
        if package in ("rclpy", "rcl_interfaces") or package.endswith("_msgs") or "rclpy" in text:
            return f"ROS 2 is not to be found ({text}); {ROS_HINT}"
    if type(error).__module__.startswith("vipra_ros"):
        return text
    return f"{type(error).__name__}: {text} (vipra --debug ... shows where)"


if __name__ == "__main__":
    main()
