"""The servo bus of a leader arm: Dynamixel XL330 and XC330 over Protocol 2.0, on dynamixel-sdk.

One group read returns position, velocity and current of all servos. Every failure is a :class:`BusError` that
names the port or the servo and the remedy; a reading is whole or there is none. The port is opened exclusively,
and a port that another program uses is reported, never taken from it. Torque is switched off when the bus opens
and again when it closes: a leader arm that pushes back is another device.

Register addresses: ROBOTIS e-Manual, control table of the XL330-M288 (the XC330 has the same).
"""

from __future__ import annotations

import errno
import math
import os
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TICKS_PER_TURN = 4096
TORQUE_ENABLE, HARDWARE_ERROR = 64, 70
#: Current (2 bytes), velocity (4), position (4) lie side by side.
PRESENT, PRESENT_LENGTH = 126, 10
CURRENT_UNIT = 1.0  # mA
VELOCITY_UNIT = 0.229 * 2 * math.pi / 60  # rad/s
BAUDRATES = (57600, 115200, 1000000)
SUCCESS, TIMEOUT = 0, -3001  # the SDK's COMM_SUCCESS and COMM_RX_TIMEOUT
ALERT = 0x80
#: Bits of the hardware error register.
ALERTS = {
    0x01: "input voltage out of range: check the power supply",
    0x04: "overheated: let it cool down",
    0x10: "electrical shock or too little power: check power supply and cable",
    0x20: "overloaded: see what blocks the joint",
}
#: s, the answer of a servo may be this late beyond the time its bytes take; a USB latency timer of 16 ms fits.
PATIENCE = 0.034
#: s, the SDK polls without a pause; a read that waits this long lets other threads run.
POLL = 0.004
#: Bytes of a request to no servo, and of one servo's answer; s that a servo waits before it answers, from the factory.
REQUEST, ANSWER, RETURN_DELAY = 14, 11 + PRESENT_LENGTH, 0.0005


def read_time(servos: int, baudrate: int) -> float:
    """s that a group read of so many servos takes on the wire: 10 bits a byte."""
    return 10 * (REQUEST + servos * (1 + ANSWER)) / baudrate + servos * RETURN_DELAY


class BusError(RuntimeError):
    """The bus or a servo does not answer as it should; the message names it and the remedy.

    Attributes:
        servo: id of the servo, 0 when the whole bus is meant.
        gone: the port itself has failed; it must be opened anew.
    """

    def __init__(self, text: str, servo: int = 0, gone: bool = False):
        super().__init__(text)
        self.servo, self.gone = servo, gone


@dataclass(frozen=True)
class Reading:
    """One group read.

    Attributes:
        time: s, middle of the read, on the bus' clock.
        duration: s, from the request to the last answer.
        ticks: int64 (n,), 4096 a turn, more than one turn possible.
        velocity: rad/s (n,); current: mA (n,).
    """

    time: float
    duration: float
    ticks: np.ndarray
    velocity: np.ndarray
    current: np.ndarray


def latency_timer(port: str, root: str | Path = "/sys") -> int | None:
    """ms that the USB adapter of `port` holds bytes back; None when it has no such setting (no FTDI chip)."""
    path = Path(root, "bus/usb-serial/devices", Path(os.path.realpath(port)).name, "latency_timer")
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def latency_advice(port: str, root: str | Path = "/sys") -> str:
    """What to do about the adapter's latency timer; empty when all is well."""
    value = latency_timer(port, root)
    if value is None or value <= 1:
        return ""
    name = Path(os.path.realpath(port)).name
    return (
        f"the USB latency timer of {name} is {value} ms, 1 ms is needed for a steady rate; type: echo 1 | sudo tee "
        f"/sys/bus/usb-serial/devices/{name}/latency_timer"
    )


class ServoBus:
    """Servos `ids` at the serial `port`; a context manager.

    Args:
        baudrate: one of BAUDRATES, as set in the servos.
        clock: monotonic, s.
        patience: s, see PATIENCE.

    Raises:
        BusError: from every method.
    """

    def __init__(
        self,
        port: str,
        ids: Sequence[int],
        baudrate: int = 57600,
        clock: Callable[[], float] = time.monotonic,
        patience: float = PATIENCE,
    ):
        self.port, self.ids, self.baudrate = port, tuple(int(i) for i in ids), baudrate
        self._clock, self._patience = clock, patience
        self._handler = self._packets = self._group = None

    @property
    def is_open(self) -> bool:
        """Whether the port is held."""
        return self._handler is not None

    def open(self) -> None:
        """Take the port, find every servo, switch torque off."""
        self._handler, self._packets, self._group = self._take_port()
        try:
            self.ping()
            self.torque_off()
        except BusError:
            self._let_go()
            raise

    def close(self) -> None:
        """Switch torque off and let go of the port. Raises when a servo did not confirm; the port is free anyway."""
        if self.is_open:
            try:
                self.torque_off()
            finally:
                self._let_go()

    def __enter__(self) -> ServoBus:
        self.open()
        return self

    def __exit__(self, kind: type | None, *exc: object) -> None:
        try:
            self.close()
        except BusError:
            if kind is None:
                raise

    # --- what servos do ------------------------------------------------------------------------------------

    def ping(self) -> None:
        """Ask every servo whether it is there."""
        missing = []
        for i in self.ids:
            _, result, _ = self._do(lambda i=i: self._packets.ping(self._handler, i))
            if result == TIMEOUT:
                missing.append(i)
            else:
                self._check(result, 0, i, "ping")
        if missing:
            names = ", ".join(map(str, missing))
            remedy = (
                f"switch its power on, check the cable and the baud rate ({self.baudrate})"
                if len(missing) == len(self.ids)
                else "check the cable to it, and its id with Dynamixel Wizard"
            )
            raise BusError(f"{self.port}: no answer from servo {names}; {remedy}", missing[0])

    def torque_off(self) -> None:
        """Every joint moves freely."""
        for i in self.ids:
            result, error = self._do(lambda i=i: self._packets.write1ByteTxRx(self._handler, i, TORQUE_ENABLE, 0))
            self._check(result, error & ~ALERT, i, "torque off")  # an alerted servo has let go already

    def read(self) -> Reading:
        """Position, velocity and current of all servos, in the order of `ids`; one request for all."""
        begin = self._clock()
        self._do(lambda: self._handler.clearPort())  # bytes of an answer that came too late belong to nothing
        self._check(self._do(lambda: self._group.txPacket()), 0, 0, "group read")
        rows = []
        for i in self.ids:
            data, result, error = self._do(lambda i=i: self._packets.readRx(self._handler, i, PRESENT_LENGTH))
            self._check(result, error, i, "group read")
            if len(data) != PRESENT_LENGTH:
                raise BusError(f"{self.port}: servo {i} sent {len(data)} bytes of {PRESENT_LENGTH}; {_NOISE}", i)
            rows.append(bytes(data))
        end = self._clock()
        raw = np.frombuffer(b"".join(rows), np.dtype([("current", "<i2"), ("velocity", "<i4"), ("position", "<i4")]))
        return Reading(
            (begin + end) / 2,
            end - begin,
            raw["position"].astype(np.int64),
            raw["velocity"] * VELOCITY_UNIT,
            raw["current"] * CURRENT_UNIT,
        )

    # --- the SDK -------------------------------------------------------------------------------------------

    def _take_port(self) -> tuple:
        if self.baudrate not in BAUDRATES:
            raise BusError(f"baud rate {self.baudrate}: choose one of {', '.join(map(str, BAUDRATES))}")
        try:
            import dynamixel_sdk as sdk
            import serial
        except ImportError as error:
            raise BusError(
                f"{error.name} is not installed; type in the checkout: pip install '.[robot]'"
            ) from None
        handler = _port_handler(sdk, serial)(self.port, self._clock, self._patience)
        try:
            handler.setBaudRate(self.baudrate)
        except (OSError, termios.error, ValueError) as error:
            raise BusError(f"{self.port}: {_why_not(self.port, error)}", gone=True) from None
        packets = sdk.PacketHandler(2.0)
        group = sdk.GroupSyncRead(handler, packets, PRESENT, PRESENT_LENGTH)
        for i in self.ids:
            group.addParam(i)
        return handler, packets, group

    def _let_go(self) -> None:
        try:
            self._handler.closePort()
        except (OSError, termios.error):
            pass  # an unplugged adapter cannot even be closed
        self._handler = self._packets = self._group = None

    def _do(self, call: Callable) -> object:
        """Run a call of the SDK; what pyserial and the kernel raise there becomes a BusError."""
        if self._handler is None:
            raise BusError(f"{self.port}: the bus is not open; call open() first", gone=True)
        try:
            return call()
        except (OSError, termios.error, TypeError) as error:  # TypeError: pyserial on a port closed meanwhile
            self._handler.is_using = False
            text = f"{self.port}: the connection broke ({error}); plug the USB cable in again"
            raise BusError(text, gone=True) from None

    def _check(self, result: int, error: int, servo: int, what: str) -> None:
        who = f"servo {servo}" if servo else "the bus"
        if result == TIMEOUT:
            text = f"no answer from {who} to {what} ({result}); check its cable and power"
        elif result != SUCCESS:
            text = f"spoilt answer from {who} to {what} ({result}, {self._packets.getTxRxResult(result)}); {_NOISE}"
        elif error & ALERT:
            text = f"{who} raises an alert, {self._alert(servo)}; then switch its power off and on"
        elif error:
            text = f"{who} refused {what}: {self._packets.getRxPacketError(error)}; is it an XL330 or XC330?"
        else:
            return
        raise BusError(f"{self.port}: {text}", servo)

    def _alert(self, servo: int) -> str:
        # Servos behind it in the group are still to answer, on the same wire.
        time.sleep(read_time(len(self.ids), self.baudrate))
        self._do(lambda: self._handler.clearPort())
        # The error bit stays set in this answer too: it is the value that counts.
        value, result, _ = self._do(lambda: self._packets.read1ByteTxRx(self._handler, servo, HARDWARE_ERROR))
        if result != SUCCESS:
            return "and does not say which"
        return "; ".join(text for bit, text in ALERTS.items() if value & bit) or f"code {value}: see its manual"


_NOISE = "check cables and plugs, and that no other program uses the port"


def _port_handler(sdk, serial) -> type:
    """The SDK's port handler with three differences: exclusive, blocking in short waits, on a monotonic clock."""

    class Port(sdk.PortHandler):
        def __init__(self, name: str, clock: Callable[[], float], patience: float):
            super().__init__(name)
            self._clock, self._patience, self._limit = clock, patience, math.inf

        def setupPort(self, cflag_baud: int) -> bool:
            self.ser = serial.Serial(self.port_name, self.baudrate, timeout=POLL, write_timeout=0.5, exclusive=True)
            self.is_open = True
            self.ser.reset_input_buffer()
            self.tx_time_per_byte = 1000.0 / self.baudrate * 10.0  # ms: 8 bits, start and stop
            return True

        def setPacketTimeout(self, packet_length: int) -> None:
            self.setPacketTimeoutMillis(self.tx_time_per_byte * packet_length + 1e3 * self._patience)

        def setPacketTimeoutMillis(self, msec: float) -> None:
            super().setPacketTimeoutMillis(msec)
            self._limit = self._clock() + 2e-3 * msec + 0.1

        def readPort(self, length: int) -> bytes:
            # The SDK looks for its time-out only when bytes are missing: endless garbage would keep it for ever.
            if self._clock() > self._limit:
                raise serial.SerialException("the port never falls silent, something else talks on it")
            return self.ser.read(length)

        def getCurrentTime(self) -> float:
            return self._clock() * 1e3

    return Port


def _why_not(port: str, error: Exception) -> str:
    code = getattr(error, "errno", None)
    text = str(error)
    if code == errno.ENOENT or not os.path.exists(port):
        others = sorted(str(p) for p in Path("/dev/serial/by-id").glob("*"))
        what = f"give one of these (--port, or com_port of its file): {', '.join(others)}" if others else \
            "none is there to be given with --port or com_port"
        return f"no such port; plug the leader arm in; {what}"
    if code in (errno.EACCES, errno.EPERM) and not os.access(port, os.R_OK | os.W_OK):
        return "not allowed; type: sudo usermod -aG dialout $USER, then log in again"
    if code in (errno.EBUSY, errno.EAGAIN, errno.EWOULDBLOCK) or "exclusively lock" in text:
        return f"another program uses the port; end it (fuser -v {port} shows which)"
    return f"cannot be opened ({text}); is this the serial port of the leader arm?"
