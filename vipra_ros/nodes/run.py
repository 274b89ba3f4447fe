"""The life of a node with threads of its own: begin, serve callbacks until it is over, end in order.

SIGINT, SIGTERM and SIGHUP are ours, not rclpy's: topics and services must still work while an arm is braked.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rclpy
from rclpy.signals import SignalHandlerOptions

from vipra_ros.config import ConfigError
from vipra_ros.nodes.spinner import Spinner

#: s between two looks at whether it is over.
PERIOD = 0.05


def _endings() -> tuple[signal.Signals, ...]:
    """The signals that end a node in order: also a terminal or an ssh session that goes, but under nohup."""
    hang_up = (signal.SIGHUP,) if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else ()
    return signal.SIGINT, signal.SIGTERM, *hang_up


def begin(args: list[str] | None) -> threading.Event:
    """Start rclpy; the event is set by the signals that end a node."""
    os.environ.setdefault("HOME", os.path.expanduser("~"))  # rcl's log needs one; a service may have none
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    ending = threading.Event()
    for number in _endings():
        signal.signal(number, lambda *_: ending.set())
    return ending


def give_way(by: int = 5) -> None:
    """Let this process wait for those that control an arm, where they share processors, adding `by` to its nice value.

    Linux weighs whole sessions against each other (autogroup) where that is switched on, and each process of a system
    is a session: there the session's own value counts.
    """
    os.nice(by)
    try:
        Path("/proc/self/autogroup").write_text(str(by))
    except OSError:
        pass  # no such groups here


def serve(args: list[str] | None, name: str, make: Callable[[], Any],
          over: Callable[[Any], bool] = lambda node: False) -> tuple:
    """Run the node that `make` returns, as a context manager, until a signal, `over(node)` or a callback that raises.

    Args:
        name: begins the line that a node which cannot be made leaves.

    Returns:
        The node, and its `failure` when it had ended.

    Raises:
        SystemExit: it could not be made; one line says why.
    """
    ending = begin(args)
    handler = signal.getsignal(signal.SIGINT)
    for number in _endings():  # an arm is waited for, and nothing moves yet
        signal.signal(number, signal.default_int_handler)
    try:
        node = make()
        for number in _endings():
            signal.signal(number, handler)
    except KeyboardInterrupt:
        rclpy.try_shutdown()
        raise SystemExit(0) from None
    except (ConfigError, RuntimeError) as error:
        print(f"{name}: {error}", flush=True)
        rclpy.try_shutdown()
        raise SystemExit(1) from None
    with node:
        spinner = Spinner(node)
        # One that hears nothing any more, not even a stop, must end.
        while not ending.is_set() and not over(node) and not (node.failure or spinner.failure) and rclpy.ok():
            time.sleep(PERIOD)  # not ending.wait: the handler is of this thread too, and set() needs the lock of wait()
    failure = node.failure or spinner.failure
    spinner.close()
    return node, failure
