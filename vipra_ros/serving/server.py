"""`vipra serve`: a checkpoint behind a websocket, for robots that have no computer to think with.

Protocol of openpi's policy server: on connection the server sends its metadata, then every binary message is an
observation and is answered by one with the actions; an answer in text is an error. Beyond that: a token, TLS, limits,
/healthz, the request's `id` sent back, and where the time went. The network is asked by one thread, in the order of
arrival: a second robot waits for the first.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import signal
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from vipra_ros import __version__
from vipra_ros.config import ConfigError
from vipra_ros.policy.observation import Observation, ObservationError
from vipra_ros.policy.pictures import from_jpeg
from vipra_ros.serving.contract import Contract, read_token
from vipra_ros.serving.wire import MOST_BYTES, WireError, decode, encode

#: Robots connected at a time; a chunk is asked for a few times a second by each.
MOST_CONNECTIONS = 16
#: Pixels of one image: a camera of 4K.
MOST_PIXELS = 3840 * 2160
#: s until a connection that does not answer a ping is closed; frees the place of a robot that lost its network.
PATIENCE = 10.0


@dataclass(frozen=True)
class Access:
    """Who may connect, where, and how much they may send. Empty texts: no token, no TLS."""

    host: str = "127.0.0.1"
    port: int = 8000
    token: str = ""
    certificate: str = ""
    key: str = ""
    most_bytes: int = MOST_BYTES

    def __post_init__(self) -> None:
        if not (_loopback(self.host) or self.token):
            raise ConfigError(
                f"host {self.host}: others than this machine could drive the policy; give --token-file FILE, "
                "or serve on 127.0.0.1"
            )
        if bool(self.certificate) != bool(self.key):
            raise ConfigError("TLS needs both --tls-cert and --tls-key")

    def tls(self) -> ssl.SSLContext | None:
        """The server's side of TLS, None without; ConfigError when the files are unusable."""
        if not self.certificate:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"--tls-cert {self.certificate}, --tls-key {self.key}: {error}") from None
        return context

    def lets_in(self, authorization: str | None) -> bool:
        """Whether a request's header carries the token: `Bearer TOKEN`, or openpi-client's `Api-Key TOKEN`."""
        scheme, _, given = (authorization or "").partition(" ")
        right = hmac.compare_digest(given.strip().encode(), self.token.encode())
        return not self.token or (right and scheme.lower() in ("bearer", "api-key"))


class PolicyServer:
    """Serves an engine on its own event loop; `run` returns after `stop`.

    Args:
        engine: a `vipra_ros.policy.engine.Engine`.
        contract: what it promises.
    """

    def __init__(self, engine: object, contract: Contract, access: Access):
        self.engine, self.contract, self.access = engine, contract, access
        self.port = access.port
        self._began, self.answered, self._connections = time.time(), 0, 0
        self._thinker = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event | None = None

    async def run(self, ready=lambda: None, signals: bool = False) -> None:
        """Serve until `stop`. ready: called when the port is open (`port` is then known, also for port 0)."""
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        if signals:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._loop.add_signal_handler(number, self._ended.set)
        a = self.access
        try:
            server = serve(
                self._talk,
                a.host,
                a.port,
                ssl=a.tls(),
                process_request=self._admit,
                max_size=a.most_bytes,
                max_queue=2,
                compression=None,
                ping_interval=PATIENCE,
                ping_timeout=PATIENCE,
                close_timeout=1.0,
                server_header=None,
            )
            async with server as running:
                self.port = running.sockets[0].getsockname()[1]
                ready()
                await self._ended.wait()
        except OSError as error:
            raise ConfigError(f"cannot serve on {a.host} port {a.port}: {error.strerror or error}") from None
        finally:
            self._thinker.shutdown(wait=False, cancel_futures=True)

    def stop(self) -> None:
        """End `run`, from any thread."""
        if self._loop and self._ended:
            self._loop.call_soon_threadsafe(self._ended.set)

    # --- connections ---------------------------------------------------------------------------------------

    def _admit(self, connection: ServerConnection, request):
        """None lets a websocket begin; a response ends the request there."""
        if request.path.partition("?")[0] == "/healthz":
            state = {"status": "ok", "answered": self.answered, "connections": self._connections}
            up = round(time.time() - self._began, 1)
            return connection.respond(HTTPStatus.OK, json.dumps({**state, "uptime_s": up}) + "\n")
        if not self.access.lets_in(request.headers.get("Authorization")):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "wrong or missing token\n")
        if self._connections >= MOST_CONNECTIONS:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST_CONNECTIONS} robots are connected\n")
        return None

    async def _talk(self, connection: ServerConnection) -> None:
        self._connections += 1
        try:
            await connection.send(encode({**self.contract.message(), "server": f"vipra_ros {__version__}"}))
            async for data in connection:
                arrived = time.perf_counter()
                if isinstance(data, str):
                    await connection.send("send MessagePack in a binary message, as openpi-client does")
                    continue
                try:
                    answer = await self._loop.run_in_executor(self._thinker, self._answer, data, arrived)
                except (WireError, ObservationError) as error:
                    answer = f"{type(error).__name__}: {error}"
                except Exception as error:  # the next request may be a better one; the operator reads the text
                    answer = f"{type(error).__name__} in the policy: {error}"
                await connection.send(answer)
        except ConnectionClosed:
            pass
        finally:
            self._connections -= 1

    def _answer(self, data: bytes, arrived: float) -> bytes:
        """An observation's bytes -> an answer's; in the thread of the network."""
        began = time.perf_counter()
        message = decode(data, self.access.most_bytes)
        observation = read_observation(message, self.contract)
        seed = message.get("seed")
        if not (seed is None or type(seed) is int and 0 <= seed < 2**63):
            raise ObservationError(f"seed = {str(seed)[:40]}: expected a whole number, 0 or more")
        decoded = time.perf_counter()
        prediction = self.engine.infer(observation, seed)
        ended = time.perf_counter()
        self.answered += 1
        timing = {
            "wait_ms": 1e3 * (began - arrived),
            "decode_ms": 1e3 * (decoded - began),
            "infer_ms": 1e3 * (ended - decoded),
            "total_ms": 1e3 * (ended - arrived),
        }
        reply = {self.contract.actions: prediction.actions, "policy_timing": prediction.timing, "server_timing": timing}
        if type(message.get("id")) is int:
            reply["id"] = message["id"]
        return encode(reply)


def read_observation(message: dict, contract: Contract) -> Observation:
    """The observation in a message; images as arrays (frames, H, W, 3) or lists of JPEG bytes.

    Raises:
        ObservationError: something is missing or of another shape; names the key.
    """
    frames = {}
    for camera in contract.cameras:
        key = contract.key(camera)
        value = message.get(key)
        if isinstance(value, list) and value and all(isinstance(v, bytes) for v in value):
            if len(value) != contract.frames:
                raise ObservationError(f"{key}: {len(value)} images; expected {contract.frames}, oldest first")
            try:
                pictures = [from_jpeg(v, MOST_PIXELS) for v in value]
            except ValueError as error:
                raise ObservationError(f"{key}: {error}") from None
            if len({p.shape for p in pictures}) > 1:
                raise ObservationError(f"{key}: images of different sizes")
            value = np.stack(pictures)
        shape = f"uint8 ({contract.frames}, H, W, 3) or a list of {contract.frames} JPEG"
        if not isinstance(value, np.ndarray):
            raise ObservationError(f"{key} is {'missing' if value is None else type(value).__name__}; expected {shape}")
        if value.dtype != np.uint8 or value.ndim != 4 or value.shape[0] != contract.frames or 0 in value.shape:
            raise ObservationError(f"{key}: {value.dtype} {value.shape}; expected {shape}")
        frames[camera] = value
    words = message.get(contract.prompt)
    if not isinstance(words, str) or not words.strip():
        raise ObservationError(f"{contract.prompt}: {str(words)[:40]!r}; expected the instruction in words")
    joints = message.get(contract.state)
    if joints is not None:
        if not isinstance(joints, np.ndarray) or joints.dtype.kind != "f" or joints.ndim not in (1, 2):
            raise ObservationError(f"{contract.state}: expected an array of numbers (n, {contract.columns})")
        joints = np.atleast_2d(joints).astype(float)
    return Observation(0.0, frames, words, joints)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main(
    checkpoint: str,
    host: str,
    port: int,
    token_file: str,
    tls_cert: str,
    tls_key: str,
    device: str,
    threads: int,
    most_mb: float,
) -> None:
    """`vipra serve`: load, warm up, serve until Ctrl-C."""
    access = Access(host, port, read_token(token_file), tls_cert, tls_key, int(most_mb * 2**20))
    access.tls()  # said before the network is loaded
    from vipra_ros.policy.checkpoint import Checkpoint
    from vipra_ros.policy.engine import load_engine
    from vipra_ros.policy.shipped import resolve

    loaded = Checkpoint.load(resolve(checkpoint), device)
    engine = load_engine(loaded, threads=threads)
    engine.warm_up()
    server = PolicyServer(engine, Contract.of(loaded), access)
    scheme = "wss" if tls_cert else "ws"
    asyncio.run(
        server.run(
            lambda: print(
                f"serving {checkpoint} ({loaded.hash[:16]}, {device}) on {scheme}://{host}:{server.port}", flush=True
            ),
            signals=True,
        )
    )
