"""Hold-to-run with a clock of its own."""

import threading

import pytest

from vipra_ros.console.deadman import PROOF, DeadMan, Pulse


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_pressing_alone_holds_nothing_and_silence_releases(clock):
    button = DeadMan(clock)
    holder, ticket = button.press()
    assert not button.held
    for _ in range(20):
        clock.now += 0.1
        ticket = button.renew(holder, ticket)
        assert button.held
    clock.now += PROOF + 0.001
    assert not button.held


def test_what_counts_is_when_the_ticket_was_given(clock):
    """A renewal on its way for 0.3 s holds 0.1 s more, not another 0.4 s."""
    button = DeadMan(clock)
    holder, ticket = button.press()
    clock.now += 0.3
    button.renew(holder, ticket)
    clock.now = ticket + PROOF + 0.001
    assert not button.held


def test_renewals_that_a_network_kept_hold_nothing(clock):
    button = DeadMan(clock)
    holder, ticket = button.press()
    ticket = button.renew(holder, ticket)
    clock.now += 1.0
    with pytest.raises(PermissionError, match="the network took 1.0 s"):
        button.renew(holder, ticket)
    with pytest.raises(PermissionError, match="press again"):  # and the press is over
        button.renew(holder, clock.now)
    assert not button.held


def test_tickets_are_not_made_up(clock):
    button = DeadMan(clock)
    holder, _ = button.press()
    for ticket in (clock.now + 1000.0, float("nan"), float("inf")):
        with pytest.raises(PermissionError):
            button.renew(holder, ticket)
        assert not button.held
        holder, _ = button.press()


def test_a_late_renewal_does_not_undo_a_release(clock):
    button = DeadMan(clock)
    holder, ticket = button.press()
    ticket = button.renew(holder, ticket)
    button.release(holder)
    assert not button.held
    with pytest.raises(PermissionError, match="released"):
        button.renew(holder, ticket)


def test_one_page_at_a_time(clock):
    button = DeadMan(clock)
    first, ticket = button.press()
    button.renew(first, ticket)
    with pytest.raises(PermissionError, match="another page"):
        button.press()
    button.release("somebody else")
    assert button.held
    button.release()  # STOP
    second, ticket = button.press()
    button.renew(second, ticket)
    with pytest.raises(PermissionError):
        button.renew(first, ticket)
    assert button.held


def test_the_pulse_beats_while_held_only():
    button, beaten = DeadMan(), threading.Event()
    with Pulse(button, beaten.set):
        assert not beaten.wait(0.15)
        holder, ticket = button.press()
        button.renew(holder, ticket)
        assert beaten.wait(1.0)
        button.release(holder)
        assert not button.held
