"""`vipra serve`: a checkpoint behind a websocket, for robots that have no computer to think with.

Protocol of openpi's policy server: on connection the server sends its metadata, then every binary message is an
observation and is answered by one with the actions; an answer in text is an error. Beyond that: a token, TLS, limits,
/healthz, the request's `id` sent back, and where the time went. Who hangs up before the network has begun on his
question is not answered. Beside it, on a port of their own, stand the HTTP routes of `routes.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from vipra_ros import __version__
from vipra_ros.config import ConfigError
from vipra_ros.policy.observation import NoAnswer, ObservationError
from vipra_ros.serving.batching import BOUND, MOST, Answer, Batcher
from vipra_ros.serving.contract import Contract, read_token
from vipra_ros.serving.requests import FROM_A_PAGE, Request, read_request, write_reply
from vipra_ros.serving.routes import Routes
from vipra_ros.serving.wire import IN_THE_POLICY, MOST_BYTES, WireError, encode

#: Robots connected at a time; a chunk is asked for a few times a second by each.
MOST_CONNECTIONS = 16
#: Threads that take requests apart, JPEG and JSON included, while the network thinks.
READERS = 2
#: s until a connection that does not answer a ping is closed; frees the place of a robot that lost its network.
PATIENCE = 10.0


@dataclass(frozen=True)
class Access:
    """Who may connect, where, and how much they may send. Empty texts: no token, no TLS.

    http_port: of the HTTP routes; None: there are none, 0: any free one.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str = ""
    certificate: str = ""
    key: str = ""
    most_bytes: int = MOST_BYTES
    http_port: int | None = None

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
        bound, most: of `vipra_ros.serving.batching.Batcher`.
    """

    def __init__(self, engine: object, contract: Contract, access: Access, bound: float = BOUND, most: int = MOST):
        self.engine, self.contract, self.access = engine, contract, access
        self.bound, self.most = bound, most
        self.port, self.http_port = access.port, access.http_port
        self._began, self.answered, self._connections = time.time(), 0, 0
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="requests")
        self._batcher: Batcher | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event | None = None

    async def run(self, ready=lambda: None, signals: bool = False) -> None:
        """Serve until `stop`. ready: called when the port is open (`port` is then known, also for port 0)."""
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        if signals:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._loop.add_signal_handler(number, self._ended.set)
        a = self.access
        self._batcher = Batcher(self.engine, lambda: self._connections, self.bound, self.most)
        batching = asyncio.ensure_future(self._batcher.serve())
        routes = None if a.http_port is None else Routes(self)
        try:
            if routes:
                self.http_port = await routes.open(a.host, a.http_port, a.tls())
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
            if routes:
                routes.close()
            batching.cancel()
            self._readers.shutdown(wait=False, cancel_futures=True)

    def stop(self) -> None:
        """End `run`, from any thread."""
        if self._loop and self._ended:
            self._loop.call_soon_threadsafe(self._ended.set)

    # --- questions -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def place(self) -> Iterator[bool]:
        """A connection's place while it lasts; False when there is none left."""
        free = self._connections < MOST_CONNECTIONS
        self._connections += free
        try:
            yield free
        finally:
            self._connections -= free

    def health(self) -> dict:
        """What /healthz says."""
        up = round(time.time() - self._began, 1)
        counts = {"answered": self.answered, "passes": self._batcher.passes, "connections": self._connections}
        return {"status": "ok", **counts, "uptime_s": up}

    async def ask(self, read: Callable[[], Request], arrived: float) -> tuple[Request, Answer, dict[str, float]]:
        """Read a request in a thread, have it answered; request, answer, and the server's times in ms.

        Raises:
            WireError, ObservationError: what `read` or the engine has against it; the engine may raise others.
        """
        began = time.perf_counter()
        request = await self._loop.run_in_executor(self._readers, read)
        decoded = time.perf_counter()
        answer = await self._batcher.ask(request.observation, request.seed)
        self.answered += 1
        timing = {
            "queue_ms": 1e3 * (began - arrived),
            "decode_ms": 1e3 * (decoded - began),
            "wait_ms": 1e3 * answer.waited,
            "infer_ms": 1e3 * answer.thought,
            "total_ms": 1e3 * (time.perf_counter() - arrived),
            "batch": answer.together,
        }
        return request, answer, timing

    # --- connections ---------------------------------------------------------------------------------------

    def _admit(self, connection: ServerConnection, request):
        """None lets a websocket begin; a response ends the request there."""
        if request.path.partition("?")[0] == "/healthz":
            return connection.respond(HTTPStatus.OK, json.dumps(self.health()) + "\n")
        if "Origin" in request.headers:
            return connection.respond(HTTPStatus.FORBIDDEN, FROM_A_PAGE + "\n")
        if not self.access.lets_in(request.headers.get("Authorization")):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "wrong or missing token\n")
        if self._connections >= MOST_CONNECTIONS:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST_CONNECTIONS} robots are connected\n")
        return None

    async def _talk(self, connection: ServerConnection) -> None:
        with self.place() as free:
            try:
                if not free:  # others were admitted in the same moment
                    await connection.close(1013, f"{MOST_CONNECTIONS} robots are connected")
                    return
                await connection.send(encode({**self.contract.message(), "server": f"vipra_ros {__version__}"}))
                gone = asyncio.ensure_future(connection.wait_closed())
                async for data in connection:
                    reply = asyncio.ensure_future(self._reply(data, time.perf_counter()))
                    await asyncio.wait((reply, gone), return_when=asyncio.FIRST_COMPLETED)
                    if not reply.done():
                        reply.cancel()
                        return
                    await connection.send(reply.result())
            except ConnectionClosed:
                pass

    async def _reply(self, data: bytes | str, arrived: float) -> bytes | str:
        """A message of a robot -> the answer, in text what is wrong."""
        if isinstance(data, str):
            return "send MessagePack in a binary message, as openpi-client does"
        try:
            found = await self.ask(lambda: read_request(data, self.contract, self.access.most_bytes), arrived)
        except (WireError, ObservationError, NoAnswer) as error:
            return f"{type(error).__name__}: {error}"
        except Exception as error:  # the next request may be a better one; the operator reads the text
            return f"{type(error).__name__} {IN_THE_POLICY} {error}"
        return write_reply(*found, self.contract)


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
    engine: str,
    device: str,
    euler_steps: int,
    weights: str,
    threads: int,
    most_mb: float,
    http_port: int | None,
    batch_ms: float,
    batch: int | None,
) -> None:
    """`vipra serve`: load, warm up, serve until Ctrl-C."""
    access = Access(host, port, read_token(token_file), tls_cert, tls_key, int(most_mb * 2**20), http_port)
    access.tls()  # said before the network is loaded
    if not 0.0 <= batch_ms <= 1000.0 or (batch is not None and batch < 1):
        raise ConfigError(f"--batch-ms {batch_ms:g} --batch {batch}: wait 0 to 1000 ms for at least 1 observation")
    from vipra_ros.policy.engine import open_engine
    from vipra_ros.policy.shipped import resolve

    made = open_engine(resolve(checkpoint), engine, device, threads, euler_steps, weights=weights)
    if (batch or 1) > 1 and not made.batches:
        raise ConfigError(f"--batch {batch} with --engine {made.name}, which takes one observation at a time: choose "
                          "--engine torch, or leave --batch out")
    made.warm_up()
    loaded = made.checkpoint
    server = PolicyServer(made, Contract.of(loaded), access, batch_ms / 1e3, batch or MOST)
    secure = "s" if tls_cert else ""

    def ready() -> None:
        where = f"{loaded.hash[:16]}, {made.name} on {made.device}"
        print(f"serving {checkpoint} ({where}) on ws{secure}://{host}:{server.port}", flush=True)
        if server.http_port is not None:
            print(f"/step, /step_bytes, /reset on http{secure}://{host}:{server.http_port}", flush=True)

    asyncio.run(server.run(ready, signals=True))
