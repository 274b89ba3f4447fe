"""Bytes as a stranger may send them: real ones, spoilt; and a watch on the memory that a parser takes for them."""

import contextlib
import os
import tracemalloc

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

#: Bytes that a parser may take for a file of some kilobytes.
MOST_MEMORY = 64 << 20
#: Lengths and counts that parsers trip over, as whole numbers of 1 to 8 bytes.
NUMBERS = [b"\x00", b"\xff", b"\x7f", b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x00" * 8, b"\xff" * 8, b"\xff" * 7 + b"\x7f",
           (1 << 33).to_bytes(8, "little"), (1 << 40).to_bytes(8, "big")]
#: FUZZ=50 looks fifty times as long, and elsewhere each time; without it every run is the same.
MORE = int(os.environ.get("FUZZ", "1"))


def examples(count):
    """Settings of a test with `count` examples."""
    quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(max_examples=count * MORE, deadline=None, derandomize=MORE == 1, suppress_health_check=quiet)


#: One to four faults; small, so that a failure can be read: (kind, place, size, bytes).
faults = st.lists(
    st.tuples(st.sampled_from(("over", "over", "over", "in", "out", "double", "cut")), st.integers(0, 10**6),
              st.integers(1, 16), st.one_of(st.sampled_from(NUMBERS), st.binary(min_size=1, max_size=8))),
    min_size=1, max_size=4)


def spoil(whole, found):
    """`whole` with `found` faults: bytes overwritten, put in, taken out, doubled, or the end cut."""
    data = bytearray(whole)
    for kind, place, size, new in found:
        at = place % (len(data) + 1)
        if kind == "over":
            data[at : at + len(new)] = new
        elif kind == "in":
            data[at:at] = new
        elif kind == "out":
            del data[at : at + size]
        elif kind == "double":
            data[at:at] = data[at : at + size]
        else:
            del data[at:]
    return bytes(data)


@contextlib.contextmanager
def watched(*errors):
    """What is done inside may raise `errors`, in one line, and nothing else; and it takes little memory."""
    tracemalloc.start()
    try:
        yield
    except errors as error:
        assert type(error) in errors, f"a {type(error).__name__} of another module: {error}"
        assert str(error).strip() and len(str(error)) < 2000
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MOST_MEMORY, f"{peak} bytes were taken"


@pytest.fixture(autouse=True)
def soon(request):
    """A parser that hangs fails its test."""
    request.node.add_marker(pytest.mark.timeout(120 * MORE))
