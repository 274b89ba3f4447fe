"""One process an arm: the claim that the second one on this machine does not get.

A control unit takes one connection. A second one is accepted by the network and then waits without a word, so a second
executor would hang, and on its way could disturb the first. A name in the abstract socket namespace (unix(7)) is given
back by the kernel however its owner ends, needs no file, and knows the owner's process.
"""

from __future__ import annotations

import socket
import struct


class Claimed(RuntimeError):
    """The arm is another process's; the message names it."""


class Claim:
    """Held until :meth:`release`, or the end of the process.

    Args:
        host: address of the control unit, as written; two names of one unit are not seen to be one.

    Raises:
        Claimed: another process, or this one, has it.
    """

    def __init__(self, host: str):
        self._socket, name = socket.socket(socket.AF_UNIX), f"\0vipra_ros/arm/{host}"
        try:
            self._socket.bind(name)
            # Whoever asks for the owner stays in this queue, as nobody accepts: a process that tries for 30 s leaves
            # 60. When it is full, the kernel names nobody.
            self._socket.listen(socket.SOMAXCONN)
        except OSError:
            self._socket.close()
            owner = _owner(name)
            raise Claimed(f"{owner} of this machine drives the arm at {host}; end it first") from None

    def release(self) -> None:
        """Give the arm back."""
        self._socket.close()


def _owner(name: str) -> str:
    """Process that listens at `name` (SO_PEERCRED: pid, uid, gid)."""
    with socket.socket(socket.AF_UNIX) as asking:
        try:
            asking.settimeout(0.2)
            asking.connect(name)
            pid = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            return f"process {pid}"
        except ConnectionRefusedError:
            return "a process (just ended)"
        except OSError:
            return "another process"
