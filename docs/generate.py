"""Write docs/reference/*.md from the code: parameters, topics, messages, command line.

`make reference` runs it; a test compares the committed pages with what it would write now. Parameters and commands
are read from their tables, topics from the calls that make publishers, subscriptions and services.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from vipra_ros.data.topics import Topics

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "reference"
MADE = "<!-- Written by docs/generate.py (make reference); do not edit. -->\n"

#: Nodes of the systems, in the order of the page; other modules of nodes/ are tools that listen to the same topics.
NODES = ("policy", "executor", "gello", "recorder", "replay", "demonstrator", "console", "sim", "trial_buttons")
#: A module that is no node of its own -> who has it.
OWNERS = {"trial_buttons": "`vipra rollouts`"}
#: What a topic or service means; the page is not written while one has no entry here.
MEANING = {
    "/clock": "simulation time, with `publish_clock`",
    "camera/<camera>/camera_info": "size and lens of a camera",
    "camera/<camera>/image_raw": "raw picture",
    "camera/<camera>/image_raw/compressed": "JPEG or PNG picture: the policy's input",
    "executor/deadman": "held: true, again and again; with `deadman_timeout` above 0",
    "executor/gripper_command": "+1 open, -1 closed",
    "executor/joint_command": "the limited command, as sent",
    "executor/preview": "dry run: what would have been sent",
    "executor/status": "state, reasons, ages, rates, counters",
    "gello/joint_states": "leader arm, in the follower's joints",
    "gello/status": "JSON: state, text, read rate, lag of the follower",
    "gripper/gripper_client/target_gripper_width_percent": "leader's trigger, 0 closed .. 1 open",
    "joint_states": "measured arm and finger",
    "policy/chunk": "rows to execute, the rest to look at",
    "policy/instruction": "what to do, in words",
    "policy/status": "what the policy sees, how fast it answers, why it waits",
    "recorder/relabel": "another instruction for the episode under way, or the last one",
    "recorder/status": "JSON: state, episode, counts",
    "rollouts/status": "JSON: the trial of `vipra rollouts` under way, what it asks, which buttons count",
    "sim/outcome": "JSON: task, colour, success",
    "executor/arm": "let the next acceptable chunk start a motion",
    "executor/stop": "limited stop, then IDLE",
    "executor/hold": "limited stop, then HOLD under control",
    "executor/home": "drive to the profile's home pose",
    "executor/recover": "leave FAULT, from the measured pose",
    "executor/reset": "forget rows, lease and chunks in flight; IDLE",
    "recorder/start": "begin an episode",
    "recorder/success": "end it, labelled as a success",
    "recorder/failure": "end it, labelled as a failure",
    "recorder/discard": "throw it away",
    "rollouts/start": "Enter at `vipra rollouts`: the arm goes home, the trial begins",
    "rollouts/success": "label the trial under way as a success",
    "rollouts/failure": "label it as a failure",
    "rollouts/invalid": "it does not count and is done again",
    "sim/reset": "lay the cubes out for another start",
}
#: create_* and the nodes' own helpers around them -> (what, place of type, of topic, of quality).
CALLS = {
    "create_publisher": ("publishes", 0, 1, 2),
    "make": ("publishes", 0, 1, 2),
    "create_subscription": ("subscribes", 0, 1, 3),
    "_subscribe": ("subscribes", 0, 1, 2),
    "hear": ("subscribes", 0, 1, 3),
    "create_service": ("serves", 0, 1, None),
}


# --- parameters ------------------------------------------------------------------------------------------------------


def parameters() -> str:
    """Every parameter of every node, from the dataclasses that declare them."""
    from vipra_ros.nodes.config_dump import TABLES
    from vipra_ros.nodes.parameters import _limits, _rows

    lines = [MADE, "# Parameters\n", "`vipra config dump SYSTEM` prints those in force with the origin of each value.",
             "All are read-only while a node runs.\n"]
    for node, paths in TABLES.items():
        lines += [f"## {node}\n", "| parameter | default | unit | range | meaning |", "|---|---|---|---|---|"]
        for path in paths:
            module, _, table = path.partition(":")
            for row in _rows(getattr(import_module(f"vipra_ros.{module}"), table), ""):
                required = row.default is dataclasses.MISSING
                meta = row.field.metadata
                default = "required" if required else f"`{_yaml(row.default)}`"
                limits = _limits(row.field).removeprefix("must be ")
                lines.append(_row(f"`{row.name}`", default, meta.get("unit", ""), limits, meta.get("doc", "")))
        lines.append("")
    return "\n".join(lines)


def _yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_yaml(v) for v in value) + "]"
    return '""' if value == "" else str(value)


def _row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(c.split()).replace("|", "\\|") for c in cells) + " |"


# --- topics and services ---------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Endpoint:
    """One publisher, subscription or service of a node."""

    node: str
    what: str
    kind: str
    topic: str
    quality: str


class Module:
    """The source of one node, and what its expressions may stand for."""

    def __init__(self, node: str):
        self.node = node
        self.tree = ast.parse((ROOT / "vipra_ros" / "nodes" / f"{node}.py").read_text())
        self.types, self.constants = {}, {}
        for statement in ast.walk(self.tree):
            if isinstance(statement, ast.ImportFrom) and (statement.module or "").endswith((".msg", ".srv")):
                package = statement.module.rpartition(".")[0]
                self.types |= {a.asname or a.name: f"{package}/{a.name}" for a in statement.names}
        shared = ast.parse((ROOT / "vipra_ros" / "nodes" / "quality.py").read_text())
        for statement in (*shared.body, *self.tree.body):
            if isinstance(statement, ast.Assign):
                self.constants |= _bindings(statement)

    def endpoints(self) -> list[Endpoint]:
        """Everything that the functions of the node make, a topic of several names once each."""
        found = []
        for function in ast.walk(self.tree):
            if isinstance(function, ast.FunctionDef):
                found += self._inside(function)
        return found

    def _inside(self, function: ast.FunctionDef) -> list[Endpoint]:
        local, found = {}, []
        own = list(_own(function))
        for n in own:
            if isinstance(n, ast.Assign):
                local |= _bindings(n)
            elif isinstance(n, ast.For):
                local |= _loop(n)
        for n in own:
            name = getattr(getattr(n, "func", None), "attr", getattr(getattr(n, "func", None), "id", ""))
            if not isinstance(n, ast.Call) or name not in CALLS:
                continue
            what, kind, topic, quality = CALLS[name]
            topics = self._texts(n.args[topic], local)
            kinds = self._kinds(n.args[kind], local)
            if len(kinds) == 1:
                kinds *= len(topics)
            how = self._quality(n.args[quality]) if quality is not None else ""
            found += [Endpoint(self.node, what, k, t, how) for k, t in zip(kinds, topics)]
        return found

    def _texts(self, e: ast.expr, local: dict) -> list[str]:
        """The texts an expression may be; none when it depends on what the function is given."""
        if isinstance(e, ast.Constant):
            return [e.value] if isinstance(e.value, str) else []
        if isinstance(e, ast.JoinedStr):
            made = [""]
            for part in e.values:
                if isinstance(part, ast.Constant):
                    made = [m + part.value for m in made]
                else:
                    name = ast.unparse(part.value)
                    made = [m + x for x in self._texts(part.value, local) or [f"<{name}>"] for m in made]
            return made
        if isinstance(e, ast.IfExp):
            return self._texts(e.body, local) + self._texts(e.orelse, local)
        if isinstance(e, ast.Call) and getattr(e.func, "attr", "") == "get":  # a table with a fallback
            return self._texts(e.args[1], local)
        if isinstance(e, ast.Call) and getattr(e.func, "attr", "") == "image_of":
            return [Topics().image_of("<camera>")]
        if isinstance(e, ast.Name) and e.id in local:
            return [t for value in local[e.id] for t in self._texts(value, local)]
        return []

    def _kinds(self, e: ast.expr, local: dict) -> list[str]:
        values = local.get(e.id, [e]) if isinstance(e, ast.Name) else [e]
        return [self.types.get(getattr(v, "id", ""), ast.unparse(v)) for v in values]

    def _quality(self, e: ast.expr) -> str:
        if isinstance(e, ast.Name) and e.id in self.constants:
            e = self.constants[e.id][0]
        text = ast.unparse(e)
        if "sensor_data" in text or "BEST_EFFORT" in text:
            return "best effort"
        return "latched" if "TRANSIENT_LOCAL" in text else "reliable"


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """What a function holds, but not what functions inside it do: they are looked at by themselves."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef):
            yield child
            yield from _own(child)


def _bindings(statement: ast.Assign) -> dict[str, list[ast.expr]]:
    """name -> the expressions it may stand for, of an assignment to names or to a tuple of names."""
    target, value = statement.targets[0], statement.value
    if isinstance(target, ast.Name):
        return {target.id: [value]}
    if not isinstance(target, ast.Tuple):
        return {}
    choices = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
    if not all(isinstance(c, ast.Tuple) and len(c.elts) == len(target.elts) for c in choices):
        return {}
    return {t.id: [c.elts[k] for c in choices] for k, t in enumerate(target.elts) if isinstance(t, ast.Name)}


def _loop(statement: ast.For) -> dict[str, list[ast.expr]]:
    """The same of a loop over a tuple of constants, or of tuples that begin with one."""
    if not isinstance(statement.iter, ast.Tuple):
        return {}
    target, items = statement.target, statement.iter.elts
    if isinstance(target, ast.Name):
        return {target.id: items}
    return {target.elts[0].id: [i.elts[0] for i in items]}


def endpoints() -> list[Endpoint]:
    """Of all nodes; what the recorder listens to comes from its parameters and is not in it."""
    return [e for node in NODES for e in Module(node).endpoints()]


def topics() -> str:
    """Topics and services with type, quality of service, and who is at which end."""
    table, services = defaultdict(lambda: defaultdict(set)), {}
    for e in endpoints():
        if e.topic not in MEANING:
            raise SystemExit(f"nodes/{e.node}.py: {e.topic} is new; say what it means in MEANING of docs/generate.py")
        if e.what == "serves":
            services[e.topic] = e
        else:
            table[e.topic][e.what].add((OWNERS.get(e.node, e.node), e.quality))
            table[e.topic]["kind"].add(e.kind)
    gone = sorted(set(MEANING) - set(table) - set(services))
    if gone:
        raise SystemExit(f"no node has {gone[0]} any more; take it out of MEANING of docs/generate.py")
    lines = [MADE, "# Topics and services\n",
             "All names but `/clock` are relative: a namespace goes in front. QoS is that of the publishers; "
             "*latched* is reliable and transient local, *best effort* is the sensor profile. The recorder subscribes "
             "to all of the first table, and to those of its parameter `topics`. With `sink: trajectory` the executor "
             "publishes trajectories on its parameter `trajectory_topic` and reads `trajectory_states`.\n",
             "## Topics\n", "| topic | type | published by | subscribed by | QoS | what |", "|---|---|---|---|---|---|"]
    for topic in sorted(table):
        ends = table[topic]
        by, to = ({n for n, _ in ends[w]} for w in ("publishes", "subscribes"))
        quality = {q for _, q in ends["publishes"]} or {q for _, q in ends["subscribes"]}
        camera = topic.startswith("camera/")
        lines.append(_row(f"`{topic}`", ", ".join(sorted(ends["kind"])),
                          ", ".join(sorted(by) + ["your camera driver"] * camera) or "you",
                          ", ".join(sorted(to)), ", ".join(sorted(quality)), MEANING[topic]))
    lines += ["\n## Services\n", "| service | type | node | what |", "|---|---|---|---|"]
    lines += [_row(f"`{s.topic}`", s.kind, OWNERS.get(s.node, s.node), MEANING[s.topic]) for s in services.values()]
    return "\n".join(lines) + "\n"


# --- messages --------------------------------------------------------------------------------------------------------


def messages() -> str:
    """The .msg and .srv files, whose comments document every field."""
    lines = [MADE, "# Messages\n"]
    for path in sorted((ROOT / "msg").glob("*.msg")) + sorted((ROOT / "srv").glob("*.srv")):
        lines += [f"## {path.stem}\n", "```", path.read_text().rstrip(), "```\n"]
    return "\n".join(lines)


# --- command line ----------------------------------------------------------------------------------------------------


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Each command's own parser by its name, `dataset show` and so on."""
    from vipra_ros import cli

    found = {}
    for command in cli.COMMANDS:
        here = cli.parser()
        for word in command.name.split():
            here = next(a for a in here._actions if isinstance(a, argparse._SubParsersAction)).choices[word]
        found[command.name] = here
    return found


def command_line() -> str:
    """Every command with its options, and the launch arguments of every system."""
    from vipra_ros import cli, graph

    every = parsers()
    lines = [MADE, "# Command line\n", "`vipra COMMAND --help` says the same; every command takes `--debug`, which "
             "shows tracebacks. Errors are one line, exit status 1.\n"]
    for group in dict.fromkeys(c.group for c in cli.COMMANDS):
        lines.append(f"## {group}\n")
        for c in (c for c in cli.COMMANDS if c.group == group):
            lines += [f"### vipra {c.name}\n", c.doc + "\n", "```bash", c.example, "```\n"]
            rows = [_argument(a) for a in every[c.name]._actions if a.dest not in ("help", "debug")]
            lines += ["| argument | meaning |", "|---|---|", *rows, ""] if rows else []
    lines += ["## Launch arguments\n", "Of `vipra up SYSTEM name:=value` and `ros2 launch vipra_ros SYSTEM.launch.py "
              "name:=value`. An empty default leaves the choice to the node or to `params_file`.\n"]
    for system, (doc, _, _) in graph.SYSTEMS.items():
        lines += [f"### {system}\n", doc + "\n", "| argument | default | meaning |", "|---|---|---|"]
        for a in graph.arguments(system):
            choices = f" ({', '.join(a.choices)})" if a.choices else ""
            lines.append(_row(f"`{a.name}`", f"`{a.default}`" if a.default else "", a.doc + choices))
        lines.append("")
    return "\n".join(lines)


def _argument(a: argparse.Action) -> str:
    name = ", ".join(f"`{o}`" for o in a.option_strings)
    places = a.metavar if isinstance(a.metavar, tuple) else (a.metavar or a.dest.upper(),)
    value = "" if a.nargs == 0 else f" {'' if name else '`'}{' '.join(places)}{'' if name else '`'}"
    default = {**vars(a), "prog": "vipra"}
    choices = f" One of {', '.join(map(str, a.choices))}." if a.choices else ""
    return _row((name + value).strip(), ((a.help or "") % default) + "." * bool(choices) + choices)


PAGES = {"parameters.md": parameters, "topics.md": topics, "messages.md": messages, "command_line.md": command_line}


def main(names: list[str]) -> None:
    """Write the pages named, or all."""
    OUT.mkdir(parents=True, exist_ok=True)
    for name in names or PAGES:
        (OUT / name).write_text(PAGES[name]())
        print(f"docs/reference/{name}")


if __name__ == "__main__":
    main(sys.argv[1:])
