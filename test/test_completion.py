"""Completion scripts in the shells themselves."""

import shutil
import subprocess

import pytest

from vipra_ros import completion
from vipra_ros.cli import COMMANDS


def bash(script, *line):
    """What bash offers at the end of `line`."""
    asked = " ".join(f"'{w}'" for w in line)
    code = f"{script}\nCOMP_WORDS=({asked}); COMP_CWORD={len(line) - 1}; _vipra 2>/dev/null; " \
           'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def script():
    if not shutil.which("bash"):
        pytest.skip("no bash")
    return completion.bash(COMMANDS)


def test_first_and_second_words(script):
    assert set(bash(script, "vipra", "")) == set(completion.tree(COMMANDS)) | {"--help", "--version"}
    assert "doctor" in bash(script, "vipra", "doc")
    assert bash(script, "vipra", "bags", "re") == ["repair", "relabel"]


def test_options_and_their_values(script):
    assert bash(script, "vipra", "eval", "--ta") == ["--task"]
    assert bash(script, "vipra", "eval", "--task", "") == ["reach", "push", "lift", "all"]
    assert bash(script, "vipra", "bags", "relabel", "--success", "y") == ["yes"]
    assert bash(script, "vipra", "convert", "--settings", "x") == []  # a file: bash's own completion
    assert bash(script, "vipra", "completion", "f") == ["fish"]


def test_every_option_of_every_command(script):
    for command in COMMANDS:
        offered = bash(script, "vipra", *command.name.split(), "--")
        assert offered == list(completion.options(command)), command.name


def test_launch_arguments(script):
    assert bash(script, "vipra", "up", "tel") == ["teleop"]
    assert "checkpoint:=" in bash(script, "vipra", "up", "policy", "ch")


def test_bash_registers_it(script):
    code = f"{script}\ncomplete -p vipra"
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "complete -o default -F _vipra vipra"


def test_fish_shows_no_placeholders():
    assert "%(" not in completion.fish(COMMANDS)


def test_fish():
    if not shutil.which("fish"):
        pytest.skip("no fish")

    def offered(line):
        code = completion.fish(COMMANDS) + f"\ncomplete -C '{line}'"
        done = subprocess.run(["fish", "--no-config", "-c", code], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return [row.split("\t")[0] for row in done.stdout.splitlines()]
    assert set(offered("vipra ")) >= set(completion.tree(COMMANDS))
    assert sorted(offered("vipra bags re")) == ["relabel", "repair"]
    assert offered("vipra eval --task re") == ["reach"] and "--episodes" in offered("vipra eval --ep")


def test_zsh():
    if not shutil.which("zsh"):
        pytest.skip("no zsh")
    done = subprocess.run(["zsh", "-f", "-c", completion.zsh(COMMANDS) + "\nprint -r -- $_comps[vipra]"],
                          capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and "_vipra" in done.stdout, done.stderr
