"""What the pages say exists: links, commands and their options, YAML, quoted messages. And the site builds."""

import ast
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
import yaml

from vipra_ros import cli, graph

sys.path.insert(0, __file__.rpartition("/")[0])
from pages import BESIDE, DOCS, PAGES, ROOT, anchors, blocks, commands, links

NAME = {p: p.relative_to(ROOT).as_posix() for p in [*PAGES, *BESIDE]}


@pytest.mark.parametrize("page", PAGES, ids=NAME.get)
def test_links_resolve_inside_docs(page):
    for target in links(page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        other = (page.parent / file).resolve() if file else page
        assert other.is_file() and other.is_relative_to(DOCS), f"{target} leads nowhere in docs"
        assert not anchor or anchor in anchors(other.read_text()), f"{target}: no such heading"


@pytest.mark.parametrize("page", [*PAGES, *BESIDE], ids=NAME.get)
def test_commands_and_their_options_exist(page, capsys):
    for words in commands(page.read_text()):
        try:
            CHECKS[words[0]](words[1:])
        except SystemExit as error:
            assert error.code == 0, f"{' '.join(words)}: {capsys.readouterr().err.strip().splitlines()[-1]}"
        except (ValueError, AssertionError) as error:
            raise AssertionError(f"{' '.join(words)}: {error}") from None


def check_vipra(words):
    if words == ["COMMAND", "--help"]:
        return
    a = cli.parser().parse_args(words)
    if words[0] == "up" or words[:2] == ["config", "dump"]:
        check_arguments(a.system, a.arguments)
    if words[:2] == ["dataset", "replay"]:
        check_arguments("replay", [w for w in a.episode if ":=" in w])
    if words[0] == "node":
        assert (ROOT / "vipra_ros" / "nodes" / f"{a.name}.py").exists()


#: Arguments that name files of the reader's.
FILES = ("params_file", "gello_config")


def check_arguments(system, given):
    """Names and values of launch arguments; that files exist is not asked for."""
    values = {k: v for k, v in graph.parse([w for w in given if w != "..."]).items() if k not in FILES}
    if system == "replay":
        values.setdefault("bag", "out/bags")
    graph.resolve(system, values)


def check_make(words):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for word in words:
        assert "=" in word or word in targets, f"no target {word}"


def check_ros2(words):
    if words[:2] == ["launch", "vipra_ros"]:
        system, _, ending = words[2].partition(".")
        assert ending == "launch.py"
        check_arguments(system, [w for w in words[3:] if w != "--show-args"])
    elif words[:2] in (["service", "call"], ["topic", "echo"], ["topic", "hz"], ["topic", "pub"]):
        name = next(w for w in words[2:] if not w.startswith("-")).lstrip("/")
        assert f"`{name}`" in (DOCS / "reference" / "topics.md").read_text(), f"no topic or service {name}"
    else:
        assert words[0] in ("security", "bag", "run", "param", "node", "daemon")


CHECKS = {"vipra": check_vipra, "make": check_make, "ros2": check_ros2}


@pytest.mark.parametrize("words", [
    ["convert", "a", "b", "--fsp", "15"], ["up", "policy", "robt:=sim"], ["train", "vq", "a"], ["node", "nix"]])
def test_the_command_check_sees_mistakes(words, capsys):
    with pytest.raises((SystemExit, ValueError, AssertionError)):
        check_vipra(words)


@pytest.mark.parametrize("page", PAGES, ids=NAME.get)
def test_yaml_parses_and_names_parameters_that_exist(page):
    known = (DOCS / "reference" / "parameters.md").read_text()
    for language, content in blocks(page.read_text()):
        if language != "yaml":
            continue
        value = yaml.safe_load(content)
        assert isinstance(value, dict)
        for section, table in value.items():
            if isinstance(table, dict) and "ros__parameters" in table:
                node = section.rpartition("/")[2]
                part = known.split(f"\n## {node}\n")[1].split("\n## ")[0]
                for name in table["ros__parameters"]:
                    assert f"| `{name}` |" in part, f"{node} has no parameter {name}"


def test_python_blocks_parse():
    for page in PAGES:
        for language, content in blocks(page.read_text()):
            if language == "python":
                ast.parse(content)


def test_messages_are_quoted_as_they_are():
    """Each `message ...` of troubleshooting's tables occurs in a text of the source, with something for each `...`."""
    texts = []
    for path in [*(ROOT / "vipra_ros").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(v.value if isinstance(v, ast.Constant) else "\0" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    quoted = []
    for part in (DOCS / "troubleshooting.md").read_text().split("| it says |")[1:]:
        quoted += re.findall(r"^\| `([^`]+)` \|", part.split("\n\n")[0], re.M)
    others = {"joint_motion_generator_velocity_discontinuity", "communication_constraints_violation",
              "Motion planner failed", "ros2: command not found"}  # of the robot, of the shell
    assert len(quoted) > 40
    for quote in set(quoted) - others:
        pattern = re.compile(".*?".join(map(re.escape, quote.split("..."))), re.S)
        assert any(pattern.search(text) for text in texts), f"no message of ours: {quote}"


def test_howto_pages_are_short_and_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        name = page.relative_to(DOCS).as_posix()
        assert f": {name}\n" in menu, f"{name} is not in the nav of mkdocs.yml"
        assert not name.startswith("howto/") or len(page.read_text().splitlines()) < 80


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "tutorial.html").read_text()
    assert "vipra gello calibrate" in page
    assert not re.findall(r'(?:src|rel="stylesheet" href)="https?://', page), "the pages fetch something"


def test_rosdep_keys_are_those_of_packages_that_exist():
    """Every dependency of package.xml is a ROS package of ours to need, or a Debian one with a rosdep rule."""
    root = ElementTree.parse(ROOT / "package.xml").getroot()
    keys = {e.text for e in root if e.tag.endswith("depend")}
    pinned = (ROOT / "requirements" / "ros.txt").read_text() + (ROOT / "requirements" / "lock.txt").read_text()
    debian = {f"python3-{name}" for name in ("numpy", "yaml", "rich", "opencv", "matplotlib", "serial", "websockets",
              "msgpack", "pytest", "pytest-timeout", "hypothesis")}  # rosdistro, rosdep/python.yaml
    not_on_pypi = {"launch", "launch_ros", "ament_index_python"}  # packages of every ROS distribution
    for key in keys - debian - not_on_pypi:
        assert f"ros-{key.replace('_', '-')}" in pinned, f"{key}: neither pinned for make setup nor a system package"
    imported = set()
    for path in [*(ROOT / "vipra_ros" / "nodes").glob("*.py"), *(ROOT / "launch").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    others = ("std_srvs", "rcl_interfaces", "builtin_interfaces", "rclpy", "launch", "launch_ros")
    messages = {n for n in imported if n.endswith("_msgs") or n in others}
    assert messages <= keys, f"package.xml lacks {sorted(messages - keys)}"


def test_citation_agrees_with_the_package():
    import vipra_ros
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == vipra_ros.__version__ and cited["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
