"""Every check on fake /proc and /sys trees: what is well, what may work, what will not, and what to do."""

import json
import os
import re
import resource
import shutil
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vipra_ros.config import ConfigError
from vipra_ros.control.profile import load_profile
from vipra_ros.doctor import cameras, checkpoint, disk, gello, machine, network, report, robot
from vipra_ros.doctor.report import FAIL, OK, WARN, Finding
from vipra_ros.policy.shipped import resolve
from vipra_ros.robot.claim import Claim, Claimed
from vipra_ros.teleop.bus import BusError, Reading

FR3 = load_profile("fr3")


def tree(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("files, real, level", [
    ({"sys/kernel/realtime": "1\n"}, True, OK),
    ({"proc/version": "Linux 6.8.1 #1 SMP PREEMPT_RT"}, True, OK),
    ({"proc/version": "Linux 6.8.1 #1 SMP PREEMPT_DYNAMIC"}, False, WARN),
    ({"proc/version": "Linux 6.8.1 #1 SMP PREEMPT_DYNAMIC"}, True, FAIL),
    ({}, False, WARN),
])
def test_kernel(tmp_path, files, real, level):
    assert machine.kernel(tree(tmp_path, files), real).level == level


@pytest.mark.parametrize("names, level", [((), OK), (("performance", "performance"), OK),
                                          (("performance", "powersave"), WARN)])
def test_governor(tmp_path, names, level):
    tree(tmp_path, {f"sys/devices/system/cpu/cpu{i}/cpufreq/scaling_governor": n for i, n in enumerate(names)})
    found = machine.governor(tmp_path)
    assert found.level == level and (level == OK or "1 x powersave" in found.text)


@pytest.mark.parametrize("capabilities, soft, real, level", [
    ("0000000000800000", 0, True, OK), ("0", 99, True, OK), ("0", resource.RLIM_INFINITY, True, OK),
    ("0", 0, False, WARN), ("0", 98, True, FAIL),
])
def test_rtprio(tmp_path, capabilities, soft, real, level):
    tree(tmp_path, {"proc/self/status": f"Name: x\nCapEff:\t{capabilities}\n"})
    assert machine.rtprio(tmp_path, lambda what: (soft, resource.RLIM_INFINITY), real).level == level


def test_clock():
    def broken():
        raise OSError(1, "not permitted")
    assert machine.clock(lambda: (True, 0.002)).level == OK
    assert [machine.clock(s).level for s in (lambda: (False, 16.0), lambda: (True, 0.2), broken)] == [WARN] * 3
    assert isinstance(machine.kernel_clock()[0], bool) and machine.kernel_clock()[1] >= 0.0


@pytest.mark.parametrize("error, environment, text, fix", [
    ("exiting with 102", {"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}, "exiting with 102", "unset RMW_IMPLEMENTATION"),
    ("No module named 'rclpy._rclpy'", {}, "No module named 'rclpy._rclpy'", "without the other ROS 2"),
    ("No module named 'vipra_ros.msg'", {}, "messages are not built", "colcon build and source install/setup.bash"),
])
def test_a_ros_that_cannot_be_imported(error, environment, text, fix):
    found = machine.ros(environment, lambda name: True, lambda: error)
    assert (found.level, found.text) == (FAIL, text) and fix in found.fix


def test_a_middleware_that_is_not_there_ends_no_doctor(monkeypatch):
    pytest.importorskip("rclpy")
    monkeypatch.setenv("RMW_IMPLEMENTATION", "rmw_none_cpp")
    assert "rmw_none_cpp" in machine.import_error.__wrapped__()


def test_ros():
    assert machine.ros({"ROS_DOMAIN_ID": "7"}, lambda name: True, str).text.endswith("domain 7")
    assert machine.ros({}, lambda name: False, str).level == WARN
    old = machine.ros({"ROS_DISTRO": "humble"}, lambda name: name == "rclpy", str)
    assert old.level == FAIL and old.text == "humble is too old for the nodes"


@pytest.mark.parametrize("text, level", [("212992", WARN), ("2147483647", OK), ("", WARN)])
def test_receive_buffer(tmp_path, text, level):
    assert network.receive_buffer(tree(tmp_path, {"proc/sys/net/core/rmem_max": text})).level == level


def test_transport():
    name, profile = "FASTDDS_BUILTIN_TRANSPORTS", Path("/x/fastdds.xml")
    for fine in ({}, {name: "DEFAULT"}, {"RMW_IMPLEMENTATION": "rmw_zenoh_cpp", name: "LARGE_DATA"}):
        assert network.transport(fine, profile).level == OK
    old, new = "FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"
    jazzy = {"ROS_DISTRO": "jazzy"}  # Fast DDS 2 reads the old name alone
    for given, said in (({old: "mine.xml"}, "Fast DDS with mine.xml"), ({new: "mine.xml"}, "Fast DDS with mine.xml"),
                        ({}, f"{new}={profile}"), (jazzy, f"{old}={profile}"),
                        (jazzy | {new: "mine.xml"}, f"{old}={profile}")):
        found = network.transport(given, profile)
        assert found.level == OK and said in found.text
    alone = network.transport({name: "LARGE_DATA"}, profile)
    assert alone.level == WARN and f"unset {name}" in alone.fix and str(profile) in alone.fix


def test_shared_memory(tmp_path):
    for free, level in ((64 << 20, WARN), (1 << 30, OK)):
        assert network.shared_memory(tmp_path, lambda folder, f=free: SimpleNamespace(free=f)).level == level
    assert network.shared_memory(tmp_path / "none", shutil.disk_usage).level == WARN


ROUTES = """Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth1\t000010AC\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""


@pytest.mark.parametrize("host, files, level, said", [
    ("172.16.0.2", {"eth1/mtu": "1500", "eth1/speed": "1000"}, OK, "eth1, MTU 1500, 1000 Mbit/s"),
    ("172.16.0.2", {"eth1/mtu": "1400"}, FAIL, "MTU 1400"),
    ("172.16.0.2", {"eth1/mtu": "1500", "eth1/speed": "100"}, WARN, "100 Mbit/s"),
    ("172.16.0.2", {"eth1/mtu": "1500", "eth1/wireless/link": ""}, FAIL, "wireless"),
    ("10.0.0.5", {"eth0/mtu": "1500"}, WARN, "through 192.168.1.1"),
    ("127.0.0.8", {"lo/mtu": "65536"}, OK, "a simulated arm"),
])
def test_way_to_the_arm(tmp_path, host, files, level, said):
    tree(tmp_path, {"proc/net/route": ROUTES} | {f"sys/class/net/{k}": v for k, v in files.items()})
    found = network.way(host, tmp_path)
    assert found.level == level and said in found.text


def test_no_way_to_the_arm(tmp_path):
    assert network.way("172.16.0.2", tmp_path).level == FAIL
    assert network.way("not an address", tmp_path).level == FAIL
    mistyped = robot.look("172..16.0.2", FR3, ask=pytest.fail)
    assert [(f.check, f.level) for f in mistyped[1:]] == [("way to the arm", FAIL), ("robot server", FAIL)]


def test_an_arm_that_a_process_of_this_machine_drives_is_left_alone(monkeypatch):
    monkeypatch.setattr(robot, "handshake", lambda host: pytest.fail("the arm was contacted"))
    claim = Claim("127.0.77.98")
    found = robot.look("127.0.77.98", FR3, ask=pytest.fail)[-1]
    assert (found.check, found.level) == ("robot server", WARN) and found.fix.startswith("end it first")
    assert f"process {os.getpid()} of this machine drives the arm" in found.text
    claim.release()

    def handshake(host):
        with pytest.raises(Claimed):  # nobody begins to drive it while we look
            Claim(host)
        raise OSError("nobody")

    monkeypatch.setattr(robot, "handshake", handshake)
    assert robot.look("127.0.77.98", FR3, ask=pytest.fail)[-1].level == FAIL
    Claim("127.0.77.98").release()


def test_round_trip():
    assert network.round_trip([0.0002] * 50).level == OK
    assert network.round_trip([0.0002] * 45 + [0.0008] * 5).level == WARN
    slow = [0.0002] * 45 + [0.002] * 5
    assert (network.round_trip(slow).level, network.round_trip(slow, simulated=True).level) == (FAIL, WARN)
    cut = network.connecting("127.0.77.99")
    assert cut.level == FAIL and "50 connections to 127.0.77.99 failed" in cut.text and "cable" in cut.fix


def test_robot_server_versions():
    assert robot.server((0, 10)).level == OK
    assert "version 8, franky 10" in robot.server((1, 8)).text


def test_what_is_no_control_unit():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def answer():
            with listener.accept()[0] as peer:
                peer.recv(64)
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(robot.Stranger, match="no control unit"):
            robot.handshake("127.0.0.1", listener.getsockname()[1])
        thread.join()


def test_franky_version():
    files = ["franky/__init__.py", "franky_control.libs/libfranka-b351eea7.so.0.21.2"]
    assert robot.library(lambda n: "2.0.0", lambda n: files).text == "franky-control 2.0.0, libfranka 0.21.2"
    assert robot.library(lambda n: "1.1.0", lambda n: None).level == WARN

    def absent(name):
        raise robot.metadata.PackageNotFoundError(name)
    assert robot.library(absent).level == FAIL


def arm(**changes):
    return robot.ArmReport(**{"mode": "Idle", "errors": "", "q": FR3.home, "tightened": FR3} | changes)


def test_arm_state_pose_and_limits():
    assert robot.readiness(arm()).level == OK
    assert robot.readiness(arm(mode="UserStopped")).level == WARN
    assert robot.readiness(arm(mode="Reflex", errors="joint_velocity_violation")).level == FAIL
    assert robot.pose(arm(), FR3).level == OK
    outside = robot.pose(arm(q=(*FR3.home[:6], FR3.q_max[6])), FR3)
    assert outside.level == WARN and "joint 7 is 0.05 rad outside" in outside.text
    assert robot.limits(arm(), FR3).level == OK
    assert robot.limits(arm(tightened=None), FR3).level == WARN
    stricter = FR3.tightened(q_min=np.array(FR3.q_min), q_max=np.array(FR3.q_max) - [0.1, 0, 0, 0, 0, 0, 0],
                             velocity=np.array(FR3.velocity))
    assert "upper of joint 1 (2.7001, arm 2.6501)" in robot.limits(arm(tightened=stricter), FR3).text
    assert robot.limits(arm(refusal="joint 3 is too fast"), FR3).level == FAIL


def test_gello_port_and_its_group(tmp_path):
    assert gello.port(str(tmp_path / "none")).level == FAIL
    assert "no device" in gello.port(str(tree(tmp_path, {"file": ""}) / "file")).text
    primary, secondary = os.openpty()
    try:
        path = os.ttyname(secondary)
        assert gello.port(path).level == OK
        refused = gello.port(path, access=lambda path, mode: False)
        assert refused.level == FAIL and "usermod -aG" in refused.fix
    finally:
        os.close(primary), os.close(secondary)


def test_latency_timer(tmp_path):
    file = "bus/usb-serial/devices/ttyUSB0/latency_timer"
    slow = gello.latency("/dev/ttyUSB0", tree(tmp_path, {file: "16\n"}))
    assert slow.level == WARN and "16 ms" in slow.text and slow.fix.startswith("echo 1 | sudo tee")
    assert gello.latency("/dev/ttyUSB0", tree(tmp_path, {file: "1"})).text == "1 ms"
    assert gello.latency("/dev/ttyACM0", tmp_path).level == OK


class Bus:
    def __init__(self, duration, baudrate=57600):
        self.duration, self.baudrate = duration, baudrate

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def read(self):
        if self.duration is None:
            raise BusError("/dev/x: no answer from servo 3; check the cable")
        return Reading(0.0, self.duration, np.zeros(8, int), np.zeros(8), np.zeros(8))


def test_servos():
    assert gello.servos(lambda: Bus(0.004)).level == OK
    assert gello.servos(lambda: Bus(0.038)).level == OK, "what 190 bytes and eight answers take"
    assert gello.servos(lambda: Bus(0.05)).level == WARN
    slow = gello.servos(lambda: Bus(0.02, 1000000))
    assert slow.level == WARN and "5.9 ms at 1000000 baud" in slow.text and "latency timer" in slow.fix
    assert gello.servos(lambda: Bus(None)).fix == "check the cable"


def sample(**changes):
    n = 120
    fields = dict(topic="/camera/front", seconds=4.0, arrivals=[i / 30 for i in range(n)], ages=[0.02] * n,
                  digests=[bytes([i]) for i in range(n)], sizes=[30_000] * n, shape=(480, 640), publishers=1,
                  reliabilities=["best_effort"])
    return cameras.Sample(**fields | changes)


def test_a_good_camera():
    assert [f.level for f in cameras.judge(sample())] == [OK] * 5
    still = sample(digests=[b"x"] * 120)  # nothing moves on a simulated table before the arm does
    assert {f.level for f in cameras.judge(still)} == {OK, FAIL}
    assert {f.level for f in cameras.judge(still, simulated=True)} == {OK, WARN}


@pytest.mark.parametrize("changes, check, level", [
    ({"publishers": 0}, "publisher", FAIL),
    ({"publishers": 2}, "publisher", WARN),
    ({"mismatch": "incompatible"}, "QoS", FAIL),
    ({"arrivals": [1.0]}, "rate", FAIL),
    ({"arrivals": [i / 10 for i in range(120)]}, "rate", WARN),
    ({"arrivals": [i / 30 + 0.2 * (i // 20) for i in range(120)]}, "rate", WARN),
    ({"silence": 2.0}, "rate", FAIL),
    ({"invalid": "topic name must not contain a space"}, "topic", FAIL),
    ({"digests": [b"x"] * 120}, "pictures", FAIL),
    ({"digests": [bytes([i // 4]) for i in range(120)]}, "pictures", WARN),
    ({"shape": (0, 0)}, "size", FAIL),
    ({"sizes": [3_000_000] * 120}, "size", WARN),
    ({"ages": [0.5] * 120}, "stamp", WARN),
    ({"ages": [-1.0] * 120}, "stamp", FAIL),
])
def test_a_camera_with_a_fault(changes, check, level):
    bad = [f for f in cameras.judge(sample(**changes)) if f.level != OK]
    assert [(f.check.split()[1], f.level) for f in bad] == [(check, level)] and bad[0].fix


def test_disk(tmp_path):
    assert [disk.room(tmp_path, lambda f, n=n: n).level for n in (10**8, 5 * 10**9, 10**11)] == [FAIL, WARN, OK]
    speeds = [disk.speed(tmp_path, lambda f, s, v=v: v).level for v in (10**6, 40 * 10**6, 10**9)]
    assert speeds == [FAIL, WARN, OK]
    assert disk.speed(tmp_path / "none").level == disk.room(tmp_path / "none").level == FAIL
    assert "4 MB, synced" in disk.speed(tmp_path, size=4 * 10**6).text and not list(tmp_path.iterdir())


def test_checkpoint(tmp_path):
    tiny = resolve("models/tiny")
    assert [f.level for f in checkpoint.compatibility(tiny, FR3)] == [OK, OK]
    wrong = checkpoint.compatibility(tiny, load_profile("panda"))
    assert [f.level for f in wrong] == [OK, FAIL] and "panda" in wrong[1].text
    assert checkpoint.compatibility(tmp_path, FR3)[0].level == FAIL


def test_a_discrete_policy_is_for_simulated_arms(monkeypatch):
    refusal = ConfigError("a discrete decoder; take a continuous policy")
    monkeypatch.setattr(checkpoint, "check_deployment", lambda *a, **k: (_ for _ in ()).throw(refusal))
    for real, level in ((False, WARN), (True, FAIL)):
        found = checkpoint.compatibility(resolve("models/tiny"), FR3, real)[1]
        assert (found.check, found.level, found.fix) == ("decoder", level, "take a continuous policy")


def test_gpu_memory(tmp_path):
    def smi(out, code=0):
        return lambda *a, **k: SimpleNamespace(stdout=out, returncode=code)
    found = checkpoint.gpus(smi("NVIDIA RTX 4090, 20000, 24564\nNVIDIA T4, 300, 15360\n"))
    assert found == [("NVIDIA RTX 4090", 20000 << 20, 24564 << 20), ("NVIDIA T4", 300 << 20, 15360 << 20)]
    assert checkpoint.gpus(smi("", 9)) == []
    assert checkpoint.memory(None, found).level == OK
    assert checkpoint.memory(None, found[1:]).level == FAIL
    assert checkpoint.memory(None, []).level == OK
    with (tmp_path / "policy.safetensors").open("wb") as file:
        file.truncate(8000 << 20)  # sparse
    assert checkpoint.memory(tmp_path, []).level == WARN and checkpoint.memory(tmp_path, found).level == OK


def test_findings_need_a_fix_unless_all_is_well():
    for level, fix in ((OK, "x"), (WARN, ""), ("GOOD", "")):
        with pytest.raises(ValueError):
            Finding("a", "b", level, "c", fix)


def test_report():
    found = [Finding("machine", "a", OK, "x"), Finding("disk", "b", WARN, "y", "do z")]
    assert report.status(found) == 0 and report.status([*found, Finding("disk", "c", FAIL, "y", "z")]) == 1
    text = report.as_text(found, {"robot": "--robot IP"})
    assert "  OK   a: x" in text and "       -> do z" in text and "robot (--robot IP)" in text
    long = Finding("disk", "/camera/front/image_raw/compressed pictures", WARN, "all are the same " * 6, "do --z " * 30)
    text = report.as_text([*found, long], {"robot": "--robot IP"}, colour=True)
    assert "\x1b[33mWARN\x1b[0m /camera" in text and "\n          do --z" in text
    assert all(len(re.sub(r"\x1b\[\d+m", "", line)) <= 80 for line in text.splitlines())
    table = json.loads(report.as_json(found, {}))
    assert table["ok"] and table["counts"] == {"OK": 1, "WARN": 1, "FAIL": 0}
    broken = report.guarded("machine", "kernel", lambda: 1 / 0)
    assert broken[0].level == FAIL and "ZeroDivisionError" in broken[0].text


def test_a_camera_of_another_machine_may_be_hidden(monkeypatch):
    monkeypatch.delenv("ROS_AUTOMATIC_DISCOVERY_RANGE", raising=False)
    assert "RANGE" not in cameras.judge(sample(publishers=0))[0].fix
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    assert "=LOCALHOST hides those of other machines" in cameras.judge(sample(publishers=0))[0].fix
