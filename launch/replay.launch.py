"""A recorded episode drives the arm.

`ros2 launch vipra_ros replay.launch.py --show-args` lists the arguments.
"""

import runpy
from pathlib import Path


def generate_launch_description():
    """The nodes that vipra_ros.graph names for this system."""
    return runpy.run_path(str(Path(__file__).with_name("system.py")))["describe"]("replay")
