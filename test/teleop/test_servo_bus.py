"""The driver and the real SDK against servos emulated on a pty: values, faults, ends."""

import os
import threading
import time

import numpy as np
import pytest

pytest.importorskip("dynamixel_sdk")

from dynamixel_sdk import COMM_RX_TIMEOUT, GroupSyncRead, PacketHandler, PortHandler, Protocol2PacketHandler

from vipra_ros.teleop import emulate
from vipra_ros.teleop.bus import PRESENT, BusError, ServoBus, latency_advice, latency_timer

IDS = (1, 2, 3, 4, 5, 6, 7, 8)
#: Positions whose bytes hold FF FF FD: they must be stuffed on the wire. And negative and many-turn ones.
AWKWARD = (0, 4095, -1, -70000, 0xFDFFFF, -131073, 2048, 123456)


def connect(port, ids=IDS):
    """The driver, patient: servos and driver share an interpreter, and the cores with other tests."""
    return ServoBus(port, ids, patience=0.25)


@pytest.fixture
def servos():
    with emulate.ServoEmulator(lambda t: AWKWARD, IDS) as servos:
        yield servos


def test_every_reading_is_whole_and_right(servos):
    with connect(servos.port) as bus:
        assert set(servos.torque.values()) == {0}
        for _ in range(200):
            reading = bus.read()
            assert tuple(reading.ticks) == AWKWARD and not reading.velocity.any() and not reading.current.any()
        assert 0 < reading.duration < 1.0
        servos.torque = dict.fromkeys(IDS, 1)
    assert set(servos.torque.values()) == {0}  # at the end too


def test_velocity_has_its_unit():
    turn = 2 * np.pi
    with emulate.ServoEmulator(lambda t: [4096 / turn * 0.5 * t], (1,)) as servos, connect(servos.port, (1,)) as bus:
        a = bus.read()
        time.sleep(0.1)
        b = bus.read()
        assert b.velocity[0] == pytest.approx(0.5, abs=0.02)  # the register's unit is 0.024 rad/s
        assert (b.ticks[0] - a.ticks[0]) / 4096 * turn == pytest.approx(0.5 * (b.time - a.time), abs=0.02)


def test_crc_and_stuffing_are_those_of_the_sdk():
    sdk = Protocol2PacketHandler()
    for data in (b"", b"\xff\xff\xfd\x00\x01\x03\x00\x01", bytes(range(256))):
        assert emulate.crc16(data) == sdk.updateCRC(0, data, len(data))
    for body in (b"\xff\xff\xfd", b"\x01\xff\xff\xfd\xff\xff\xfd\xfd", b"plain"):
        assert emulate.unstuff(emulate.stuff(body)) == body
        assert emulate.HEADER + b"\xfd" in emulate.stuff(body) or body == b"plain"
    buffer = bytearray(b"noise" + emulate.packet(3, emulate.PING, b"") + emulate.packet(4, 1, b"x")[:-1])
    assert emulate.split(buffer) == [(3, emulate.PING, b"")]
    assert emulate.split(buffer) == []  # the second one is not whole yet


def test_the_sdk_alone_reads_the_emulator(servos):
    """Nothing of our driver: the emulator is no private dialect."""

    class Patient(PortHandler):  # its 34 ms are for servos with a processor of their own
        def setPacketTimeout(self, packet_length):
            self.setPacketTimeoutMillis(1000.0)

    port, packets = Patient(servos.port), PacketHandler(2.0)
    assert port.openPort()
    try:
        assert packets.ping(port, 3)[:2] == (emulate.MODEL_XL330_M288, 0)
        group = GroupSyncRead(port, packets, 132, 4)
        for i in IDS:
            group.addParam(i)
        assert group.txRxPacket() == 0
        assert [np.int32(np.uint32(group.getData(i, 132, 4))) for i in IDS] == list(AWKWARD)
        servos.faults.missing.add(6)
        assert group.txRxPacket() == COMM_RX_TIMEOUT
    finally:
        port.closePort()


@pytest.mark.parametrize(
    "fault, said, servo",
    [
        (lambda f: f.missing.add(5), r"no answer from servo 5 .*\(-3001\).*cable", 5),
        (lambda f: f.spoilt.add(2), r"spoilt answer from servo 2 .*\(-3002", 2),
        (lambda f: f.alerts.update({7: 0x04}), "servo 7 raises an alert, overheated", 7),
        (lambda f: f.alerts.update({7: 0x24}), "overheated.*overloaded", 7),
        (lambda f: setattr(f, "delay", 0.6), "no answer from servo 1", 1),
    ],
)
def test_a_fault_names_its_servo_and_is_over_when_it_is(servos, fault, said, servo):
    with connect(servos.port) as bus:
        bus.read()
        fault(servos.faults)
        with pytest.raises(BusError, match=said) as caught:
            bus.read()
        assert caught.value.servo == servo and not caught.value.gone and "\n" not in str(caught.value)
        servos.faults = emulate.Faults()
        time.sleep(0.7 if "servo 1" in said else 0.0)
        assert tuple(bus.read().ticks) == AWKWARD


def test_an_alert_is_asked_about_when_the_group_has_answered(servos):
    wire, answer = [], servos._answer
    servos.baudrate = 115200  # twice that of the driver, for a busy machine
    servos.faults.alerts[2] = 0x04

    with connect(servos.port) as bus:
        send = bus._handler.writePort
        bus._handler.writePort = lambda data: (wire.append("asked"), send(data))[1]
        servos._answer = lambda *a: (answer(*a), wire.append("answered"))
        with pytest.raises(BusError, match="servo 2 raises an alert, overheated"):
            bus.read()
        assert wire[:3] == ["asked", "answered", "asked"]


def test_garbage_between_answers_is_passed_over(servos):
    servos.faults.garbage = b"\xff\xff\x00garbage\xff"
    with connect(servos.port) as bus:
        assert tuple(bus.read().ticks) == AWKWARD


def test_endless_garbage_ends(servos):
    with connect(servos.port) as bus:
        talking, servos.faults.missing = threading.Event(), set(IDS)

        def talk():
            while not talking.wait(0.0005):
                os.write(servos._master, b"\x55" * 64)

        thread = threading.Thread(target=talk)
        thread.start()
        try:
            begin = time.monotonic()
            with pytest.raises(BusError):
                bus.read()
            assert time.monotonic() - begin < 2.0
        finally:
            talking.set()
            thread.join()
            servos.faults = emulate.Faults()


def test_a_servo_missing_at_the_start_is_named_and_the_port_is_free_again(servos):
    servos.faults.missing |= {4, 8}
    bus = connect(servos.port)
    with pytest.raises(BusError, match="no answer from servo 4, 8; check the cable"):
        bus.open()
    assert not bus.is_open
    servos.faults.missing = set(IDS)
    bus = ServoBus(servos.port, IDS, patience=0.01)
    with pytest.raises(BusError, match="switch its power on"):
        bus.open()
    servos.faults.missing = set()
    with connect(servos.port) as bus:
        assert len(bus.read().ticks) == 8


def test_a_used_port_stays_with_who_has_it(servos):
    with connect(servos.port) as first:
        with pytest.raises(BusError, match="another program uses the port; end it"):
            connect(servos.port).open()
        assert tuple(first.read().ticks) == AWKWARD


def test_unplugged_and_plugged_in_again(servos):
    bus = connect(servos.port)
    bus.open()
    servos.unplug()
    with pytest.raises(BusError, match="plug the USB cable in again") as caught:
        bus.read()
    assert caught.value.gone
    with pytest.raises(BusError):
        bus.close()
    assert not bus.is_open
    with pytest.raises(BusError, match="no such port"):
        bus.open()
    servos.plug()
    with bus:
        assert tuple(bus.read().ticks) == AWKWARD


def test_what_is_no_servo_bus_is_said(tmp_path):
    with pytest.raises(BusError, match="no such port; .*--port.*com_port"):
        ServoBus(str(tmp_path / "nothing"), IDS).open()
    (tmp_path / "file").write_text("")
    with pytest.raises(BusError, match="is this the serial port"):
        ServoBus(str(tmp_path / "file"), IDS).open()
    with pytest.raises(BusError, match="choose one of 57600"):
        ServoBus("/dev/x", IDS, 12345).open()
    with pytest.raises(BusError, match="not open"):
        ServoBus("/dev/x", IDS).read()
    assert PRESENT == 126


def test_latency_timer_is_read_and_the_fix_is_said(tmp_path):
    folder = tmp_path / "bus/usb-serial/devices/ttyUSB7"
    folder.mkdir(parents=True)
    (folder / "latency_timer").write_text("16\n")
    assert latency_timer("/dev/ttyUSB7", tmp_path) == 16
    said = latency_advice("/dev/ttyUSB7", tmp_path)
    assert "is 16 ms" in said and "echo 1 | sudo tee /sys/bus/usb-serial/devices/ttyUSB7/latency_timer" in said
    (folder / "latency_timer").write_text("1\n")
    assert latency_advice("/dev/ttyUSB7", tmp_path) == ""
    assert latency_timer("/dev/ttyACM0", tmp_path) is None and latency_advice("/dev/ttyACM0", tmp_path) == ""
