"""`vipra up`: start the processes of a system where `ros2 launch` is absent, and end them together.

honcho's manager starts the processes, each in a session of its own, and multiplexes their output. Changed
here are the rules of ending: Ctrl-C sends SIGINT, as a terminal and `ros2 launch` do, and SIGKILL after
`GRACE` seconds; the end of a process that the system needs ends all, that of another is only reported.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial

from honcho import manager as honcho_manager
from honcho.manager import Manager
from honcho.printer import Message
from honcho.process import Popen, Process

from vipra_ros import graph

#: s between SIGINT and SIGKILL. A limited stop of the arm takes less than one; within 3 s all has ended.
GRACE = 2.0


def end_with_parent(number: int) -> None:
    """Linux sends this process the signal `number` when its parent is gone, however the parent went."""
    PR_SET_PDEATHSIG = 1
    if number == signal.SIGINT:  # a job in the background of a script inherits that it is ignored
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


class _Process(Process):
    """A node and honcho's reader of its output. When `vipra up` is killed, the reader goes and the node stops."""

    def __init__(self, *args, **keywords):
        super().__init__(*args, **keywords)
        self._child_ctor = partial(Popen, preexec_fn=lambda: end_with_parent(signal.SIGINT))

    def run(self, events=None, ignore_signals=False):
        end_with_parent(signal.SIGKILL)
        signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # Ctrl-Z: what the nodes say in ending is still read
        super().run(events, ignore_signals)


class _Printer:
    """Lines as `ros2 launch` writes them: `[executor-1] text`, `[INFO] [executor-1]: text` for our own."""

    width = 0  # honcho sets it, to align columns

    def write(self, message: Message) -> None:
        text = message.data.decode("utf-8", "replace") if isinstance(message.data, bytes) else message.data
        for line in text.splitlines():
            _print(f"[{message.name}] {line}")

    def say(self, level: str, name: str, text: str) -> None:
        _print(f"[{level}] [{name}]: {text}")


def _print(text: str) -> None:
    """A line for whoever reads; that nobody can must not keep the nodes from being watched and ended.

    The reader of our pipe may be gone (Ctrl-C ends `tee` too), the disk full, or a signal handler speaks into a line.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")
    except (OSError, ValueError, RuntimeError):
        pass


def _signal(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        pass


class System(Manager):
    """Processes that live and die together.

    Args:
        required: names of the processes whose end ends all, as a failure.
        finishing: names of those whose end ends all, with their exit status.
        commands: show the command line of a process that has died.
    """

    def __init__(self, required: Sequence[str], finishing: Sequence[str] = (), commands: bool = False):
        super().__init__(printer=_Printer())
        self._commands = commands
        self._process_ctor = _Process
        self.required, self.finishing = frozenset(required), frozenset(finishing)
        self.failed = self.finished = ""  # the required, or finishing, process that ended first

    def run(self) -> int:
        """Start all, wait for the end of all; the exit status for the shell (130 after Ctrl-C)."""
        honcho_manager.KILL_WAIT = GRACE
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, lambda *_: self.terminate())  # the terminal was closed
        signal.signal(signal.SIGTSTP, self._suspend)
        try:
            self.loop()
        except BaseException:  # whatever it was, no arm goes on without us
            self.terminate()
            time.sleep(GRACE)
            self.kill()
            raise
        if self.failed:
            code = self._processes[self.failed]["returncode"]
            return 128 - code if code < 0 else code or 1  # a signal as shells count it; no end is a good one
        if self.finished:
            return abs(self._processes[self.finished]["returncode"])
        return self.returncode or 0

    def _suspend(self, *_) -> None:
        """Ctrl-Z ends all as Ctrl-C does: the nodes would go on, and nobody watch them."""
        self._system_print("SIGTSTP received")
        self.terminate()

    def _any_stopped(self) -> bool:
        """honcho asks in every turn; True begins the end of all: SIGINT now, SIGKILL after GRACE."""
        return self._terminating or bool(self.failed or self.finished)

    def _killall(self, force: bool = False) -> None:
        """Signal every process group that is left; one not begun yet is met when it says that it has."""
        for name, process in self._processes.items():
            if "pid" not in process or "returncode" in process or process.get("killed"):
                continue
            process["killed"] = force
            if force:
                self._printer.say("WARNING", name, f"still runs {GRACE} s after SIGINT: sending SIGKILL")
            _signal(process["pid"], signal.SIGKILL if force else signal.SIGINT)

    def _system_print(self, data: str) -> None:
        """honcho announces starts, stops and signals here, in its words; said in those of `ros2 launch`."""
        name, what = data.strip().split(" ", 1)
        if what.startswith("started"):
            self._printer.say("INFO", name, f"process started with pid [{self._processes[name]['pid']}]")
            if self._terminating:  # it began too late for the SIGINT of the others
                _signal(self._processes[name]["pid"], signal.SIGINT)
        elif what.startswith("received"):
            self._printer.say("WARNING", "up", f"{name}: ending all processes")
        elif what.startswith("stopped"):
            self._ended(name)

    def _ended(self, name: str) -> None:
        process = self._processes[name]
        code = process["returncode"]
        detail = f"[pid {process['pid']}, exit code {code}]"
        if self._terminating or code == 0:
            self._printer.say("INFO", name, f"process has finished {detail}")
        else:
            command = f": {process['obj'].cmd}" if self._commands else ""  # long, and of no use to most
            self._printer.say("ERROR", name, f"process has died {detail}{command}")
        if self._terminating or self.failed or self.finished:
            return
        if name in self.finishing:
            self.finished = name
            self._printer.say("INFO", "up", f"{name} has done its work: ending all processes")
        if name in self.required:
            self.failed = name
            self._printer.say("ERROR", "up", f"the system needs {name}: ending all processes")


def up(system: str, given: dict[str, str]) -> int:
    """Run `system` of vipra_ros.graph until Ctrl-C or the end of a node it needs; the exit status."""
    processes = graph.processes(system, given)
    names = {p.executable: f"{p.executable}-{number}" for number, p in enumerate(processes, start=1)}
    running = System(
        [names[p.executable] for p in processes if p.required],
        [names[p.executable] for p in processes if p.finishes],
        commands=given.get("log_level") == "debug",
    )
    for p in processes:
        command = [sys.executable, "-m", "vipra_ros.cli", "node", p.executable, "--ros-args"]
        running.add_process(names[p.executable], shlex.join(["exec", *command, *p.ros_arguments()]),
                            env={**os.environ, **p.environment})
    return running.run()
