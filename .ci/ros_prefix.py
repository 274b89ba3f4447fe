"""Make .venv a working ROS 2 prefix, with this package's messages in it. .ci/setup runs it in .venv.

Usage: python .ci/ros_prefix.py INSTALL, the folder colcon installs this package into.
"""

import re
import sys
import sysconfig
from pathlib import Path

import numpy


def rewrite_include_paths(prefix: Path) -> int:
    """Replace the include paths of the machine the wheels were built on; returns the number of files changed.

    The CMake targets that the ROS wheels export name /opt/python/cp3xx-cp3xx/..., which is not here.
    """
    here = {r"/opt/python/[^/;\">]+/include/python3\.\d+": sysconfig.get_path("include"),
            r"/opt/python/[^/;\">]+/lib/python3\.\d+/site-packages/numpy/_core/include": numpy.get_include()}
    changed = 0
    for path in prefix.glob("share/*/cmake/*.cmake"):
        text = path.read_text()
        new = text
        for pattern, replacement in here.items():
            new = re.sub(pattern, lambda _, r=replacement: r, new)
        if new != text:
            path.write_text(new)
            changed += 1
    return changed


def link_package(site: Path, install: Path) -> None:
    """Let .venv's Python find the generated message modules and their shared libraries under `install`.

    The modules through a .pth file: it comes after the editable install, so sources run in place and
    `vipra_ros.msg` is found behind them. The libraries through a folder named ros_*.libs: the ROS wheels'
    bootstrapper puts every such folder on LD_LIBRARY_PATH when Python starts.
    """
    python = install / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site / "vipra_ros_messages.pth").write_text(f"{python}\n")
    link = site / "ros_vipra_ros.libs"
    link.unlink(missing_ok=True)
    link.symlink_to(install / "lib")


if __name__ == "__main__":
    print(rewrite_include_paths(Path(sys.prefix)), "files rewritten")
    link_package(Path(sysconfig.get_path("platlib")), Path(sys.argv[1]))
