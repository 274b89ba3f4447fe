"""A leader arm of servos on a pseudo-terminal, for everything that shall work without the hardware.

Speaks Dynamixel Protocol 2.0 as an XL330 does (PING, READ, WRITE, SYNC_READ, SYNC_WRITE; CRC-16 with polynomial
0x8005; byte stuffing), so that the driver and the SDK under it run unchanged. Where the joints are is a function
of time. Faults are switched on and off while it runs.
"""

from __future__ import annotations

import math
import os
import select
import tempfile
import threading
import time
import tty
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vipra_ros.teleop.bus import HARDWARE_ERROR, TICKS_PER_TURN, VELOCITY_UNIT
from vipra_ros.teleop.gello import GelloConfig, ticks_of
from vipra_ros.teleop.motions import Motion

HEADER = b"\xff\xff\xfd"
BROADCAST = 0xFE
PING, READ, WRITE, STATUS, SYNC_READ, SYNC_WRITE = 0x01, 0x02, 0x03, 0x55, 0x82, 0x83
MODEL_XL330_M288 = 1200
TORQUE, CURRENT, VELOCITY, POSITION = 64, 126, 128, 132


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 8
        for _ in range(8):
            value = (value << 1) ^ (0x8005 if value & 0x8000 else 0)
        table.append(value & 0xFFFF)
    return table


_TABLE = _crc_table()


def crc16(data: bytes) -> int:
    """CRC-16 of Protocol 2.0: polynomial 0x8005, start 0, nothing reflected."""
    value = 0
    for byte in data:
        value = ((value << 8) ^ _TABLE[(value >> 8) ^ byte]) & 0xFFFF
    return value


def stuff(body: bytes) -> bytes:
    """Break every FF FF FD inside a packet by one more FD, so that it cannot be taken for a header."""
    return body.replace(HEADER, HEADER + b"\xfd")


def unstuff(body: bytes) -> bytes:
    """The inverse of :func:`stuff`."""
    return body.replace(HEADER + b"\xfd", HEADER)


def packet(servo: int, instruction: int, parameters: bytes) -> bytes:
    """A whole packet with stuffing and CRC."""
    body = stuff(bytes([instruction]) + parameters)
    head = HEADER + bytes([0, servo]) + (len(body) + 2).to_bytes(2, "little")
    return head + body + crc16(head + body).to_bytes(2, "little")


def split(buffer: bytearray) -> list[tuple[int, int, bytes]]:
    """Take the whole packets out of `buffer`: (servo, instruction, parameters). Broken ones are dropped."""
    found = []
    while (begin := buffer.find(HEADER)) >= 0 and len(buffer) >= begin + 7:
        end = begin + 7 + int.from_bytes(buffer[begin + 5 : begin + 7], "little")
        if len(buffer) < end:
            break
        whole = bytes(buffer[begin:end])
        del buffer[:end]
        if len(whole) >= 10 and crc16(whole[:-2]) == int.from_bytes(whole[-2:], "little"):
            body = unstuff(whole[7:-2])
            found.append((whole[4], body[0], body[1:]))
    return found


@dataclass
class Faults:
    """What goes wrong; change at any time."""

    missing: set[int] = field(default_factory=set)  # servos that do not answer
    spoilt: set[int] = field(default_factory=set)  # servos whose answers carry a wrong CRC
    alerts: dict[int, int] = field(default_factory=dict)  # servo -> hardware error register, 4: overheated
    garbage: bytes = b""  # sent before every answer
    delay: float = 0.0  # s before every answer


class ServoEmulator:
    """Servos on a pty; a context manager.

    Args:
        ticks: s since the start -> positions (n,) in ticks, one per servo.
        ids: the servos.
        baudrate: answers take the time their bytes need at this rate; 0: none.
        port: path of the port; empty: one in a folder of its own.
    """

    def __init__(
        self, ticks: Callable[[float], Sequence[float]], ids: Sequence[int], baudrate: int = 0, port: str = ""
    ):
        self.ticks, self.ids, self.baudrate = ticks, tuple(ids), baudrate
        self.faults = Faults()
        self.torque = dict.fromkeys(self.ids, 1)  # a servo left on by somebody: the driver has to switch it off
        self.turns = dict.fromkeys(self.ids, 0)  # whole turns in the register, lost at a power cycle
        self._folder = None if port else tempfile.TemporaryDirectory(prefix="gello-")
        #: The path that stays the same when the cable is plugged in again, as those of /dev/serial/by-id.
        self.port = port or str(Path(self._folder.name, "port"))
        self._start, self._master, self._slave = time.monotonic(), -1, -1
        self._running, self._thread = threading.Event(), None

    def __enter__(self) -> ServoEmulator:
        self.plug()
        return self

    def __exit__(self, *exc: object) -> None:
        self.unplug()
        if self._folder:
            self._folder.cleanup()

    @property
    def now(self) -> float:
        """s since the start: what the motion is asked for."""
        return time.monotonic() - self._start

    def plug(self) -> None:
        """The cable is in. OSError when the port's path is taken by something that is no left-over of ours."""
        if self._thread is not None:
            return
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        if os.path.islink(self.port):  # of an emulator that was killed
            os.unlink(self.port)
        os.symlink(os.ttyname(self._slave), self.port)
        self._running.set()
        self._thread = threading.Thread(target=self._serve, name="servos", daemon=True)
        self._thread.start()

    def unplug(self) -> None:
        """The cable is out: whoever holds the port gets an error."""
        if self._thread is None:
            return
        self._running.clear()
        self._thread.join(timeout=2.0)
        self._thread = None
        os.unlink(self.port)
        os.close(self._master)
        os.close(self._slave)

    def power_cycle(self) -> None:
        """Servos forget whole turns: the register is 0 to 4095 again."""
        now = self.ticks(self.now)
        self.turns = {i: -math.floor(t / TICKS_PER_TURN) for i, t in zip(self.ids, now)}

    # --- the wire ------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        buffer = bytearray()
        while self._running.is_set():
            if not select.select([self._master], [], [], 0.05)[0]:
                continue
            buffer += os.read(self._master, 4096)
            for servo, instruction, parameters in split(buffer):
                self._answer(servo, instruction, parameters)

    def _answer(self, servo: int, instruction: int, parameters: bytes) -> None:
        self._due = time.monotonic()  # of the next answer: sleeps that last too long do not add up
        if instruction == PING:
            for i in self.ids if servo == BROADCAST else (servo,):
                self._send(i, MODEL_XL330_M288.to_bytes(2, "little") + b"\x34")
        elif instruction == READ:
            address, length = (int.from_bytes(parameters[k : k + 2], "little") for k in (0, 2))
            self._send(servo, self._memory(servo)[address : address + length])
        elif instruction == SYNC_READ:
            address, length = (int.from_bytes(parameters[k : k + 2], "little") for k in (0, 2))
            for i in parameters[4:]:
                if not self._send(i, self._memory(i)[address : address + length]):
                    return  # servos behind a silent one wait for their turn in vain
        elif instruction == WRITE:
            self._write(servo, int.from_bytes(parameters[:2], "little"), parameters[2:])
            self._send(servo, b"")
        elif instruction == SYNC_WRITE:  # never answered
            address, length = (int.from_bytes(parameters[k : k + 2], "little") for k in (0, 2))
            for k in range(4, len(parameters), length + 1):
                self._write(parameters[k], address, parameters[k + 1 : k + 1 + length])

    def _send(self, servo: int, parameters: bytes) -> bool:
        f = self.faults
        if servo not in self.ids or servo in f.missing:
            return False
        answer = packet(servo, STATUS, bytes([0x80 if f.alerts.get(servo) else 0]) + parameters)
        if servo in f.spoilt:
            answer = answer[:-1] + bytes([answer[-1] ^ 0xFF])
        answer = f.garbage + answer
        self._due += f.delay + (10 * len(answer) / self.baudrate if self.baudrate else 0.0)
        time.sleep(max(0.0, self._due - time.monotonic()))
        os.write(self._master, answer)
        return True

    def _write(self, servo: int, address: int, data: bytes) -> None:
        if servo in self.ids and address == TORQUE and data:
            self.torque[servo] = data[0]

    def _memory(self, servo: int) -> bytes:
        if servo not in self.ids:
            return b""
        now, k = self.now, self.ids.index(servo)
        here, before = self.ticks(now)[k], self.ticks(now - 0.01)[k]
        memory = bytearray(256)
        memory[TORQUE] = self.torque[servo]
        memory[HARDWARE_ERROR] = self.faults.alerts.get(servo, 0)
        speed = (here - before) / 0.01 * 2 * math.pi / TICKS_PER_TURN / VELOCITY_UNIT
        position = round(here) + TICKS_PER_TURN * self.turns[servo]
        memory[VELOCITY : VELOCITY + 4] = round(speed).to_bytes(4, "little", signed=True)
        memory[POSITION : POSITION + 4] = position.to_bytes(4, "little", signed=True)
        return bytes(memory)


def emulated(config: GelloConfig, where: Motion, port: str = "") -> ServoEmulator:
    """The leader arm that `config` describes, held at `where(t)` (rad (n,), opening)."""
    return ServoEmulator(lambda t: ticks_of(config, *where(max(t, 0.0))), config.servo_ids, config.baudrate, port)
