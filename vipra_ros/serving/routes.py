"""The HTTP routes of ViPRA's public inference server, for clients that were written for it.

    POST /reset       {"task_description"}                             -> {"status", "message"}
    POST /step        {"image": [[[[r, g, b], ...]]], ...}             -> {"raw_actions": rows}
    POST /step_bytes  form: image0, image1, ... as JPEG or PNG files   -> {"raw_actions": rows}

(sroutray/vipra, vipra/inference/dynamics_action_cont_server.py and its sister with proprio; the wire is theirs,
errors included: {"detail": text}.) Images are one camera's frames, oldest first, then the next one's. Both steps
take `task_description`, else the words of the last /reset from the same address, and `proprio`: rows of numbers, in
the form as float32 bytes. Beyond it: the token, TLS, limits and batches of the websocket, `seed`, times in the reply.

Not as there: the rows are in the robot's units, where the public client multiplies by a deviation and adds a mean.

HTTP/1.1 by hand, as much as this takes: a body has a Content-Length, and is not read before its size and its sender's
token are known. Everything a stranger may send has a limit in bytes and one in seconds.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import TYPE_CHECKING

import numpy as np

from vipra_ros.config import ConfigError
from vipra_ros.policy.observation import NoAnswer, Observation, ObservationError
from vipra_ros.serving.contract import Contract
from vipra_ros.serving.requests import FROM_A_PAGE, MOST_PIXELS, Request, read_pictures, read_seed
from vipra_ros.serving.wire import IN_THE_POLICY, MOST_TEXT, WireError

if TYPE_CHECKING:
    from vipra_ros.serving.server import PolicyServer

#: Bytes of a request's head; lists of a JSON body (a pixel is one, of three numbers); parts of a form.
MOST_HEAD, MOST_LISTS, MOST_PARTS = 16 << 10, 1 << 19, 32
#: s between two looks at whether somebody still waits for an answer.
GLANCE = 0.1
#: s for a request to arrive whole, and that an idle connection is kept.
PATIENCE = 10.0
#: Addresses whose last /reset is remembered; connections, of which those with a token and a question count as robots.
REMEMBERED = MOST_OPEN = 64


class _Refused(Exception):
    """A request ends with this status and text; `last`: the connection with it, for its body was not read."""

    def __init__(self, status: HTTPStatus, text: str, last: bool = False):
        super().__init__(text)
        self.status, self.last = status, last


class Routes:
    """Serves the routes on the event loop and with the engine of a `PolicyServer`."""

    def __init__(self, server: PolicyServer):
        self._server = server
        self._words: OrderedDict[str, str] = OrderedDict()
        self._open = 0
        self._listening: asyncio.Server | None = None

    async def open(self, host: str, port: int, tls: ssl.SSLContext | None) -> int:
        """Listen; the port, also for port 0. ConfigError when it cannot be had."""
        patience = {} if tls is None else {"ssl_handshake_timeout": PATIENCE}
        try:
            self._listening = await asyncio.start_server(self._talk, host, port, ssl=tls, limit=MOST_HEAD, **patience)
        except OSError as error:
            raise ConfigError(f"--http-port {port}: cannot serve there: {error.strerror or error}") from None
        return self._listening.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Accept nobody any more."""
        if self._listening:
            self._listening.close()

    # --- HTTP ----------------------------------------------------------------------------------------------

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        last = self._open > MOST_OPEN
        try:
            while not last:
                try:
                    status, body, last = await self._answer(reader, writer)
                except _Refused as error:
                    status, body, last = error.status, {"detail": str(error)}, error.last
                writer.write(_response(status, body, last))
                await asyncio.wait_for(writer.drain(), PATIENCE)
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass  # it left, or is too slow, or its head has no end: there is nobody to tell
        finally:
            self._open -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple:
        """One request: status, body, whether the connection ends."""
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        arrived = time.perf_counter()
        method, path, fields = _read_head(head)
        if path == "/healthz":
            return HTTPStatus.OK, self._server.health(), True
        if "origin" in fields:
            raise _Refused(HTTPStatus.FORBIDDEN, FROM_A_PAGE, True)
        if not self._server.access.lets_in(fields.get("authorization")):
            raise _Refused(HTTPStatus.UNAUTHORIZED, "wrong or missing token", True)
        steps = {"/reset": self._reset, "/step": self._step, "/step_bytes": self._step_bytes}
        if path not in steps:
            raise _Refused(HTTPStatus.NOT_FOUND, f"no route {path[:40]}; there are {', '.join(steps)}", True)
        if method != "POST":
            raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes POST", True)
        length, most = fields.get("content-length", ""), self._server.access.most_bytes
        if not re.fullmatch(r"\d{1,12}", length) or "transfer-encoding" in fields:
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "send the body whole, with a Content-Length", True)
        if int(length) > most:
            text = f"a body of {length} bytes; at most {most} are taken: send smaller images"
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text, True)
        last, peer = fields.get("connection", "").lower() == "close", writer.get_extra_info("peername")[0]
        with self._server.place() as free:
            if not free:
                raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many robots are asking", True)
            if fields.get("expect", "").lower() == "100-continue":
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            data = await asyncio.wait_for(reader.readexactly(int(length)), PATIENCE)
            try:
                asked = steps[path](data, fields.get("content-type", ""), peer, arrived)
                return HTTPStatus.OK, await _while_there(reader, asked), last
            except EOFError:
                raise
            except (WireError, ObservationError, NoAnswer) as error:
                raise _Refused(HTTPStatus.BAD_REQUEST, str(error), last) from None
            except Exception as error:  # the next request may be a better one; the operator reads the text
                text = f"{type(error).__name__} {IN_THE_POLICY} {error}"
                raise _Refused(HTTPStatus.INTERNAL_SERVER_ERROR, text, last) from None

    # --- routes --------------------------------------------------------------------------------------------

    async def _reset(self, data: bytes, kind: str, peer: str, arrived: float) -> dict:
        words = read_json(data).get("task_description")
        if not isinstance(words, str) or not 0 < len(words) <= MOST_TEXT:
            raise ObservationError("task_description: expected the instruction in words")
        self._words[peer] = words
        self._words.move_to_end(peer)
        if len(self._words) > REMEMBERED:
            self._words.popitem(last=False)
        return {"status": "success", "message": "the instruction for this address is set"}

    async def _step(self, data: bytes, kind: str, peer: str, arrived: float) -> dict:
        words = self._words.get(peer)
        return await self._ask(lambda: read_step(read_json(data), self._server.contract, words), arrived)

    async def _step_bytes(self, data: bytes, kind: str, peer: str, arrived: float) -> dict:
        words = self._words.get(peer)
        return await self._ask(lambda: read_step_bytes(read_form(data, kind), self._server.contract, words), arrived)

    async def _ask(self, read: Callable[[], Request], arrived: float) -> dict:
        _, answer, timing = await self._server.ask(read, arrived)
        rows = answer.prediction.actions.tolist()
        unknown = {"unknown_words": list(w)} if (w := answer.prediction.unknown_words) else {}
        return {"raw_actions": rows, "policy_timing": answer.prediction.timing, "server_timing": timing, **unknown}


async def _while_there(reader: asyncio.StreamReader, answer: Coroutine) -> dict:
    """The answer; EOFError when whoever asked has hung up, who needs none and makes place for another."""
    task = asyncio.ensure_future(answer)
    try:
        while not (await asyncio.wait({task}, timeout=GLANCE))[0]:
            if reader.at_eof() or reader.exception():
                raise EOFError
        return task.result()
    finally:
        task.cancel()


# --- what was sent -------------------------------------------------------------------------------------------


def read_json(data: bytes) -> dict:
    """A JSON object; WireError when it is none, or has too many lists."""
    if (lists := data.count(b"[") + data.count(b"{")) > MOST_LISTS:
        raise WireError(f"{lists} lists in one body; at most {MOST_LISTS}: send smaller images, or use /step_bytes")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WireError(f"no JSON: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(found, dict):
        raise WireError(f"a body is an object, not {type(found).__name__}")
    return found


def read_form(data: bytes, kind: str) -> dict[str, bytes]:
    """name -> content of the parts of a multipart/form-data body (RFC 7578); WireError when it is none."""
    found = re.search(r'boundary="?([^";,\s]{1,70})', kind)
    if not kind.lower().startswith("multipart/form-data") or not found:
        raise WireError("send multipart/form-data with a boundary")
    parts = (b"\r\n" + data).split(b"\r\n--" + found[1].encode(), MOST_PARTS + 1)
    if len(parts) > MOST_PARTS or not parts[-1].startswith(b"--"):
        raise WireError(f"a form without its end, or with more than {MOST_PARTS - 2} parts")
    form = {}
    for part in parts[1:-1]:
        head, blank, content = part.partition(b"\r\n\r\n")
        name = re.search(rb'\bname="([^"]{1,64})"', head[:MOST_HEAD])
        if not blank or not name:
            raise WireError("a part of the form without a name")
        form[name[1].decode("ascii", "replace")] = content
    return form


def read_step(message: dict, contract: Contract, words: str | None) -> Request:
    """The request in the body of /step; ObservationError names what is missing or of another shape."""
    images, count = message.get("image"), contract.frames * len(contract.cameras)
    if not isinstance(images, list) or len(images) != count:
        raise ObservationError(f"image: expected {count} images (H, W, 3) as lists, oldest first, camera by camera")
    pictures = [_pixels(f"image[{i}]", image) for i, image in enumerate(images)]
    frames = {}
    for camera, those in _by_camera(pictures, contract):
        if len({p.shape for p in those}) > 1:
            raise ObservationError("image: images of different sizes")
        frames[camera] = np.stack(those)
    joints = message.get("proprio")
    if joints is not None:
        joints = _numbers("proprio", joints)
        if joints.ndim != 2 or joints.dtype.kind not in "fiu":
            raise ObservationError(f"proprio: expected rows of {contract.columns} numbers")
    return _request(frames, message.get("task_description"), words, joints, read_seed(message.get("seed")), contract)


def read_step_bytes(form: dict[str, bytes], contract: Contract, words: str | None) -> Request:
    """The request in the form of /step_bytes; ObservationError names what is missing or of another shape."""
    names = [f"image{i}" for i in range(contract.frames * len(contract.cameras))]
    if missing := [name for name in names if name not in form]:
        raise ObservationError(f"{missing[0]} is missing; expected {', '.join(names)}, oldest first, camera by camera")
    frames = {camera: read_pictures(f"images of {camera}", [form[n] for n in those], contract.frames)
              for camera, those in _by_camera(names, contract)}
    joints, text = form.get("proprio"), form.get("task_description")
    if joints is not None:
        if not joints or len(joints) % (4 * contract.columns):
            raise ObservationError(f"proprio: {len(joints)} bytes; expected float32 rows of {contract.columns}")
        joints = np.frombuffer(joints, "<f4").reshape(-1, contract.columns)
    seed = form.get("seed")
    if seed is not None:
        seed = int(seed) if re.fullmatch(rb"\d{1,19}", seed) else seed
    text = None if text is None else text[:MOST_TEXT].decode("utf-8", "replace")
    return _request(frames, text, words, joints, read_seed(seed), contract)


def _request(frames: dict, given: object, words: str | None, joints: np.ndarray | None, seed: int | None,
             contract: Contract) -> Request:
    text = words if given is None else given
    if not isinstance(text, str) or not text.strip() or len(text) > MOST_TEXT:
        raise ObservationError("task_description: expected the instruction in words, here or in /reset")
    return Request(Observation(0.0, frames, text, None if joints is None else joints.astype(float)), seed)


def _by_camera(items: list, contract: Contract):
    for i, camera in enumerate(contract.cameras):
        yield camera, items[i * contract.frames : (i + 1) * contract.frames]


def _pixels(name: str, rows: object) -> np.ndarray:
    """Nested lists as uint8 (H, W, 3)."""
    found = _numbers(name, rows)
    if found.ndim != 3 or found.shape[2] != 3 or not found.size or found.dtype.kind not in "iu":
        raise ObservationError(f"{name}: expected rows of pixels of three whole numbers")
    if found.min() < 0 or found.max() > 255 or found.size > 3 * MOST_PIXELS:
        raise ObservationError(f"{name}: values beyond 0 .. 255, or a picture that is too large")
    return found.astype(np.uint8)


def _numbers(name: str, rows: object) -> np.ndarray:
    """Nested lists of numbers. Objects first: NumPy gives every element of a list the length of its longest text."""
    try:
        found = np.array(rows, dtype=object)
        kinds = set(map(type, found.flat))
        if kinds <= {int, float}:
            return found.astype(float if float in kinds else np.int64)
    except (ValueError, TypeError, OverflowError):
        pass
    raise ObservationError(f"{name}: expected numbers, in lists of the same length")


def _read_head(head: bytes) -> tuple[str, str, dict[str, str]]:
    """Method, path without its query, and header fields by lower-case name."""
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    found = re.fullmatch(r"([A-Z]{1,16}) (/[!-~]*) HTTP/1\.[01]", first)
    fields = {}
    for line in lines:
        name, colon, value = line.partition(":")
        # A field given twice could be read in two ways by us and by a proxy before us.
        if not colon or name != name.strip() or name.lower() in fields:
            found = None
        fields[name.lower()] = value.strip()
    if not found:
        raise _Refused(HTTPStatus.BAD_REQUEST, "no HTTP request", True)
    return found[1], found[2].partition("?")[0], fields


def _response(status: HTTPStatus, body: dict, last: bool) -> bytes:
    data = json.dumps(body).encode()
    fields = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    fields += f"Connection: {'close' if last else 'keep-alive'}\r\n"
    return f"HTTP/1.1 {status.value} {status.phrase}\r\n{fields}\r\n".encode() + data
