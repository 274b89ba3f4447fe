"""Turn a system of vipra_ros.graph into launch_ros nodes; the launch files beside this one use it."""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, Shutdown
from launch_ros.actions import Node

from vipra_ros import graph


def _nodes(context: LaunchContext, system: str) -> list[Node]:
    known = [a.name for a in graph.arguments(system)]
    given = {name: context.launch_configurations[name] for name in known}
    return [Node(
        package="vipra_ros", executable=p.executable, name=p.executable, namespace=p.namespace or None,
        parameters=[p.params_file] * bool(p.params_file) + [p.parameters],
        ros_arguments=["--log-level", p.log_level], additional_env=p.environment, output="screen",
        emulate_tty=True,
        sigterm_timeout="1.5", sigkill_timeout="1.0",  # seconds after Ctrl-C: everything has ended within 3 s
        on_exit=Shutdown(reason=f"{p.executable} ended") if p.required or p.finishes else None,
    ) for p in graph.processes(system, given)]


def describe(system: str) -> LaunchDescription:
    """The launch description of `system`, with its arguments."""
    declared = [DeclareLaunchArgument(a.name, default_value=a.default, description=a.doc,
                                      choices=sorted({a.default, *a.choices}) if a.choices else None)
                for a in graph.arguments(system)]
    return LaunchDescription([*declared, OpaqueFunction(function=_nodes, args=[system])])
