"""What may come over the wire, and what must not get in."""

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vipra_ros.serving import wire
from vipra_ros.serving.wire import WireError, decode, encode

ARRAY = {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f4", b"shape": [2]}


@pytest.mark.parametrize("dtype", sorted(wire.DTYPES))
def test_arrays_and_scalars_come_back_as_they_were(dtype):
    array = np.arange(6).astype(dtype).reshape(1, 2, 3)
    back = decode(encode({"a": array, "b": array[0, 1, 2], "c": {"d": [1, b"x", "y", None, True]}}))
    assert back["a"].dtype == array.dtype and np.array_equal(back["a"], array)
    # float64 is a Python float too, and travels as one
    assert back["b"] == array[0, 1, 2] and np.asarray(back["b"]).dtype == array.dtype
    assert back["c"] == {"d": [1, b"x", "y", None, True]}
    turned = decode(encode({"a": array.astype(array.dtype.newbyteorder(">")).T}))["a"]
    assert np.array_equal(turned, array.T)


@pytest.mark.parametrize(
    "message, said",
    [
        ({"a": {**ARRAY, b"dtype": "|O"}}, "dtype '|O'; only numbers"),
        ({"a": {**ARRAY, b"dtype": "<M8[s]"}}, "only numbers"),
        ({"a": {**ARRAY, b"dtype": [["x", "<f4"]]}}, "only numbers"),
        ({"a": {**ARRAY, b"shape": [3]}}, "does not have 8 bytes"),
        ({"a": {**ARRAY, b"shape": [-2]}}, "whole numbers"),
        ({"a": {**ARRAY, b"shape": [2**62, 4]}}, "does not have 8 bytes"),
        ({"a": {**ARRAY, b"shape": [2.0]}}, "whole numbers"),
        ({"a": {**ARRAY, b"shape": [1] * 7 + [2]}}, "at most 6 axes"),
        ({"a": {**ARRAY, b"data": "text"}}, "without bytes"),
        ({"a": {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}}, "no message"),
        ({"a": {b"__npgeneric__": True, b"data": "x", b"dtype": "|u1"}}, "a number that is str"),
        ({"a": [{} for _ in range(300)]}, "more than 256 maps and lists"),
        ({"a": [0] * 2000}, "no message"),
        ({str(i): 0 for i in range(200)}, "no message"),
        ({"a": "x" * 70000}, "no message"),
        ({"a": msgpack.ExtType(1, b"x")}, "no message"),
        ([1, 2], "a message is a map, not list"),
    ],
)
def test_what_has_no_place_in_a_message_is_refused(message, said):
    with pytest.raises(WireError, match=said.replace("|", r"\|")):
        decode(msgpack.packb(message))


def test_size_depth_and_objects_are_refused():
    with pytest.raises(WireError, match="at most 1000 are taken"):
        decode(encode({"a": np.zeros(2000, np.uint8)}), 1000)
    with pytest.raises(WireError):
        decode(b"\x81\xa1a" + b"\x91" * 100_000 + b"\xc0")
    for value in (np.array([object()]), np.array([1j]), np.array(["a"]), object(), {1, 2}):
        with pytest.raises((WireError, TypeError)):
            encode({"a": value})


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error(data):
    try:
        assert isinstance(decode(data), dict)
    except WireError as error:
        assert "\n" not in str(error)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_message_is_a_message_or_an_error(data):
    whole = bytearray(encode({"observation/front": np.ones((2, 3, 3), np.uint8), "prompt": "go", "n": np.float64(1)}))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert isinstance(decode(bytes(whole[: data.draw(st.integers(0, len(whole)))])), dict)
    except WireError as error:
        assert "\n" not in str(error)
