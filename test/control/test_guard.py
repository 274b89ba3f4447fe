"""The state machine against a table written out by hand, in every pair of state and event."""

import pytest

from vipra_ros.control.guard import TABLE, Event, FaultCode, Machine, State, transition_table

#: rows: event; columns: IDLE ARMED RUNNING HOLD STOPPING FAULT. "-": refused. "S>X": stopping for X.
EXPECTED = """
ARM      ARMED  ARMED    -          ARMED  -       -
STOP     IDLE   IDLE     S>IDLE     IDLE   S>IDLE  -
HOLD     -      HOLD     S>HOLD     HOLD   S>HOLD  -
HOME     RUNNING RUNNING -          RUNNING -      -
RECOVER  IDLE   -        -          -      -       IDLE
RESET    IDLE   IDLE     -          IDLE   -       -
CHUNK    -      RUNNING  RUNNING    -      -       -
STALE    -      -        S>ARMED    -      -       -
TRIP     -      HOLD     S>HOLD     -      S>HOLD  -
HOMED    -      -        IDLE       -      -       -
AT_REST  -      -        -          -      ARMED   -
FAULT    FAULT  FAULT    FAULT      FAULT  FAULT   FAULT
"""
ROWS = {words[0]: words[1:] for words in map(str.split, EXPECTED.strip().splitlines())}


def machine_in(state):
    machine = Machine()
    machine.state = state
    machine.then = State.ARMED if state is State.STOPPING else None
    return machine


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", State)
def test_every_pair(state, event):
    expected = ROWS[event.name][list(State).index(state)]
    machine = machine_in(state)
    assert machine.can(event) == machine.fire(event) == (expected != "-")
    if expected == "-":
        assert machine.state is state
    elif expected.startswith("S>"):
        assert (machine.state, machine.then) == (State.STOPPING, State[expected[2:]])
    else:
        assert (machine.state, machine.then) == (State[expected], None)


@pytest.mark.parametrize(
    "first, second, end",
    [
        (Event.STALE, Event.HOLD, State.HOLD),
        (Event.HOLD, Event.STOP, State.IDLE),
        (Event.STOP, Event.HOLD, State.IDLE),
        (Event.STOP, Event.TRIP, State.IDLE),
        (Event.TRIP, Event.STOP, State.IDLE),
    ],
)
def test_the_stricter_of_two_stops_wins(first, second, end):
    machine = machine_in(State.RUNNING)
    machine.fire(first)
    machine.fire(second)
    machine.fire(Event.AT_REST)
    assert machine.state is end


def test_faults_latch_with_reasons_until_recovery():
    machine = machine_in(State.RUNNING)
    machine.fault(FaultCode.TRACKING, "far", 1.0)
    machine.fault(FaultCode.ROBOT, "reflex", 2.0)
    machine.fault(FaultCode.ROBOT, "again", 3.0)
    assert [f.code for f in machine.faults] == [
        FaultCode.TRACKING,
        FaultCode.ROBOT,
    ] and machine.fault_count == 2
    for event in Event:
        if event not in (Event.RECOVER, Event.FAULT):
            assert not machine.fire(event, "no way out")
    assert machine.reasons == ("tracking error: far", "robot error: reflex")
    assert machine.fire(Event.RECOVER) and machine.state is State.IDLE and machine.faults == machine.reasons == ()


def test_only_the_operator_leaves_hold_and_fault():
    operator = {Event.ARM, Event.STOP, Event.HOLD, Event.HOME, Event.RECOVER, Event.RESET, Event.FAULT}
    assert {e for s, e in TABLE if s in (State.HOLD, State.FAULT)} <= operator


def test_the_table_prints_one_row_an_event():
    text = transition_table().splitlines()
    assert len(text) == 2 + len(Event)
    assert text[0] == "| event | IDLE | ARMED | RUNNING | HOLD | STOPPING | FAULT |"
    assert "| no fresh chunk or observation |  |  | STOPPING, then ARMED |  |  |  |" in text
