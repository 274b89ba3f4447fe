"""A finding of the doctor, and many of them as lines or JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

OK, WARN, FAIL = "OK", "WARN", "FAIL"
LEVELS = (OK, WARN, FAIL)
#: Columns of a terminal.
WIDTH = 80


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        area: concern it belongs to, e.g. "machine". check: what was looked at.
        level: OK; WARN, it may work; FAIL, it will not.
        text: what is there, with its unit. fix: what to do, empty when all is well.
    """

    area: str
    check: str
    level: str
    text: str
    fix: str = ""

    def __post_init__(self) -> None:
        if self.level not in LEVELS or (self.level == OK) == bool(self.fix):
            raise ValueError(f"finding {self.check!r}: {self.level} with fix {self.fix!r}; all but OK needs a fix")


def read(path: Path) -> str:
    """Stripped text of a small file of /proc or /sys; empty when it is not there or not for us."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def refusal(area: str, check: str, error: Exception, fix: str, level: str = FAIL) -> Finding:
    """An error in the house's form, "what is wrong; what to do"; `fix` is for one that says no remedy."""
    text, _, remedy = " ".join(str(error).split()).rpartition("; ")
    return Finding(area, check, level, text or remedy, remedy if text else fix)


def guarded(area: str, check: str, look: Callable[[], Finding | Sequence[Finding]]) -> list[Finding]:
    """What `look` finds. A check that breaks is a finding too, and never the end of the others."""
    try:
        found = look()
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return [Finding(area, check, FAIL, f"the check itself failed, {text}", "report this line as a bug")]
    return [found] if isinstance(found, Finding) else list(found)


def status(findings: Sequence[Finding]) -> int:
    """Exit status: 1 when anything fails."""
    return int(any(f.level == FAIL for f in findings))


def as_json(findings: Sequence[Finding], skipped: dict[str, str]) -> str:
    """Machine-readable report; `skipped` says what was not looked at, and which option would."""
    counts = {level: sum(f.level == level for f in findings) for level in LEVELS}
    table = {"ok": status(findings) == 0, "counts": counts, "findings": [asdict(f) for f in findings]}
    return json.dumps({**table, "skipped": skipped}, indent=1)


def as_text(findings: Sequence[Finding], skipped: dict[str, str], colour: bool = False) -> str:
    """A paragraph a finding, its fix below it."""
    paint = {OK: "\x1b[32m", WARN: "\x1b[33m", FAIL: "\x1b[31m"} if colour else dict.fromkeys(LEVELS, "")
    end, lines, area = "\x1b[0m" if colour else "", [], ""
    for f in findings:
        if f.area != area:
            lines += [""] * bool(lines) + [f.area]
            area = f.area
        lines.append(_wrapped(f"  {f.level:4} ", f"{f.check}: {f.text}").replace(
            f.level, f"{paint[f.level]}{f.level}{end}", 1))
        if f.fix:
            lines.append(_wrapped("       -> ", f.fix))
    counts = ", ".join(f"{sum(f.level == level for f in findings)} {level}" for level in LEVELS)
    lines += ["", counts]
    if skipped:
        lines.append(_wrapped("not looked at: ", ", ".join(f"{name} ({option})" for name, option in skipped.items())))
    return "\n".join(lines)


def _wrapped(head: str, text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head),
                         break_long_words=False, break_on_hyphens=False)
