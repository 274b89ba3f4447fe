"""What a person sees of a running system: a live view within 80 columns; and the images of an episode."""

from __future__ import annotations

import math
import sys
import threading
import time

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

#: s between two pictures of the live view, and between two plain lines.
LIVE_EVERY, PLAIN_EVERY = 0.25, 2.0
WIDTH = 80
_COLOUR = {
    "RUNNING": "green",
    "ARMED": "cyan",
    "FAULT": "red",
    "HOLD": "yellow",
    "STOPPING": "yellow",
    "WAITING": "yellow",
}


class Monitor:
    """Shows a `Session` while it waits; keeps the images of the episode under way.

    Without a terminal it prints plain lines instead.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or Console(width=WIDTH if not sys.stdout.isatty() else None)
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self.session = None
        self.title = "starting"
        self._shown = -math.inf
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self.images: dict[str, list[tuple[float, bytes]]] = {}

    def __enter__(self) -> Monitor:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live:
            self._live.stop()

    def on_image(self, camera: str, stamp: float, jpeg: bytes) -> None:
        """Keeps an image (camera, stamp s, JPEG) while an episode runs."""
        if self.session is not None and self.session.trace is not None:
            with self._lock:
                self.images.setdefault(camera, []).append((stamp, jpeg))

    def take(self) -> dict[str, list[tuple[float, bytes]]]:
        """The images since the last call."""
        with self._lock:
            images, self.images = self.images, {}
        return images

    def say(self, title: str) -> None:
        """What happens now."""
        self.title = title
        if self._live is None:
            self.console.print(f"[{self._seconds():5.1f} s] {title}", highlight=False, markup=False)
        self._shown = -math.inf if self._live else self._shown
        self.tick()

    def tick(self) -> None:
        """Show the present state when it is time to."""
        now = time.monotonic()
        if now - self._shown < (LIVE_EVERY if self._live else PLAIN_EVERY):
            return
        self._shown = now
        if self._live:
            self._live.update(self.view(), refresh=True)
        elif line := self.line():
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def line(self) -> str:
        """The state in one plain line; empty before anything was heard."""
        executor, policy = self._statuses()
        if executor is None or policy is None:
            return ""
        return (
            f"[{self._seconds():5.1f} s] {executor.state_text:8} policy {policy.state_text:8} "
            f"{_number(executor.chunk_rate)} chunks/s {_number(executor.action_rate)} actions/s "
            f"{_number(1e3 * executor.obs_to_action_p50, '.0f')} ms"
        )[:WIDTH]

    def view(self) -> Panel:
        """The state as a panel of at most 80 columns."""
        executor, policy = self._statuses()
        table = Table.grid(padding=(0, 1))
        table.add_column(style="dim", width=12, no_wrap=True)
        table.add_column(max_width=60)
        for name, status in (("executor", executor), ("policy", policy)):
            state = status.state_text if status else "starting"
            colour = _COLOUR.get(state, "white")
            table.add_row(name, f"[bold {colour}]{state}[/]" + (f" {_shorten(status.reasons)}" if status else ""))
        table.add_row("instruction", policy.instruction if policy else "")
        if executor and policy:
            late = "/".join(
                _number(1e3 * getattr(executor, f"obs_to_action_{p}"), ".0f") for p in ("p50", "p95", "p99")
            )
            table.add_row(
                "rates", f"{_number(executor.chunk_rate)} chunks/s, {_number(executor.action_rate)} actions/s"
            )
            table.add_row(
                "latency",
                f"{late} ms observation to action (p50/p95/p99), inference "
                f"{_number(1e3 * policy.inference_p50, '.0f')} ms",
            )
            table.add_row(
                "limiter",
                f"{100 * executor.limiter_active:3.0f} % of rows, boundary step "
                f"{_number(executor.boundary_step, '.3f')} rad, {executor.rejected} refused",
            )
            table.add_row(
                "cameras",
                ", ".join(
                    f"{c} {_number(r, '.0f')} Hz, {n} lost"
                    for c, r, n in zip(policy.cameras, policy.camera_rate, policy.frames_lost)
                ),
            )
        return Panel(table, title=self.title, subtitle=f"{self._seconds():.0f} s", width=min(WIDTH, self.console.width))

    def _statuses(self):
        return (self.session.executor_status, self.session.policy_status) if self.session else (None, None)

    def _seconds(self) -> float:
        return time.monotonic() - self._began


def _shorten(reasons, length: int = 48) -> str:
    text = reasons[-1] if reasons else ""
    text = text if len(text) <= length else text[: length - 3] + "..."
    return text.replace("[", "\\[")


def _number(value: float, form: str = ".1f") -> str:
    return format(value, form) if math.isfinite(value) else "-"
