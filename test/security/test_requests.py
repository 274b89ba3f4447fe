"""Requests of strangers to `vipra serve`: every one is answered, or refused by an error that is meant for that."""

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vipra_ros.policy.checkpoint import Checkpoint
from vipra_ros.policy.engine import load_engine
from vipra_ros.policy.observation import NoAnswer, ObservationError
from vipra_ros.policy.pictures import to_jpeg
from vipra_ros.serving.batching import Answer
from vipra_ros.serving.contract import Contract
from vipra_ros.serving.requests import read_request, write_reply
from vipra_ros.serving.server import Access, PolicyServer
from vipra_ros.serving.wire import WireError, decode, encode

from .conftest import examples, faults, spoil, watched

IMAGES = np.zeros((2, 32, 32, 3), np.uint8)
PIECES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=4), st.binary(max_size=8),
    st.sampled_from((IMAGES, IMAGES[:1], IMAGES[:, :0], IMAGES.astype(np.float32), np.zeros((1, 8)), np.zeros((3, 0)),
                     np.full((1, 8), np.nan), np.zeros(8, np.int64), np.float32(1), [b"\xff\xd8\xff\xd9"] * 2,
                     [b"\x89PNG\r\n\x1a\n" + b"\x00\x00\x00\rIHDR" + b"\x7f\xff\xff\xff" * 2] * 2, [b""] * 2,
                     [to_jpeg(IMAGES[0], 90)] * 2, [to_jpeg(IMAGES[0], 90), to_jpeg(IMAGES[0, :8], 90)])))


@pytest.fixture(scope="module")
def server(micro_checkpoint):
    checkpoint = Checkpoint.load(micro_checkpoint)
    return PolicyServer(load_engine(checkpoint, threads=1), Contract.of(checkpoint), Access())


def ask(server, raw):
    with watched(WireError, ObservationError, NoAnswer):
        request = read_request(raw, server.contract)
        answer = Answer(server.engine.infer(request.observation, request.seed), 0.0, 0.0, 1)
        assert np.isfinite(decode(write_reply(request, answer, {}, server.contract))["actions"]).all()


def request(server, **changes):
    return {server.contract.key("front"): IMAGES, "prompt": "push the red cube", "seed": 1, **changes}


@examples(24)
@given(data=st.data())
def test_a_spoilt_request(server, data):
    ask(server, spoil(encode(request(server)), data.draw(faults)))


@examples(24)
@given(data=st.data())
def test_other_values(server, data):
    keys = (*request(server), server.contract.state, "id", "endpoint")
    message = request(server)
    for _ in range(data.draw(st.integers(1, 2))):
        message[data.draw(st.sampled_from(keys))] = data.draw(PIECES)
    ask(server, encode(message))


@examples(24)
@given(value=st.recursive(PIECES.filter(lambda v: not isinstance(v, np.ndarray | np.generic)),
                          lambda inner: st.lists(inner, max_size=3)
                          | st.dictionaries(st.text(max_size=3), inner, max_size=3)))
def test_any_message(server, value):
    ask(server, msgpack.packb(value))


@pytest.mark.parametrize("raw", [
    b"", b"\xc1", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 100_000,
    b"\x81\xa1a" * 50_000 + b"\xc0", b"\xdc\x04\x00" + b"\x80" * 1024, b"\x81\x90\x01", b"\x81\xc4\x01a\xc7\x00\x01"])
def test_counts_beyond_what_is_there(server, raw):
    with watched(WireError), pytest.raises(WireError):
        decode(raw)


def test_a_long_instruction_is_refused_or_answered(server):
    for words in ("push " * 2000, "\ud7ff" * 1000, "\0"):
        ask(server, encode(request(server, prompt=words)))
