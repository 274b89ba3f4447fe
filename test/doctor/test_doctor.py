"""The doctor against what is really there: the simulated controller, emulated servos, cameras of a real ROS graph."""

import json
import socket
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest

from vipra_ros import cli
from vipra_ros.control.profile import load_profile
from vipra_ros.doctor import robot
from vipra_ros.doctor.report import FAIL, OK, WARN

HOST = "127.0.77.31"
FR3 = load_profile("fr3")
SIMULATION = """
import sys, time
from vipra_ros.sim.server import TableServer
with TableServer(sys.argv[1]) as server:
    print("up", flush=True)
    while server.failure is None:
        time.sleep(0.2)
"""


def doctor(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", "--json", *words])
    table = json.loads(capsys.readouterr().out)
    return ended.value.code, table, {(f["area"], f["check"]): f["level"] for f in table["findings"]}


def test_with_nothing_attached(capsys, tmp_path):
    code, table, found = doctor(capsys, "--out", str(tmp_path))
    assert code == int(FAIL in found.values()) and set(table["skipped"]) == {"robot", "gello", "cameras", "checkpoint"}
    assert {area for area, _ in found} == {"machine", "network", "disk", "checkpoint"}
    assert all(bool(f["fix"]) == (f["level"] != OK) for f in table["findings"])


def test_what_is_not_there_fails(capsys, tmp_path):
    code, _, found = doctor(capsys, "--out", str(tmp_path), "--robot", "127.0.77.99", "--gello", "/dev/ttyNONE",
                            "--checkpoint", str(tmp_path))
    assert code == 1
    assert found["robot", "robot server"] == found["gello", "port"] == found["checkpoint", "loading"] == FAIL


TWO = """
{arm}: {{com_port: x, joint_signs: [1, 1, 1, 1, 1, 1, 1], assembly_offsets: [0, 0, 0, 0, 0, 0, 0]}}
"""


@pytest.mark.parametrize("text, words, fix", [
    (TWO.format(arm="left") + TWO.format(arm="right"), (), "choose one of left, right"),
    (TWO.format(arm="left") + TWO.format(arm="right"), ("--arm", "right"), None),
    ("com_port: x\njoint_signs: 3\n", (), "--config FILE"), (None, (), "give the path of a YAML configuration"),
])
def test_a_wrong_file_of_leaders_is_a_finding_among_others(capsys, tmp_path, text, words, fix):
    file = tmp_path / "gello.yaml"
    if text is not None:
        file.write_text(text)
    _, table, found = doctor(capsys, "--out", str(tmp_path), "--gello", "/dev/ttyNONE", "--config", str(file), *words)
    assert found["gello", "port"] == FAIL and ("disk", "space") in found
    said = [f["fix"] for f in table["findings"] if f["check"] == "configuration"]
    assert len(said) == (fix is not None) and all(fix in s for s in said)


def test_without_ros_it_still_reports():
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("rclpy", "sensor_msgs"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Block())
from vipra_ros.cli import main
main(["doctor", "--camera", "camera/front/image_raw", "--out", sys.argv[1]])
"""
    done = subprocess.run([sys.executable, "-c", code, "/tmp"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "ROS 2 is not to be found" in done.stdout and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def controller():
    pytest.importorskip("franky_sim")
    process = subprocess.Popen([sys.executable, "-c", SIMULATION, HOST], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "up"
    yield HOST
    process.kill()
    process.wait()


def test_the_simulated_arm(controller, capsys, tmp_path):
    _, table, found = doctor(capsys, "--robot", controller, "--out", str(tmp_path))
    for check in ("franky", "robot server", "state", "pose", "limits"):
        assert found["robot", check] == OK, table
    assert found["network", "way to the arm"] == OK and found["network", "round trip"] in (OK, WARN)


def test_an_arm_that_another_program_holds(controller):
    with socket.create_connection((controller, 1337)):  # the one client that the controller takes
        time.sleep(0.3)
        with pytest.raises(robot.Occupied):
            robot.handshake(controller, patience=0.5)
    time.sleep(0.3)
    assert robot.handshake(controller) == (0, 10)


def test_emulated_servos(capsys, tmp_path):
    pytest.importorskip("dynamixel_sdk")
    from vipra_ros.config import share
    from vipra_ros.teleop.emulate import emulated
    from vipra_ros.teleop.gello import load_gello

    port, config = tmp_path / "leader", load_gello(share("config", "gello.yaml"))
    with emulated(config, lambda t: (np.asarray(FR3.home), 0.5), str(port)) as servos:
        servos.baudrate = 0  # the time of their bytes is left to a busy machine
        _, table, found = doctor(capsys, "--gello", str(port), "--out", str(tmp_path))
    assert found["gello", "port"] == OK and found["gello", "servos"] == OK, table
    assert "8 answer" in json.dumps(table)


def test_cameras_of_a_ros_graph(unused_ros_domain, capsys, tmp_path):
    rclpy = pytest.importorskip("rclpy")
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import CompressedImage
    from std_msgs.msg import String

    context = rclpy.Context()
    rclpy.init(context=context, domain_id=unused_ros_domain)
    node = rclpy.create_node("driver", context=context)
    live, frozen, ending = (
        node.create_publisher(CompressedImage, f"camera/{c}/image_raw/compressed", qos_profile_sensor_data)
        for c in ("live", "frozen", "ending"))
    words = node.create_publisher(String, "words", 1)
    still, over = cv2.imencode(".jpg", np.zeros((48, 64, 3), np.uint8))[1].tobytes(), threading.Event()

    def drive():
        count, heard = 0, 0
        while not over.wait(1 / 30):
            stamp, count = node.get_clock().now().to_msg(), count + 1
            moving = cv2.imencode(".jpg", np.full((48, 64, 3), count % 250, np.uint8))[1].tobytes()
            heard += ending.get_subscription_count() > 0
            for publisher, data in ((live, moving), (frozen, still), *[(ending, moving)] * (heard < 20)):
                message = CompressedImage(format="jpeg", data=data)
                message.header.stamp = stamp
                publisher.publish(message)
            words.publish(String(data="no picture"))
    thread = threading.Thread(target=drive)
    thread.start()
    try:
        topics = [f"/camera/{c}/image_raw/compressed" for c in ("live", "frozen", "absent", "ending")]
        topics += ["/words", "front camera"]
        code, table, found = doctor(capsys, "--out", str(tmp_path), *[w for t in topics for w in ("--camera", t)])
    finally:
        over.set()
        thread.join()
        node.destroy_node()
        rclpy.try_shutdown(context=context)
    assert code == 1
    assert [found["cameras", f"{topics[0]} {c}"] for c in ("QoS", "pictures", "size", "stamp")] == [OK] * 4, table
    assert found["cameras", f"{topics[1]} pictures"] == FAIL and found["cameras", f"{topics[1]} size"] == OK
    assert found["cameras", f"{topics[2]} publisher"] == FAIL and found["cameras", f"{topics[4]} QoS"] == FAIL
    assert found["cameras", "front camera topic"] == found["cameras", f"{topics[3]} rate"] == FAIL
    assert "silent since" in json.dumps(table)
    assert "64x48" in json.dumps(table)
