"""Requests to a policy server, taken apart, and its replies. What is read comes from a network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vipra_ros.policy.observation import Observation, ObservationError
from vipra_ros.policy.pictures import from_jpeg
from vipra_ros.serving.batching import Answer
from vipra_ros.serving.contract import Contract
from vipra_ros.serving.wire import MOST_BYTES, decode, encode

#: A program sends no Origin; a page in somebody's browser does, and could ask any server that its computer reaches.
FROM_A_PAGE = "a browser asks; only programs are answered"
#: Pixels of one image: a camera of 4K.
MOST_PIXELS = 3840 * 2160


@dataclass(frozen=True)
class Request:
    """An observation, the seed of its noise (None: a new one), and the number that the reply repeats (None: none)."""

    observation: Observation
    seed: int | None = None
    number: int | None = None


def read_request(data: bytes, contract: Contract, most_bytes: int = MOST_BYTES) -> Request:
    """The request in a binary message.

    Raises:
        WireError: no message, or one beyond the limits.
        ObservationError: something is missing or of another shape; names the key.
    """
    message = decode(data, most_bytes)
    observation = read_observation(message, contract)
    number = message.get("id")
    return Request(observation, read_seed(message.get("seed")), number if type(number) is int else None)


def write_reply(request: Request, answer: Answer, timing: dict[str, float], contract: Contract) -> bytes:
    """The reply as a binary message. timing: of the server, in ms."""
    reply = {
        contract.actions: answer.prediction.actions,
        "policy_timing": answer.prediction.timing,
        "server_timing": timing,
    }
    if request.number is not None:
        reply["id"] = request.number
    if answer.prediction.unknown_words:
        reply["unknown_words"] = list(answer.prediction.unknown_words)
    return encode(reply)


def read_seed(value: object) -> int | None:
    """A seed, or None where there is none; ObservationError when it is neither."""
    if not (value is None or type(value) is int and 0 <= value < 2**63):
        raise ObservationError(f"seed = {str(value)[:40]}: expected a whole number, 0 or more")
    return value


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
            value = read_pictures(key, value, contract.frames)
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


def read_pictures(key: str, given: list[bytes], count: int) -> np.ndarray:
    """`count` JPEG or PNG as uint8 (count, H, W, 3); ObservationError with `key` when they are not."""
    if len(given) != count:
        raise ObservationError(f"{key}: {len(given)} images; expected {count}, oldest first")
    try:
        pictures = [from_jpeg(v, MOST_PIXELS) for v in given]
    except ValueError as error:
        raise ObservationError(f"{key}: {error}") from None
    if len({p.shape for p in pictures}) > 1:
        raise ObservationError(f"{key}: images of different sizes")
    return np.stack(pictures)
