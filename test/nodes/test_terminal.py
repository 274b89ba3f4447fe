"""Keys of an operator, one by one."""

import os
import sys

import pytest

from vipra_ros.nodes.terminal import QUIT, Terminal


@pytest.mark.parametrize("typed", [b"y", "ß".encode(), "é".encode()])
def test_only_keys_that_are_meant_to_end_do(monkeypatch, typed):
    """Of a letter that takes two bytes none is a key; a terminal that is gone is the end."""
    read, write = os.pipe()
    with os.fdopen(read) as stdin, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", stdin)
        os.write(write, typed)
        keys = [Terminal.key(None, 1.0) for _ in typed]
        assert "".join(keys) == ("y" if typed == b"y" else "") and not set(keys) & set(QUIT)
        assert Terminal.key(None, 0.01) == "", "nothing more was typed"
        os.close(write)
        assert Terminal.key(None, 1.0) in QUIT
