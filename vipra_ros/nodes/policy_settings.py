"""Parameters of the policy node; no ROS here, so that tools can read them anywhere."""

from __future__ import annotations

from dataclasses import dataclass

from vipra_ros.config import ConfigError, param
from vipra_ros.policy.device import check_device
from vipra_ros.policy.observation import HistorySettings
from vipra_ros.policy.scheduler import MODES
from vipra_ros.policy.weights import WEIGHTS, check_weights


@dataclass(frozen=True)
class PolicySettings:
    """Parameters of the node."""

    checkpoint: str = param("models/tiny", doc="checkpoint folder, or the name of a shipped one")
    instruction: str = param("", doc="what to do, in words; may change later on the topic policy/instruction")
    engine: str = param(
        "auto",
        doc="what computes: auto (fused on a CPU, else torch), torch, onnx, tensorrt, fused, static, or remote, a "
        "policy server",
        choices=("auto", "torch", "onnx", "tensorrt", "fused", "static", "remote"),
    )
    device: str = param("auto", doc="where it computes: auto (a GPU where torch sees one), cpu, cuda, or cuda:1, the "
                        "second GPU")
    euler_steps: int = param(0, doc="Euler steps of a chunk, fewer are faster; 0: as many as the checkpoint says",
                             low=0, high=1000)
    weights: str = param("full", doc="of the trunk's matrices: full, as in the checkpoint, or 8 bits; dynamic: "
                         "activations in 8 bits, too; of engines torch and static", choices=WEIGHTS)
    server: str = param("", doc="of engine remote: ws://HOST:PORT of `vipra serve` or of an openpi server, wss for TLS")
    server_config: str = param("", doc="YAML file on a server that does not say what it serves")
    token_file: str = param("", doc="file with the token that the server asks for")
    server_ca: str = param("", doc="file of the certificate that signed the server's; empty: those of the system")
    deadline: float = param(1.0, doc="time for an answer of the server", unit="s", low=0.05, high=60.0)
    jpeg: int = param(0, doc="JPEG quality of images on their way to the server, 0: pixels", low=0, high=100)
    profile: str = param("", doc="robot profile that the policy must fit; empty: left to the executor")
    simulated: bool = param(
        False, doc="the arm is a simulated one: discrete policies may drive it; robot:=sim sets it"
    )
    threads: int = param(0, doc="threads of the engine, 0: all processors but one, 4 at most", low=0, high=256)
    mode: str = param(
        "async",
        doc="async: the next chunk is computed while one runs; sync: when it has ended",
        choices=MODES,
    )
    rate: float = param(
        0.0, doc="most chunks per second, 0: as the executed rows ask for", unit="Hz", low=0.0, high=60.0
    )
    rtc: str = param("none", doc="a new chunk goes on from the one the arm executes: guided towards it, or as the "
                     "network was trained to; of engine torch", choices=("none", "guided", "trained"))
    margin: int = param(1, doc="rows still queued when the next chunk is to arrive", low=0, high=10)
    transport: str = param(
        "compressed", doc="camera messages: compressed (JPEG, PNG) or raw", choices=("compressed", "raw")
    )
    camera_topics: tuple[str, ...] = param(
        (), doc="camera=topic for cameras that do not publish on camera/<name>/image_raw[/compressed]"
    )
    follow_executor: bool = param(True, doc="publish only while the executor is ARMED or RUNNING")
    noise_seed: int = param(-1, doc="seed of the sampler's noise, -1: a new one for every chunk", low=-1)
    history: HistorySettings = param(HistorySettings(), doc="frames: tolerance and trust")

    def __post_init__(self) -> None:
        check_device(self.device)
        if self.mode == "sync" and not self.follow_executor:
            raise ConfigError("policy: follow_executor = false with mode = 'sync', where the executor says when a "
                              "chunk has ended; choose mode 'async'")
        if self.engine == "remote":
            for name, value, here in (("rtc", self.rtc, "none"), ("device", self.device, "auto"),
                                      ("euler_steps", self.euler_steps, 0), ("weights", self.weights, "full")):
                if value != here:
                    raise ConfigError(f"policy: {name} = {value!r} with engine = 'remote', where the server computes: "
                                      f"set {name} to {here!r}, or choose engine 'torch'")
            return
        check_weights(self.weights, self.engine, self.rtc)
        if self.rtc != "none" and self.mode == "sync":
            raise ConfigError(f"policy: rtc = {self.rtc!r} with mode = 'sync', where a chunk begins when it arrives "
                              "and goes on from nothing: choose mode 'async', or rtc 'none'")
