"""`vipra completion SHELL`: the completion script of a shell, written from the table of commands.

A static script: pressing TAB starts no Python. bash gets `complete -F`, zsh reads the same function through its
bashcompinit, fish gets one `complete` line a word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vipra_ros.command import Command

SHELLS = ("bash", "zsh", "fish")
#: Options that every command has.
COMMON = ("--help", "--debug")


def tree(commands: Sequence[Command]) -> dict[str, list[str]]:
    """First words and the second words they take: {"eval": [], "bags": ["info", ...]}."""
    words: dict[str, list[str]] = {}
    for c in commands:
        first, _, second = c.name.partition(" ")
        words.setdefault(first, []).extend([second] * bool(second))
    return words


def options(command: Command) -> dict[str, tuple[str, ...] | None]:
    """Long options: the words their value is chosen from, () for any value or a file, None when they take none."""
    found = {}
    for flags, keywords in command.arguments:
        if flags[0].startswith("-"):
            takes = keywords.get("action") not in ("store_true", "store_false")
            found[flags[-1]] = tuple(map(str, keywords.get("choices") or ())) if takes else None
    return found | dict.fromkeys(COMMON)


def words(command: Command) -> tuple[str, ...]:
    """What may stand at the places of a command that are no options, as far as the table or the graph knows."""
    if command.name in ("up", "config dump"):
        from vipra_ros import graph
        names = dict.fromkeys(a.name + ":=" for s in graph.SYSTEMS for a in graph.arguments(s))
        return (*graph.SYSTEMS, *names)
    places = [keywords for flags, keywords in command.arguments if not flags[0].startswith("-")]
    return tuple(str(word) for keywords in places for word in keywords.get("choices") or ())


def bash(commands: Sequence[Command]) -> str:
    """The script for bash."""
    first, seconds, values, flags, places = tree(commands), [], [], [], []
    for word, after in first.items():
        if after:
            seconds.append(f'    {word}) if [ "$COMP_CWORD" -eq 2 ]; then _vipra_of "{" ".join(after)}"; return; fi\n'
                           f'      name="{word} ${{COMP_WORDS[2]}}" ;;')
    for c in commands:
        table = options(c)
        for option, choices in table.items():
            if choices is not None:
                values.append(f'    "{c.name} {option}") ' + (f'_vipra_of "{" ".join(choices)}"; ' if choices else "")
                              + "return ;;")
        flags.append(f'      "{c.name}") _vipra_of "{" ".join(table)}" ;;')
        if words(c):
            places.append(f'      "{c.name}") _vipra_of "{" ".join(words(c))}" ;;')
    lines = "\n".join
    return f"""# Completion of vipra for bash. Load: source <(vipra completion bash)
_vipra_of() {{ COMPREPLY=($(compgen -W "$1" -- "$cur")); }}
_vipra() {{
  local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}" name="${{COMP_WORDS[1]}}"
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then _vipra_of "{" ".join(first)} --help --version"; return; fi
  case "$name" in
{lines(seconds)}
  esac
  case "$name $prev" in
{lines(values)}
  esac
  case "$cur" in
    -*) case "$name" in
{lines(flags)}
    esac ;;
    *) case "$name" in
{lines(places)}
    esac ;;
  esac
  case "${{COMPREPLY[0]}}" in *:=) compopt -o nospace 2>/dev/null ;; esac
}}
complete -o default -F _vipra vipra
"""


def zsh(commands: Sequence[Command]) -> str:
    """The script for zsh."""
    return ("# Completion of vipra for zsh. Load: source <(vipra completion zsh)\n"
            "autoload -Uz compinit bashcompinit && compinit -u && bashcompinit\n" + bash(commands).split("\n", 1)[1])


def fish(commands: Sequence[Command]) -> str:
    """The script for fish."""
    first = tree(commands)
    lines = ["# Completion of vipra for fish. Load: vipra completion fish | source"]
    docs = {c.name: c.doc for c in commands}
    for word, after in first.items():
        text = _quoted(docs.get(word) or ", ".join(after))
        lines.append(f"complete -c vipra -n __fish_use_subcommand -f -a {word} -d {text}")
        inside = f"__fish_seen_subcommand_from {word}; and not __fish_seen_subcommand_from {' '.join(after)}"
        lines += [f"complete -c vipra -n '{inside}' -f -a {second} -d {_quoted(docs[f'{word} {second}'])}"
                  for second in after]
    for c in commands:
        here = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in c.name.split())
        if " " not in c.name and any(c.name in after for after in first.values()):  # "eval" is no part of another name
            here += "; and not " + "; and not ".join(
                f"__fish_seen_subcommand_from {word}" for word, after in first.items() if c.name in after)
        helps = {flags[-1]: keywords.get("help", "") for flags, keywords in c.arguments}
        for option, choices in options(c).items():
            value = "" if choices is None else f" -x -a '{' '.join(choices)}'" if choices else " -r"
            text = _quoted(re.sub(r"%\(default\)\w", "default", helps.get(option, "")).split("\n")[0])
            lines.append(f"complete -c vipra -n '{here}' -l {option.lstrip('-')}{value} -d {text}")
        if words(c):
            lines.append(f"complete -c vipra -n '{here}' -a '{' '.join(words(c))}'")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def main(shell: str) -> None:
    """`vipra completion`: print the script."""
    from vipra_ros.cli import COMMANDS
    print({"bash": bash, "zsh": zsh, "fish": fish}[shell](COMMANDS), end="")
