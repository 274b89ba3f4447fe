"""The engine that asks a policy server: ours, or any that speaks as openpi's does. Needs no torch.

An answer is of use for a fraction of a second, so every request has a deadline; one that missed it takes the
connection with it, and so no late answer can be taken for that to a newer observation. What may heal (nobody there,
too slow, connection lost) is a `NoAnswer`: the loop publishes nothing, says why, and asks again. What may not (wrong
token, another policy than before) is an error that ends the loop.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

from vipra_ros.config import ConfigError
from vipra_ros.policy.observation import NoAnswer, Observation, ObservationError, Prediction
from vipra_ros.policy.pictures import resize, to_jpeg
from vipra_ros.serving.contract import Contract, agree, closing, opening
from vipra_ros.serving.wire import IN_THE_POLICY, MOST_BYTES, WireError, decode, encode

#: s; how often a wait looks whether it is to end. The network stack wakes it for an answer at once.
GLANCE = 0.05


@dataclass(frozen=True)
class Server:
    """Where the policy is. deadline: s for a request, connecting included; the first may take `first` s.

    jpeg: quality 1 .. 100 of images on the wire, 0 sends pixels. describe: YAML file of a Contract. ca: file of the
    certificates that may have signed the server's; empty: those of the system.
    """

    uri: str
    token: str = ""
    deadline: float = 1.0
    first: float = 30.0
    jpeg: int = 0
    describe: str = ""
    ca: str = ""


@dataclass(frozen=True)
class Served:
    """What stands where a loaded checkpoint would."""

    config: Contract
    hash: str


class RemoteEngine:
    """Connects at once; `infer` as of `vipra_ros.policy.engine.Engine`, from one thread; `close` from any.

    Raises:
        NoAnswer: no server there yet.
        ConfigError: it refuses us, or is not described well enough.
    """

    def __init__(self, server: Server):
        self.server = server
        if urlsplit(server.uri).scheme not in ("ws", "wss"):
            raise ConfigError(f"server = {server.uri!r}: write ws://HOST:PORT, or wss://HOST:PORT for TLS")
        self._closed = threading.Event()
        self._connection: ClientConnection | None = None
        self._contract: Contract | None = None
        self._number, self._warm = 0, False
        self._connect(time.monotonic() + server.deadline)
        self.checkpoint = Served(self._contract, self._contract.hash or urlsplit(server.uri).netloc)

    def warm_up(self) -> None:
        """One inference on blank frames: shows that the server takes what we send."""
        c = self._contract
        size = c.image_size or 224
        frames = np.zeros((2, size, size, 3), np.uint8)
        joints = np.zeros((max(c.joints, 1), len(c.joint_names) + 1))
        self.infer(Observation(0.0, dict.fromkeys(c.cameras, frames), "warm up", joints), seed=0)

    def infer(self, observation: Observation, seed: int | None = None) -> Prediction:
        """Ask the server. timing: its stages, and `overhead`: what wire, codec and server added, in ms.

        Raises:
            NoAnswer: not within the deadline; the connection is made anew with the next call.
            ObservationError: the server refuses what it was given, or its answer has another shape than agreed.
        """
        began = time.perf_counter()
        s, patience = self.server, self.server.deadline if self._warm else self.server.first
        deadline = time.monotonic() + patience
        if self._connection is None:
            self._connect(deadline)
        self._number += 1
        request = self._request(observation, seed)
        answer = self._exchange(encode(request), deadline, patience)
        if isinstance(answer, str):
            text = f"{s.uri} answered: {' '.join(answer.split())[-300:]}"
            if IN_THE_POLICY in answer or answer.startswith(NoAnswer.__name__):  # the next one may be a better one
                raise NoAnswer(text)
            self._drop()
            raise ObservationError(text)
        try:
            message = decode(answer)
        except WireError as error:
            self._drop()
            raise ObservationError(f"{s.uri}: {error}") from None
        if message.get("id", self._number) != self._number:
            self._drop()
            raise NoAnswer(f"{s.uri}: an answer to another request; dropped")
        actions = self._actions(message)
        self._warm = True
        stages, total = message.get("policy_timing"), 1e3 * (time.perf_counter() - began)
        timing = {k: float(v) for k, v in stages.items() if isinstance(v, float)} if isinstance(stages, dict) else {}
        timing |= {"overhead": total - timing.get("total", 0.0), "total": total}
        words = message.get("unknown_words")
        return Prediction(actions, timing, seed, tuple(map(str, words)) if isinstance(words, list) else ())

    def close(self) -> None:
        """End a call under way within `GLANCE`; for the shutdown."""
        self._closed.set()

    # --- the wire ------------------------------------------------------------------------------------------

    def _connect(self, deadline: float) -> None:
        try:
            self._contract = self._greet(deadline)
        except BaseException:
            self._drop()  # else the server would keep its place for us
            raise

    def _greet(self, deadline: float) -> Contract:
        """Connect, and hear what is served."""
        s = self.server
        left = max(0.05, min(s.deadline, deadline - time.monotonic()))
        headers = {"Authorization": f"Bearer {s.token}"} if s.token else None
        try:
            context = {"ssl": ssl.create_default_context(cafile=s.ca or None)} if s.uri.startswith("wss:") else {}
        except OSError as error:
            raise ConfigError(f"server_ca = {s.ca!r}: {error.strerror or error}") from None
        try:
            self._connection = connect(
                s.uri,
                additional_headers=headers,
                compression=None,
                max_size=MOST_BYTES,
                open_timeout=left,
                close_timeout=0.1,
                proxy=None,
                **context,
            )
            metadata = decode(self._connection.recv(timeout=left, decode=False))
        except InvalidURI as error:
            raise ConfigError(f"server = {s.uri!r}: {error}") from None
        except InvalidStatus as error:
            status = error.response.status_code
            if status in (401, 403):
                raise ConfigError(f"{s.uri} refuses us ({status}); give its token in token_file") from None
            raise NoAnswer(f"{s.uri}: the server answers {status}; waiting for it") from None
        except ssl.SSLCertVerificationError as error:
            raise ConfigError(f"{s.uri}: {error.verify_message}; name the certificate in server_ca") from None
        except (OSError, TimeoutError, InvalidHandshake, ConnectionClosed) as error:
            text = getattr(error, "strerror", None) or str(error) or "no answer"
            raise NoAnswer(f"no policy server at {s.uri}: {text}; start vipra serve there") from None
        except WireError as error:
            raise ConfigError(f"{s.uri} is no policy server: {error}") from None
        contract = agree(metadata, s.describe)
        if self._contract is not None and contract != self._contract:
            raise ConfigError(f"{s.uri} now serves another policy than before; start the policy node again")
        return contract

    def _exchange(self, data: bytes, deadline: float, patience: float) -> bytes | str:
        s = self.server
        # A peer whose network is gone takes no bytes, and a send under TLS has no end of its own.
        cut = threading.Timer(max(0.0, deadline - time.monotonic()), _shut, (self._connection.socket,))
        cut.daemon = True
        try:
            cut.start()
            try:
                self._connection.send(data)
            finally:
                cut.cancel()
            while not self._closed.is_set():
                left = deadline - time.monotonic()
                if left <= 0:
                    self._drop()
                    raise NoAnswer(f"{s.uri}: no answer within {patience:g} s; is the server busy, or the link slow?")
                try:
                    return self._connection.recv(timeout=min(GLANCE, left))
                except TimeoutError:
                    pass
        except (ConnectionClosed, OSError) as error:
            reason = getattr(getattr(error, "rcvd", None), "reason", "") or "connection lost"
            self._drop()
            raise NoAnswer(f"{s.uri}: {reason}; connecting again") from None
        self._drop()
        raise NoAnswer("the policy node is ending")

    def _drop(self) -> None:
        """Leave the connection without waiting for the other side."""
        connection, self._connection = self._connection, None
        if connection is not None:
            threading.Thread(target=connection.close, daemon=True).start()

    # --- observation and chunk in the server's terms -------------------------------------------------------

    def _request(self, observation: Observation, seed: int | None) -> dict:
        c, message = self._contract, {}
        for camera in c.cameras:
            if camera not in observation.frames:
                raise ObservationError(f"no frames of camera {camera!r}; the server needs {', '.join(c.cameras)}")
            pictures = observation.frames[camera][-c.frames :]
            if c.image_size:
                pictures = [resize(p, c.image_size) for p in pictures]
            if self.server.jpeg and c.jpeg:
                message[c.key(camera)] = [to_jpeg(p, self.server.jpeg) for p in pictures]
            else:
                message[c.key(camera)] = np.stack(pictures) if c.frames > 1 else np.ascontiguousarray(pictures[-1])
        message[c.prompt] = observation.instruction
        if c.joints and observation.joints is not None:
            joints = np.array(observation.joints[-c.joints :], float)
            joints[:, -1] = closing(joints[:, -1], c.gripper)
            if c.gripper_state:
                joints, message[c.gripper_state] = joints[:, :-1], joints[:, -1:]
            message[c.state] = joints
            if c.frames == 1 and c.joints == 1:  # a policy without a history has no axis for it
                message |= {k: message[k][-1] for k in (c.state, c.gripper_state) if k}
        if c.hash:  # ours: repeatable, and answers are told apart
            message |= {"id": self._number} | ({} if seed is None else {"seed": seed})
        return message

    def _actions(self, message: dict) -> np.ndarray:
        c, actions = self._contract, message.get(self._contract.actions)
        if not isinstance(actions, np.ndarray) or actions.shape != (c.horizon, c.columns):
            given = actions.shape if isinstance(actions, np.ndarray) else type(actions).__name__
            raise ObservationError(
                f"{self.server.uri}: {c.actions} is {given}; expected ({c.horizon}, {c.columns}) for "
                f"{c.action_space} of {len(c.joint_names)} joints: correct horizon or action_space"
            )
        actions = actions.astype(float)
        if not np.isfinite(actions).all():
            raise ObservationError(f"{self.server.uri}: actions that are not finite; check the server's checkpoint")
        actions[:, :-1] *= c.joint_scale
        actions[:, -1] = opening(actions[:, -1], c.gripper)
        return actions


def _shut(connection: socket.socket) -> None:
    """End what waits on a socket, in whatever thread; the base class, for TLS says good-bye first."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
