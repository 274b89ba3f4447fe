"""Keys of an operator, one by one."""

import os
import pty
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


def test_what_was_typed_before_a_question_is_no_answer(monkeypatch):
    ours, theirs = pty.openpty()
    with os.fdopen(theirs) as stdin, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", stdin)
        with Terminal() as terminal:
            os.write(ours, b"\n\n")
            assert terminal.key(1.0) == "\n"
            terminal.forget()
            assert terminal.key(0.05) == ""
            os.write(ours, b"y")
            assert terminal.key(1.0) == "y"
    os.close(ours)


def test_typing_an_instruction_takes_no_time_from_an_answer(monkeypatch):
    """While a text is typed nobody listens: the answer of the service waits for us, not we for it."""
    pytest.importorskip("rclpy")
    from vipra_ros.nodes import keys

    now, said = [0.0], []
    monkeypatch.setattr(keys.time, "monotonic", lambda: now[0])

    class Silent:  # a node, its publishers, clients and futures
        create_client = create_publisher = call_async = lambda self, *_: self
        create_subscription = publish = lambda self, *_, **__: None

        def done(self):
            return False

    def typed(prompt):
        now[0] += 60.0
        return "lift it"

    hand = keys.Keys(Silent(), said.append, typed)
    hand.status = {"state": "IDLE"}
    hand.press("s")
    hand.look()
    hand.press("i")
    hand.look()
    assert not said
    now[0] += 6.0
    hand.look()
    assert "did not answer" in said[0]
