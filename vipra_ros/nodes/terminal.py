"""Where an operator's keys come from and the lines go to: a terminal, or nobody."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty

QUIT = ("q", "\x03", "\x04")


class Terminal:
    """Single keys in, a status line that stays below what is said."""

    def __enter__(self) -> Terminal:
        self._before = termios.tcgetattr(sys.stdin)
        tty.setcbreak(sys.stdin)
        self._shown = ""
        return self

    def __exit__(self, *exc: object) -> None:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)
        print(flush=True)

    def say(self, text: str) -> None:
        sys.stdout.write("\r\x1b[K" + text + "\n")
        self._shown = ""

    def show(self, line: str) -> None:
        if line != self._shown:
            self._shown = line
            sys.stdout.write("\r\x1b[K" + line)
            sys.stdout.flush()

    def key(self, seconds: float) -> str:
        """The next key, empty when none comes in time."""
        if not select.select([sys.stdin], [], [], seconds)[0]:
            return ""
        data = os.read(sys.stdin.fileno(), 1)
        return data.decode("ascii", "ignore") if data else "\x04"  # of an umlaut's bytes none is a key

    def forget(self) -> None:
        """Drop what was typed so far: it was typed before the question that comes now."""
        termios.tcflush(sys.stdin, termios.TCIFLUSH)

    def ask(self, prompt: str) -> str:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)
        try:
            sys.stdout.write("\r\x1b[K" + prompt)
            sys.stdout.flush()
            return sys.stdin.readline().strip()
        finally:
            tty.setcbreak(sys.stdin)
            self._shown = ""


class Unattended:
    """Stands for the terminal when there is none: lines out, no keys."""

    def say(self, text: str) -> None:
        print(text, flush=True)

    def show(self, line: str) -> None:
        pass

    def key(self, seconds: float) -> str:
        time.sleep(seconds)
        return ""

    def forget(self) -> None:
        pass
