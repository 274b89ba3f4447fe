"""A node served by a thread of its own, and the order in which both end: never rclpy before the thread.

A context that is shut down while a thread waits in it, or an interpreter that ends then, crashes the process.
"""

from __future__ import annotations

import threading

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

#: s that the end waits for a callback under way.
PATIENCE = 2.0


def lone_node(name: str, domain: int | None = None, namespace: str | None = None) -> Node:
    """A node in a context of its own, in which signals are the caller's; every other node of the process goes on."""
    context = rclpy.Context()
    rclpy.init(args=[], context=context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
    return rclpy.create_node(name, context=context, namespace=namespace)


class Spinner:
    """Serves `node` from its making on until `close`.

    Attributes:
        failure: what a callback raised: nothing is heard any more after it.
    """

    def __init__(self, node: Node):
        self.failure: Exception | None = None
        self._node = node
        # The multi-threaded one burns most of a core while chunks arrive.
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(node)
        self._thread = threading.Thread(target=self._spin, name="ros", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, then the node, then its context."""
        self._executor.shutdown(timeout_sec=1.0)
        self._thread.join(PATIENCE)
        self._node.destroy_node()
        # rclpy forgets its own context only when asked for it without a name; else the next rclpy.init() is refused.
        context = self._node.context
        rclpy.try_shutdown(context=None if context is rclpy.get_default_context() else context)

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass
        except Exception as error:
            self.failure = error
            raise
