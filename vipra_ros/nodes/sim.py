"""ROS shell of the embedded robot: cameras out, scene resets in, who succeeded when.

The arm itself is not here: the simulated controller listens at `host` for the executor's franky, as a
real one would. What the simulator knows of the joints is not published; /joint_states is the executor's.
"""

from __future__ import annotations

import array
import json
import threading
import time
from dataclasses import dataclass

import cv2
import rclpy
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import String

from vipra_ros.config import param
from vipra_ros.nodes.parameters import declare
from vipra_ros.nodes.quality import LATCHED
from vipra_ros.nodes.run import begin
from vipra_ros.sim import scene, tasks
from vipra_ros.sim.server import SimulatorError, TableServer
from vipra_ros.sim.world import Eyes
from vipra_ros.srv import ResetScene


@dataclass(frozen=True)
class SimSettings:
    """Parameters of the node."""

    host: str = param("127.0.0.8", doc="loopback address of the simulated controller, one per robot")
    task: str = param("push", doc="task of the first scene", choices=tasks.TASKS)
    seed: int = param(1000, doc="seed of the first scene", low=0)
    camera_rate: float = param(30.0, doc="images per second and camera", unit="Hz", low=1.0, high=60.0)
    image_size: int = param(128, doc="width and height of an image", unit="px", low=32, high=640)
    jpeg_quality: int = param(95, doc="JPEG quality of the compressed images", low=10, high=100)
    raw_images: bool = param(False, doc="publish sensor_msgs/Image too (1.2 MB a frame at 640 px)")
    fine_meshes: bool = param(False, doc="draw the arm's visual meshes, 3 to 7 times slower than its collision meshes")
    publish_clock: bool = param(False, doc="publish the simulation time on /clock, for use_sim_time")


class SimNode(Node):
    """Publishes cameras and outcome of a `TableServer`."""

    def __init__(self):
        super().__init__("sim")
        self.settings = s = declare(self, SimSettings)
        self.server = TableServer(s.host)
        self._image_out, self._raw_out, self._info_out = {}, {}, {}
        for camera in scene.CAMERAS:
            base = f"camera/{camera}"
            self._image_out[camera] = self.create_publisher(CompressedImage, f"{base}/image_raw/compressed",
                                                            qos_profile_sensor_data)
            self._info_out[camera] = self.create_publisher(CameraInfo, f"{base}/camera_info", qos_profile_sensor_data)
            if s.raw_images:
                self._raw_out[camera] = self.create_publisher(Image, f"{base}/image_raw", qos_profile_sensor_data)
        self._outcome_out = self.create_publisher(String, "sim/outcome", LATCHED)
        self._clock_out = self.create_publisher(Clock, "/clock", 10) if s.publish_clock else None
        self.create_service(ResetScene, "sim/reset", self._reset)
        self._judge_lock = threading.Lock()
        self._running, self._failure = threading.Event(), None
        self._draw = threading.Thread(target=self._draw_loop, name="cameras", daemon=True)

    def __enter__(self) -> SimNode:
        self.server.__enter__()
        self._begin(tasks.sample_start(self.settings.task, self.settings.seed), self.settings.seed)
        self._running.set()
        self._draw.start()
        self.get_logger().info(f"simulated FR3 listens at {self.settings.host}")
        return self

    def __exit__(self, *exc: object) -> None:
        self._running.clear()
        self._draw.join(timeout=2.0)
        self.server.__exit__(*exc)

    def _reset(self, request: ResetScene.Request, response: ResetScene.Response) -> ResetScene.Response:
        try:
            start = tasks.sample_start(request.task, request.seed)
            self._begin(start, request.seed)
        except (ValueError, SimulatorError) as error:
            response.success, response.message = False, str(error)
            return response
        response.success, response.instruction = True, start.goal.instruction
        return response

    def _begin(self, start: tasks.Start, seed: int) -> None:
        self.server.place(start)
        with self._judge_lock:
            self._judge, self._seed = tasks.Judge(start.goal), seed
            self._began = self.server.look(lambda world: float(world.data.time))
            self._said = None
        self._say_outcome(self._began)

    def _say_outcome(self, now: float) -> None:
        with self._judge_lock:
            judge = self._judge
            said = (judge.success, judge.acted_on)
            if said == self._said:
                return
            self._said = said
            elapsed = (judge.success_time if judge.success else now) - self._began
            text = {"task": judge.goal.task, "colour": judge.goal.colour, "zone": judge.goal.zone,
                    "instruction": judge.goal.instruction, "success": judge.success, "acted_on": judge.acted_on,
                    "seed": self._seed, "elapsed": round(elapsed, 3)}
        self._outcome_out.publish(String(data=json.dumps(text)))

    @property
    def failure(self) -> BaseException | None:
        """What killed the physics or the cameras, if anything."""
        return self.server.failure or self._failure

    def _draw_loop(self) -> None:
        try:
            self._draw_until_stopped()
        except BaseException as error:  # blind is dead: main ends the process
            self._failure = error

    def _draw_until_stopped(self) -> None:
        eyes = Eyes(self.server.world.model, self.settings.image_size, self.settings.fine_meshes)
        period, due = 1.0 / self.settings.camera_rate, time.monotonic()
        while self._running.is_set():
            data = self.server.freeze()
            stamp = self.get_clock().now().to_msg()
            if self._clock_out:  # the node's own clock hears of this time only after these images
                clock = Clock()
                stamp = clock.clock
                stamp.sec, stamp.nanosec = int(data.time), int(data.time % 1 * 1e9)
                self._clock_out.publish(clock)
            for camera in scene.CAMERAS:
                if self._watched(camera):
                    self._publish(camera, eyes.see(data, camera), stamp)
            snapshot = self.server.world.snapshot()  # of what was drawn
            with self._judge_lock:
                self._judge.see(snapshot)
            self._say_outcome(snapshot.time)
            due = max(due + period, time.monotonic() - period)
            time.sleep(max(0.0, due - time.monotonic()))
        eyes.close()

    def _watched(self, camera: str) -> bool:
        """Whether anybody listens: drawing what nobody sees would slow down the policy beside it."""
        outputs = (o.get(camera) for o in (self._image_out, self._raw_out, self._info_out))
        return any(o.get_subscription_count() for o in outputs if o)

    def _publish(self, camera: str, image, stamp) -> None:
        frame_id = f"{camera}_optical_frame"
        jpeg = cv2.imencode(".jpg", image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, self.settings.jpeg_quality))[1]
        message = CompressedImage(format="jpeg", data=array.array("B", jpeg.tobytes()))
        message.header.stamp, message.header.frame_id = stamp, frame_id
        self._image_out[camera].publish(message)
        if camera in self._raw_out:
            raw = Image(height=image.shape[0], width=image.shape[1], encoding="rgb8", step=3 * image.shape[1],
                        data=array.array("B", image.tobytes()))
            raw.header = message.header
            self._raw_out[camera].publish(raw)
        self._info_out[camera].publish(self._info(camera, message.header))

    def _info(self, camera: str, header) -> CameraInfo:
        size = self.settings.image_size
        focal, centre = scene.focal_length(camera, size), size / 2
        info = CameraInfo(header=header, height=size, width=size, distortion_model="plumb_bob", d=[0.0] * 5)
        info.k = [focal, 0.0, centre, 0.0, focal, centre, 0.0, 0.0, 1.0]
        info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        info.p = [focal, 0.0, centre, 0.0, 0.0, focal, centre, 0.0, 0.0, 0.0, 1.0, 0.0]
        return info


def main(args: list[str] | None = None) -> None:
    """Run the node until SIGINT or SIGTERM; a dead physics thread ends the process with an error."""
    ending = begin(args)
    node = SimNode()
    with node:
        while not ending.is_set() and node.failure is None:
            rclpy.spin_once(node, timeout_sec=0.1)
    node.destroy_node()
    rclpy.try_shutdown()
    if node.failure is not None:
        print(f"sim: ended: {type(node.failure).__name__}: {node.failure}", flush=True)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
