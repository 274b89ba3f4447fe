"""The rules of the house: who may import what, and what the package promises before anything runs."""

import ast
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import pytest

import vipra_ros
from vipra_ros import cli

ROOT = Path(vipra_ros.__file__).resolve().parent
REPOSITORY = ROOT.parent
MODULES = sorted(ROOT.rglob("*.py"))
ROS = ("rclpy", "rcl_interfaces", "launch", "launch_ros", "ament_index_python", "std_msgs", "sensor_msgs",
       "std_srvs", "geometry_msgs", "trajectory_msgs", "diagnostic_msgs", "builtin_interfaces",
       "rosgraph_msgs")
#: What a room alone may import.
OWNED = {"franky": "robot", "mujoco": "sim", "franky_sim": "sim"}
HEAVY = ("torch", "mujoco", "av", "franky", "transformers", "numpy", "cv2", "rclpy", "matplotlib", "pyarrow",
         "rich")
#: What `make setup` does not install, and a room imports nevertheless.
LEFT_OUT = ("rerun",)
#: What a room needs at import beside the standard library and vipra_ros itself.
NEEDS = {"control": {"numpy", "ruckig"}, "model": {"numpy", "torch", "transformers"}}


def imports(path: Path, everywhere: bool) -> set[str]:
    """Absolute names imported by a file: at module level only, or in its functions too."""
    tree = ast.parse(path.read_text())
    package = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    found = set()
    for node in ast.walk(tree) if everywhere else _at_import(tree.body):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: -node.level]
                base = ".".join([*parts, base] if base else parts)
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def _at_import(body):
    """The statements run when a module is imported; not those for type checkers."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        for part in ("body", "orelse", "finalbody", "handlers"):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from _at_import(getattr(node, part, []))


def room(path: Path) -> str:
    """First folder below the package, empty for a file at its top."""
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else ""


def within(name: str, *packages: str) -> bool:
    return any(name == p or name.startswith(p + ".") for p in packages)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_keep_to_their_room(path):
    here = room(path)
    for name in imports(path, everywhere=True):
        if here != "nodes":
            assert not within(name, *ROS, "vipra_ros.msg", "vipra_ros.srv"), f"only nodes/ may import {name}"
        owner = OWNED.get(name.split(".")[0])
        assert owner in (None, here), f"only {owner}/ may import {name}"
    at_import = imports(path, everywhere=False)
    if here != "nodes":
        assert not any(within(name, "vipra_ros.nodes") for name in at_import)
    if here in NEEDS:
        outside = {n.split(".")[0] for n in at_import} - set(sys.stdlib_module_names) - {"vipra_ros"}
        assert outside <= NEEDS[here], f"{here}/ needs no more than {NEEDS[here]}"


def test_the_import_check_sees_what_it_should():
    """The checker itself: lazy, relative, conditional imports."""
    path = REPOSITORY / "vipra_ros" / "control" / "chunk.py"
    assert "numpy" in imports(path, everywhere=False)
    text = "def f():\n    import rclpy\ntry:\n    import mujoco\nexcept ImportError:\n    import franky\n"
    found = {n.names[0].name for n in _at_import(ast.parse(text).body) if isinstance(n, ast.Import)}
    assert found == {"mujoco", "franky"}


def test_every_room_but_nodes_imports_without_ros():
    """With ROS blocked, in a fresh interpreter."""
    names = [".".join(p.relative_to(REPOSITORY).with_suffix("").parts) for p in MODULES if room(p) != "nodes"]
    code = f"""
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ROS!r} or name in ("vipra_ros.msg", "vipra_ros.srv"):
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Block())
for name in {[n.removesuffix(".__init__") for n in names]!r}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in {LEFT_OUT!r}:
            raise
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_help_lists_every_command_and_loads_nothing_heavy():
    code = f"""
import sys
from vipra_ros.cli import main
try:
    main(["--help"])
finally:
    print("LOADED", [m for m in {HEAVY!r} if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 0 and "LOADED []" in done.stdout, done.stdout + done.stderr
    listed, words = done.stdout.partition("LOADED")[0], " ".join(done.stdout.split())
    assert max(map(len, listed.splitlines())) <= 80  # as wide as the terminal
    for command in cli.COMMANDS:
        assert re.search(rf"^  {command.name} ", listed, re.MULTILINE) and command.doc in words


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda c: c.name)
def test_examples_parse(command, capsys):
    """Each help carries its example, and each example is a command line that parses."""
    import shlex
    words = shlex.split(command.example)
    assert words[0] == "vipra" and command.example.startswith(f"vipra {command.name}")
    assert cli.parser().parse_args(words[1:]).run is command.run
    with pytest.raises(SystemExit):
        cli.main([*command.name.split(), "--help"])
    assert command.example in capsys.readouterr().out


@pytest.mark.parametrize("words, said", [
    (["up", "policy", "rat:=2"], "unknown argument 'rat'; known: robot, checkpoint"),
    (["up", "polcy"], "no system 'polcy'; known systems: policy"),
    (["up", "sim", "seed=3"], "write name:=value"),
    (["node", "nix"], "no node 'nix'; known nodes: "),
    (["node", "executor", "dry_run:=true"], "'dry_run:=true' has no meaning before --ros-args"),
    (["train", "vq", "a", "b", "--preset", "huge"], "config/learning/huge/vq.yaml"),
    (["eval", "--checkpoint", "models/nowhere"], "models/nowhere"),
])
def test_errors_are_one_line(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    text = capsys.readouterr().err
    assert ended.value.code == 1 and said in text and text.count("\n") == 1 and text.startswith("vipra: ")


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="no system"):
        cli.main(["up", "polcy", "--debug"])


def test_the_tasks_of_the_command_line_are_those_of_the_simulator():
    pytest.importorskip("mujoco")
    from vipra_ros.sim import tasks
    assert tuple(tasks.TASKS) == cli.TASKS


def test_version_and_name_agree():
    package = ElementTree.parse(REPOSITORY / "package.xml").getroot()
    assert package.get("format") == "3" and package.findtext("name") == "vipra_ros"
    assert package.findtext("version") == vipra_ros.__version__
    assert package.findtext("export/build_type") == "ament_cmake"
    assert "Apache License" in (REPOSITORY / "LICENSE").read_text()[:400]


def test_system_packages_are_those_that_are_imported():
    """Of what package.xml takes from the distribution; test/docs looks at its ROS packages."""
    names = {"numpy": "numpy", "yaml": "yaml", "rich": "rich", "opencv": "cv2", "matplotlib": "matplotlib",
             "serial": "serial", "websockets": "websockets", "msgpack": "msgpack"}
    root = ElementTree.parse(REPOSITORY / "package.xml").getroot()
    system = {e.text for e in root.iter("exec_depend") if e.text.startswith("python3-")}
    assert system == {f"python3-{name}" for name in names}
    imported = {name.split(".")[0] for path in MODULES for name in imports(path, everywhere=True)}
    assert set(names.values()) <= imported
    tested = {e.text for e in root.iter("test_depend")}
    assert tested == {"ament_cmake_pytest", "python3-pytest", "python3-pytest-timeout", "python3-hypothesis"}
    files = re.findall(r"ament_add_pytest_test\(\w+ (\S+)", (REPOSITORY / "CMakeLists.txt").read_text())
    assert files and all((REPOSITORY / file).exists() for file in files)


def test_types_are_shipped(tmp_path):
    """PEP 561: checkers read the annotations of an installed copy."""
    words = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and (tmp_path / "vipra_ros" / "py.typed").exists(), done.stderr


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("msg/*.msg")) + sorted(REPOSITORY.glob("srv/*.srv")),
                         ids=lambda p: p.name)
def test_every_field_of_a_message_is_documented(path):
    assert path.relative_to(REPOSITORY).as_posix() in (REPOSITORY / "CMakeLists.txt").read_text()
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith(("#", "---")):
            assert re.search(r"\S\s+# \S", line), f"{path.name}: say what this is, with its unit: {line}"


def test_a_ros_that_is_too_old_is_said_to_be(capsys, monkeypatch):
    """Humble has rclpy, which a shell that sources it puts before ours, and no rclpy.event_handler."""
    monkeypatch.setattr(cli, "parser", lambda: SimpleNamespace(parse_args=lambda argv: SimpleNamespace(run=missing)))

    def missing(a):
        raise ModuleNotFoundError("No module named 'rclpy.event_handler'", name="rclpy.event_handler")

    with pytest.raises(SystemExit):
        cli.main([])
    assert "this ROS 2 is too old (No module named 'rclpy.event_handler'): source Jazzy" in capsys.readouterr().err


def test_messages_that_are_not_built_are_named_with_the_remedy():
    from vipra_ros.cli import _explained

    error = ModuleNotFoundError("No module named 'vipra_ros.msg'", name="vipra_ros.msg")
    assert _explained(error).startswith("messages are not built: make setup, or colcon build")
