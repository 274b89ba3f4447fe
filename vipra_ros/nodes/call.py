"""`vipra call`: one service of the executor from any terminal, where there is no `ros2` command.

The answer is printed; the exit status is 0 if it was done, 1 if it was refused or nobody answered.
"""

from __future__ import annotations

import sys
import time

import rclpy
from rclpy.executors import SingleThreadedExecutor
from std_srvs.srv import Trigger

from vipra_ros.nodes.spinner import lone_node

#: s until an executor is found, and until it answers; recovering takes about one.
FINDING, PATIENCE = 5.0, 6.0


def call(name: str, namespace: str = "") -> int:
    """Ask the executor (of `namespace`) for `name`, print what it says, and return the exit status."""
    node = lone_node("call", namespace=namespace)
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    try:
        client = node.create_client(Trigger, f"executor/{name}")
        service = node.resolve_service_name(client.srv_name)
        until = time.monotonic() + FINDING
        while not client.service_is_ready():
            if time.monotonic() > until:
                print(f"vipra: nobody offers {service}; start an executor, with the same ROS_DOMAIN_ID and --namespace",
                      file=sys.stderr)
                return 1
            executor.spin_once(timeout_sec=0.05)
        future = client.call_async(Trigger.Request())
        executor.spin_until_future_complete(future, timeout_sec=PATIENCE)
        if not future.done():
            print(f"vipra: {service} did not answer in {PATIENCE:.0f} s; look at executor/status", file=sys.stderr)
            return 1
        answer = future.result()
        print(f"{name}: {answer.message or ('done' if answer.success else 'refused')}")
        return 0 if answer.success else 1
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown(context=node.context)
