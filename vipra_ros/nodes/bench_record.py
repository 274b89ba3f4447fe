"""`vipra bench record`: what the recorder keeps of two 640x480 cameras at 30 Hz, beside a running simulator.

Simulator and executor run as always; the big cameras are a process of its own that publishes pictures prepared
beforehand and remembers every stamp, so that what is missing in the bag is known message by message.
"""

from __future__ import annotations

import array
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import rclpy
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import Trigger

from vipra_ros import graph
from vipra_ros.config import ConfigError
from vipra_ros.data import messages
from vipra_ros.data.bags import EpisodeReader, find_bags
from vipra_ros.json_file import json_writer
from vipra_ros.machine import in_words
from vipra_ros.nodes.session import START_TIMEOUT, Session
from vipra_ros.nodes.system import SessionError, System, processor_time
from vipra_ros.up import end_with_parent

WIDTH, HEIGHT, RATE = 640, 480, 30.0
CAMERAS = ("left", "right")
#: Pictures prepared; their JPEG is as large as that of a lit room.
PICTURES, QUALITY = 30, 90
#: s that publisher and recorder get to find each other before the episode, and to deliver the last messages.
BEFORE, AFTER = 8.0, 0.3


def run(seconds: float = 60.0, raw_seconds: float = 20.0, out: str = "", json_path: str = "") -> int:
    """Measure compressed, then raw; 1 when a compressed picture was lost."""
    save, folder = json_writer(json_path), Path(out or tempfile.mkdtemp(prefix="vipra-bench-"))
    for kind in ("compressed", "raw"):
        if (folder / kind).exists():
            raise ConfigError(f"--out {folder} holds the bag of an earlier run ({kind}); name another folder")
    results = {"machine": in_words(), "runs": {}}
    for kind, length in (("compressed", seconds), ("raw", raw_seconds)):
        if length > 0:
            results["runs"][kind] = measured = measure(kind, length, folder / kind)
            _print(kind, length, measured)
    save(results)
    lost = sum(c["sent"] - c["kept"] for c in results["runs"].get("compressed", {}).get("cameras", ()))
    return int(lost > 0)


def measure(kind: str, seconds: float, folder: Path) -> dict:
    """Record `seconds` of the cameras, `kind` compressed or raw, into `folder`."""
    folder.mkdir(parents=True)
    with System(system="sim", log=folder / "system.log") as system:
        environment = {**os.environ, **graph.environment("recorder", simulated=True)}
        environment["ROS_DOMAIN_ID"] = str(system.domain)
        session = Session(system.domain, system.check)
        recorder = _recorder(kind, folder, environment)
        try:
            session.until(
                lambda: session.executor_status is not None and session.scene_ready(), START_TIMEOUT, "the simulator"
            )
            context = multiprocessing.get_context("spawn")
            ours, theirs = context.Pipe()
            cameras = context.Process(target=_cameras, args=(kind, system.domain, theirs), daemon=True)
            cameras.start()
            if not ours.poll(START_TIMEOUT):
                raise SessionError("the cameras did not start")
            ours.recv()
            _call(session, "start", wait=START_TIMEOUT, settle=BEFORE)
            begin, busy = session.now, processor_time(recorder.pid)
            time.sleep(seconds)
            end, busy = session.now, processor_time(recorder.pid) - busy
            time.sleep(AFTER)
            _call(session, "success")
            ours.send("stop")
            sent = ours.recv()
            cameras.join(timeout=5.0)
        finally:
            session.close()
            recorder.send_signal(signal.SIGINT)
            recorder.wait(timeout=60.0)
    return _figures(kind, folder, sent, begin, end) | {"recorder_cpu": round(busy / (end - begin), 3)}


def _recorder(kind: str, folder: Path, environment: dict[str, str]) -> subprocess.Popen:
    parameters = [f"record:={graph.yaml_scalar(str(folder))}", "operator:=bench"]
    if kind == "compressed":
        parameters.append("cameras:=[left,right,front,wrist]")
    else:
        topics = ["joint_states", "executor/joint_command", "executor/gripper_command"]
        topics += [f"camera/{c}/image_raw=sensor_msgs/msg/Image" for c in CAMERAS]
        parameters += ["cameras:=[front,wrist]", f"topics:=[{','.join(topics)}]"]
    words = [w for p in parameters for w in ("-p", p)]
    return subprocess.Popen(
        [sys.executable, "-m", "vipra_ros.cli", "node", "recorder", "--ros-args", *words],
        env=environment,
        stdout=(folder / "recorder.log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=lambda: end_with_parent(signal.SIGINT),
    )


def _call(session: Session, name: str, wait: float = 10.0, settle: float = 0.0) -> None:
    client = session.node.create_client(Trigger, f"recorder/{name}")
    session.until(client.service_is_ready, wait, f"recorder/{name}")
    time.sleep(settle)
    future = client.call_async(Trigger.Request())
    session.until(future.done, 10.0, f"an answer of recorder/{name}")
    if not future.result().success:
        raise SessionError(f"recorder/{name}: {future.result().message}")


def _cameras(kind: str, domain: int, pipe) -> None:
    """A process: two cameras at 30 Hz until told to stop; answers with camera -> stamps, and bytes of a picture."""
    os.environ.update(graph.environment("sim", simulated=True))  # as the nodes have it
    context = rclpy.Context()
    rclpy.init(args=[], context=context, domain_id=domain)
    node = rclpy.create_node("cameras", context=context)
    message, pictures = (CompressedImage, _jpegs()) if kind == "compressed" else (Image, _raws())
    topic = "image_raw/compressed" if kind == "compressed" else "image_raw"
    out = {c: node.create_publisher(message, f"camera/{c}/{topic}", qos_profile_sensor_data) for c in CAMERAS}
    info = {c: node.create_publisher(CameraInfo, f"camera/{c}/camera_info", qos_profile_sensor_data) for c in CAMERAS}
    stamps: dict[str, list[int]] = {c: [] for c in CAMERAS}
    pipe.send("ready")
    due, number = time.monotonic(), 0
    while not pipe.poll():
        for camera in CAMERAS:
            picture = pictures[number % len(pictures)]
            stamp = node.get_clock().now()
            picture.header.stamp, picture.header.frame_id = stamp.to_msg(), camera
            out[camera].publish(picture)
            info[camera].publish(CameraInfo(header=picture.header, width=WIDTH, height=HEIGHT))
            stamps[camera].append(stamp.nanoseconds)
        number += 1
        due += 1.0 / RATE
        time.sleep(max(0.0, due - time.monotonic()))
    size = sum(len(p.data) for p in pictures) / len(pictures)
    pipe.send((stamps, size))
    node.destroy_node()
    context.shutdown()


def _scenes() -> list[np.ndarray]:
    """Moving structure of all sizes, BGR."""
    rng = np.random.default_rng(0)
    scene = np.zeros((HEIGHT, 2 * WIDTH, 3), np.float32)
    for cells, strength in ((8, 60), (32, 30), (120, 14)):
        coarse = rng.normal(size=(cells, 2 * cells, 3)).astype(np.float32)
        scene += strength * cv2.resize(coarse, (2 * WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    noise = rng.normal(scale=3.0, size=(HEIGHT, WIDTH, 3))
    return [np.clip(scene[:, 8 * k : 8 * k + WIDTH] + 128 + noise, 0, 255).astype(np.uint8) for k in range(PICTURES)]


def _jpegs() -> list[CompressedImage]:
    encoded = [cv2.imencode(".jpg", s, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))[1].tobytes() for s in _scenes()]
    return [CompressedImage(format="jpeg", data=array.array("B", data)) for data in encoded]


def _raws() -> list[Image]:
    fields = dict(height=HEIGHT, width=WIDTH, encoding="bgr8", step=3 * WIDTH)
    return [Image(**fields, data=array.array("B", s.tobytes())) for s in _scenes()]


def _figures(kind: str, folder: Path, sent: tuple, begin: float, end: float) -> dict:
    """Sent against recorded, by the stamps of the pictures sent between `begin` and `end` (s)."""
    stamps, size = sent
    topic = "camera/{}/image_raw/compressed" if kind == "compressed" else "camera/{}/image_raw"
    (bag,) = find_bags([folder])
    with EpisodeReader(bag) as reader:
        meta, kept = reader.meta(), {}
        for name, _, _, raw in reader.messages([topic.format(c) for c in CAMERAS]):
            kept.setdefault(name, set()).add(messages.header_stamp(raw))
    cameras = []
    for camera in CAMERAS:
        due = [s for s in stamps[camera] if begin * 1e9 < s < end * 1e9]
        name = topic.format(camera)
        found = len(kept.get(name, set()) & set(due))
        cameras.append({"topic": name, "sent": len(due), "kept": found, "picture_kb": round(size / 1000, 1)})
    others = {
        t: {k: r[k] for k in ("received", "lost", "rate", "gap")}
        for t, r in meta["reception"].items()
        if t.startswith("camera/front/image") or t in ("joint_states", "executor/joint_command")
    }
    mb = sum(f.stat().st_size for f in bag.iterdir()) / 1e6
    return {"cameras": cameras, "others": others, "bag_mb": round(mb, 1), "seconds": round(end - begin, 2)}


def _print(kind: str, seconds: float, measured: dict) -> None:
    print(f"{kind}: {seconds:g} s of 2 x {WIDTH}x{HEIGHT} at {RATE:g} Hz beside simulator and executor; {in_words()}")
    for c in measured["cameras"]:
        lost = c["sent"] - c["kept"]
        print(f"  {c['topic']:38} sent {c['sent']}, in the bag {c['kept']}, lost {lost} "
              f"({100 * lost / max(1, c['sent']):.2f} %), {c['picture_kb']:.0f} kB each")
    for topic, r in measured["others"].items():
        print(f"  {topic:38} {r['received']} at {r['rate']:.1f} Hz, {r['lost']} missing, widest gap {r['gap']:.3f} s")
    busy = f"recorder {measured['recorder_cpu']:.0%} of a core"
    print(f"  bag {measured['bag_mb']} MB in {measured['seconds']} s; {busy}")
