"""How far long work has got and how long it will still take."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


def duration(seconds: float) -> str:
    """A time for people: 40 s, 12 min, 3.4 h, 2.1 days."""
    for unit, size, form in (("days", 86400.0, ".1f"), ("h", 3600.0, ".1f"), ("min", 60.0, ".0f")):
        if seconds >= size:
            return f"{seconds / size:{form}} {unit}"
    return f"{max(0.0, seconds):.0f} s"


class Pace:
    """Time left at the pace since the first look: what was done before, perhaps elsewhere, says nothing about it."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def left(self, seconds: float, share: float) -> float | None:
        """s until all is done, `share` of it being done at time `seconds`; None while no pace is known."""
        if self._first is None:
            self._first = (seconds, share)
        since, before = self._first
        if share <= before or seconds <= since:
            return None
        return max(0.0, 1.0 - share) * (seconds - since) / (share - before)


@contextlib.contextmanager
def bar(words: str, total: float, show: bool = True) -> Iterator[Callable[..., None]]:
    """A progress bar on a terminal, nothing elsewhere; yields `advance(done, note)`, which adds to what is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not show or not console.is_terminal:
        yield lambda done=1, note=None: None
        return
    columns = (TextColumn(words), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total, note="")

        def advance(done: float = 1, note: str | None = None) -> None:
            progress.update(task, advance=done, **({} if note is None else {"note": note}))

        yield advance
