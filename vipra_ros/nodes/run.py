"""The life of a node with threads of its own: begin, serve callbacks until it is over, end in order.

SIGINT and SIGTERM are ours, not rclpy's: topics and services must still work while an arm is braked.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from vipra_ros.config import ConfigError

#: s between two looks at whether it is over.
PERIOD = 0.05


def begin(args: list[str] | None) -> threading.Event:
    """Start rclpy; the event is set by SIGINT and SIGTERM."""
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    ending = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
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


def spin(executor: SingleThreadedExecutor) -> None:
    """Serve `executor` until it ends."""
    try:
        executor.spin()
    except ExternalShutdownException:
        pass


def _hear(node: Any, executor: SingleThreadedExecutor) -> None:
    try:
        spin(executor)
    except Exception as error:  # one that hears nothing any more, not even a stop, must end
        node.failure = error


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
    try:
        node = make()
    except (ConfigError, RuntimeError) as error:
        print(f"{name}: {error}", flush=True)
        rclpy.try_shutdown()
        raise SystemExit(1) from None
    executor = SingleThreadedExecutor()  # the multi-threaded one burns most of a core while chunks arrive
    executor.add_node(node)
    spinner = threading.Thread(target=_hear, args=(node, executor), name="ros", daemon=True)
    with node:
        spinner.start()
        while not ending.wait(PERIOD) and not over(node) and node.failure is None and rclpy.ok():
            pass
    failure = node.failure
    executor.shutdown(timeout_sec=1.0)
    spinner.join(timeout=2.0)  # a thread left inside rclpy when the interpreter ends would abort the process
    node.destroy_node()
    rclpy.try_shutdown()
    return node, failure
