"""Turn a system of vipra_ros.graph into launch_ros nodes; the launch files beside this one use it."""

import sys
from functools import partial
from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, Shutdown
from launch.events.process import ProcessExited
from launch_ros.actions import Node

from vipra_ros import graph


def _given(context: LaunchContext, system: str) -> dict[str, str]:
    """The arguments that somebody gave, with those that nobody declared: launch ignores `dryrun:=true`, and the arm
    would move.

    What is written for another file that includes ours is not ours to judge; what it hands on as the default is taken
    for not given.
    """
    given = {a.name: context.launch_configurations[a.name] for a in graph.arguments(system)
             if context.launch_configurations[a.name] != a.default}
    ours = Path(__file__).with_name(f"{system}.launch.py").resolve()
    by_package = {"vipra_ros", ours.name} <= set(sys.argv)  # options of launch may stand between them
    if by_package or any(Path(word).resolve() == ours for word in sys.argv):
        given |= graph.parse(context.argv)
    return given


def _ended(process: graph.Process, event: ProcessExited, context: LaunchContext) -> Shutdown | None:
    """End the others with a process that they need. As a failure by an exception: Shutdown alone exits with 0."""
    if context.is_shutdown:
        return None
    if process.required or event.returncode:
        raise RuntimeError(f"the system needs {process.executable}: ending all processes")
    return Shutdown(reason=f"{process.executable} has done its work")


def _nodes(context: LaunchContext, system: str) -> list[Node]:
    return [Node(
        package="vipra_ros", executable=p.executable, name=p.executable, namespace=p.namespace or None,
        parameters=([p.file_beside()] if p.params_file else []) + [p.parameters],
        ros_arguments=["--log-level", p.log_level], additional_env=p.environment, output="screen",
        emulate_tty=True,
        sigterm_timeout="1.5", sigkill_timeout="1.0",  # seconds after Ctrl-C: everything has ended within 3 s
        on_exit=partial(_ended, p) if p.required or p.finishes else None,
    ) for p in graph.processes(system, _given(context, system))]


def describe(system: str) -> LaunchDescription:
    """The launch description of `system`, with its arguments."""
    declared = [DeclareLaunchArgument(a.name, default_value=a.default, description=a.doc,
                                      choices=sorted({a.default, *a.choices}) if a.choices else None)
                for a in graph.arguments(system)]
    return LaunchDescription([*declared, OpaqueFunction(function=_nodes, args=[system])])
