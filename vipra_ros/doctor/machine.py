"""The computer: kernel, governor, real-time rights, clock.

Sources: Franka Control Interface documentation, "Setting up the real-time kernel" (PREEMPT_RT, rtprio 99, memlock)
and "Troubleshooting" (CPU frequency scaling); adjtimex(2) for the state of the clock.
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

from vipra_ros.doctor.report import FAIL, OK, WARN, Finding, read

AREA = "machine"
ROOT = Path("/")
#: libfranka asks for the highest SCHED_FIFO priority.
RTPRIO = 99
#: Bit of CAP_SYS_NICE in CapEff: such a process needs no rtprio limit.
CAP_SYS_NICE = 23
#: s; stamps of two machines further apart make observations too old or of the future (executor: future_tolerance).
CLOCK_ERROR = 0.05
_TIME_ERROR, _STA_UNSYNC = 5, 0x0040


def kernel(root: Path = ROOT, real_arm: bool = False) -> Finding:
    """Whether the kernel is preemptible in real time; without, libfranka refuses `enforce`."""
    version = read(root / "proc/sys/kernel/osrelease") or "unknown"
    if read(root / "sys/kernel/realtime") == "1" or "PREEMPT_RT" in read(root / "proc/version"):
        return Finding(AREA, "kernel", OK, f"{version}, PREEMPT_RT")
    fix = "boot a PREEMPT_RT kernel (Ubuntu: sudo pro enable realtime-kernel); a simulated arm runs without"
    return Finding(AREA, "kernel", FAIL if real_arm else WARN, f"{version} is no real-time kernel", fix)


def governor(root: Path = ROOT) -> Finding:
    """Whether processors may slow down; waking up to full speed costs more than the 1 ms of a control cycle."""
    files = sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"))
    found = Counter(read(f) for f in files)
    if not found:
        return Finding(AREA, "governor", OK, "no frequency scaling here (virtual machine, or left to the firmware)")
    text = ", ".join(f"{n} x {name}" for name, n in found.most_common())
    if set(found) == {"performance"}:
        return Finding(AREA, "governor", OK, text)
    return Finding(AREA, "governor", WARN, text, "sudo cpupower frequency-set -g performance")


def rtprio(root: Path = ROOT, limit: Callable[[int], tuple[int, int]] = resource.getrlimit,
           real_arm: bool = False) -> Finding:
    """Whether this user may ask for real-time priority (`ulimit -r`)."""
    line = next((x for x in read(root / "proc/self/status").splitlines() if x.startswith("CapEff:")), "CapEff: 0")
    if int(line.split()[1], 16) >> CAP_SYS_NICE & 1:
        return Finding(AREA, "real-time priority", OK, "this process has CAP_SYS_NICE")
    soft, _ = limit(resource.RLIMIT_RTPRIO)  # the kernel asks for the soft one
    if soft == resource.RLIM_INFINITY or soft >= RTPRIO:
        return Finding(AREA, "real-time priority", OK, "allowed up to " + ("any" if soft < 0 else str(soft)))
    fix = "add '@realtime - rtprio 99' and '@realtime - memlock 102400' to /etc/security/limits.conf, join the group " \
          "(sudo groupadd -f realtime; sudo usermod -aG realtime $USER) and log in again"
    text = f"allowed up to {soft}, {RTPRIO} is asked for"
    return Finding(AREA, "real-time priority", FAIL if real_arm else WARN, text, fix)


def kernel_clock() -> tuple[bool, float]:
    """(synchronised, largest error in s) of the system clock, as the kernel knows it.

    Raises:
        OSError: the kernel does not say.
    """
    class Timex(ctypes.Structure):  # head of struct timex; the rest is room
        _fields_ = [("modes", ctypes.c_uint), ("offset", ctypes.c_long), ("freq", ctypes.c_long),
                    ("maxerror", ctypes.c_long), ("esterror", ctypes.c_long), ("status", ctypes.c_int),
                    ("rest", ctypes.c_byte * 256)]
    table = Timex()
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(table))
    if state < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return state != _TIME_ERROR and not table.status & _STA_UNSYNC, table.maxerror * 1e-6


def clock(state: Callable[[], tuple[bool, float]] = kernel_clock) -> Finding:
    """Whether stamps of this machine can be compared with those of another (cameras, a remote policy)."""
    fix = "sudo apt install chrony on every machine of the robot, one of them as server of the others"
    try:
        synchronised, error = state()
    except OSError as failure:
        return Finding(AREA, "clock", WARN, f"the kernel does not say ({failure})", fix)
    if not synchronised:
        return Finding(AREA, "clock", WARN, "not synchronised; of no account while everything runs here", fix)
    text = f"synchronised, off by {1e3 * error:.1f} ms at most"
    return Finding(AREA, "clock", *((OK, text) if error <= CLOCK_ERROR else (WARN, text, fix)))


@cache
def import_error() -> str:
    """The last line of what ROS 2 and our messages say when they are imported, empty when all is well.

    In a process of its own, as rclpy ends the one that it does not like.
    """
    done = subprocess.run([sys.executable, "-c", "import rclpy, vipra_ros.msg"], capture_output=True, text=True)
    said = done.stderr.strip() or f"status {done.returncode}"
    return said.splitlines()[-1] if done.returncode else ""


def ros(environment: dict[str, str], importable: Callable[[str], bool], error: Callable[[], str]) -> Finding:
    """Whether nodes can run here, and in which graph."""
    if not importable("rclpy"):
        return Finding(AREA, "ROS 2", WARN, "rclpy is not to be found: training and conversion only",
                       "use the .venv of `make setup`, or source a ROS 2 with this package built in it")
    failure = error()
    if failure and "vipra_ros.msg" not in failure:
        other = "RMW_IMPLEMENTATION" in environment
        return Finding(AREA, "ROS 2", FAIL, failure,
                       "unset RMW_IMPLEMENTATION" if other else "use a shell without the other ROS 2")
    if not importable("rclpy.event_handler"):
        return Finding(AREA, "ROS 2", FAIL, f"{environment.get('ROS_DISTRO', 'this one')} is too old for the nodes",
                       "source Jazzy or Kilted, or use the .venv of `make setup` in a shell without another ROS 2")
    if failure:
        return Finding(AREA, "ROS 2", FAIL, "messages are not built",
                       "make setup, or colcon build and source install/setup.bash")
    name = environment.get("RMW_IMPLEMENTATION", "default middleware")
    return Finding(AREA, "ROS 2", OK, f"rclpy, {name}, domain {environment.get('ROS_DOMAIN_ID', '0')}")
