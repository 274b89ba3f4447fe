"""The executor's state machine as data, and its latched faults.

Only the operator leaves HOLD and FAULT. :func:`transition_table` prints the table for the documentation.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class State(enum.IntEnum):
    """States of the executor; the values are those of ExecutorStatus.msg."""

    IDLE = 0  # nothing is streamed; the command follows the measured arm
    ARMED = 1  # at rest, the next acceptable chunk starts the motion
    RUNNING = 2  # follows chunks, or goes home
    HOLD = 3  # at rest at the last command, chunks are refused
    STOPPING = 4  # limited stop under way
    FAULT = 5  # latched fault


class Event(enum.Enum):
    """What happens to the machine."""

    ARM = "operator arms"
    STOP = "operator stops"
    HOLD = "operator holds"
    HOME = "operator sends home"
    RECOVER = "operator recovers"
    RESET = "operator resets"
    CHUNK = "chunk accepted"
    STALE = "no fresh chunk or observation"
    TRIP = "dead-man or limiter guard trips"
    HOMED = "home reached"
    AT_REST = "stop finished"
    FAULT = "fault"


@dataclass(frozen=True)
class Move:
    """Next state; for STOPPING, the state the stop is for."""

    state: State
    then: State | None = None


_STOP_FOR = {state: Move(State.STOPPING, state) for state in (State.IDLE, State.ARMED, State.HOLD)}
_FAULT = Move(State.FAULT)

#: (state, event) -> move. A pair that is absent is refused (operator) or means nothing (the rest).
TABLE: dict[tuple[State, Event], Move] = {
    (State.IDLE, Event.ARM): Move(State.ARMED),
    (State.IDLE, Event.STOP): Move(State.IDLE),
    (State.IDLE, Event.HOME): Move(State.RUNNING),
    (State.IDLE, Event.RECOVER): Move(State.IDLE),
    (State.IDLE, Event.RESET): Move(State.IDLE),
    (State.IDLE, Event.FAULT): _FAULT,
    (State.ARMED, Event.ARM): Move(State.ARMED),
    (State.ARMED, Event.STOP): Move(State.IDLE),
    (State.ARMED, Event.HOLD): Move(State.HOLD),
    (State.ARMED, Event.HOME): Move(State.RUNNING),
    (State.ARMED, Event.RESET): Move(State.IDLE),
    (State.ARMED, Event.CHUNK): Move(State.RUNNING),
    (State.ARMED, Event.TRIP): Move(State.HOLD),
    (State.ARMED, Event.FAULT): _FAULT,
    (State.RUNNING, Event.STOP): _STOP_FOR[State.IDLE],
    (State.RUNNING, Event.HOLD): _STOP_FOR[State.HOLD],
    (State.RUNNING, Event.CHUNK): Move(State.RUNNING),
    (State.RUNNING, Event.STALE): _STOP_FOR[State.ARMED],
    (State.RUNNING, Event.TRIP): _STOP_FOR[State.HOLD],
    (State.RUNNING, Event.HOMED): Move(State.IDLE),
    (State.RUNNING, Event.FAULT): _FAULT,
    (State.HOLD, Event.ARM): Move(State.ARMED),
    (State.HOLD, Event.STOP): Move(State.IDLE),
    (State.HOLD, Event.HOLD): Move(State.HOLD),
    (State.HOLD, Event.HOME): Move(State.RUNNING),
    (State.HOLD, Event.RESET): Move(State.IDLE),
    (State.HOLD, Event.FAULT): _FAULT,
    (State.STOPPING, Event.STOP): _STOP_FOR[State.IDLE],
    (State.STOPPING, Event.HOLD): _STOP_FOR[State.HOLD],
    (State.STOPPING, Event.TRIP): _STOP_FOR[State.HOLD],
    (State.STOPPING, Event.AT_REST): Move(State.STOPPING),  # replaced by the state the stop was for
    (State.STOPPING, Event.FAULT): _FAULT,
    (State.FAULT, Event.RECOVER): Move(State.IDLE),
    (State.FAULT, Event.FAULT): _FAULT,
}
#: Of two stops that overlap the stricter purpose wins.
_STRICTNESS = {State.ARMED: 0, State.HOLD: 1, State.IDLE: 2}


class FaultCode(enum.Enum):
    """Faults that latch."""

    ROBOT = "robot error"
    STATE_AGE = "robot state lost"
    TRACKING = "tracking error"
    OVERRUN = "control loop overrun"
    MEASURED = "robot state not finite"
    SINK = "commands cannot be sent"
    INTERNAL = "internal error"


@dataclass(frozen=True)
class Fault:
    """A latched fault: code, sentence with the remedy, monotonic time in s."""

    code: FaultCode
    text: str
    time: float

    def __str__(self) -> str:
        return f"{self.code.value}: {self.text}"


class Machine:
    """Applies the table and keeps reasons and faults."""

    def __init__(self) -> None:
        self.state = State.IDLE
        self.then: State | None = None
        self.reasons: tuple[str, ...] = ()
        self.faults: tuple[Fault, ...] = ()
        self.fault_count = 0

    def can(self, event: Event) -> bool:
        """Whether the event has an effect now."""
        return (self.state, event) in TABLE

    def fire(self, event: Event, reason: str = "") -> bool:
        """Take the event; False when the table has no entry for it (nothing changes)."""
        move = TABLE.get((self.state, event))
        if move is None:
            return False
        if event is Event.AT_REST:
            self.state, self.then = self.then, None
            return True
        then = move.then
        if self.state is State.STOPPING and then is not None and self.then is not None:
            then = max(then, self.then, key=_STRICTNESS.__getitem__)
        changed = move.state is not self.state
        self.state, self.then = move.state, then
        if event is Event.FAULT:
            pass
        elif reason:
            self.reasons = (reason,) if changed else (*self.reasons[-4:], reason)
        elif event in (Event.ARM, Event.CHUNK, Event.HOME, Event.RECOVER, Event.RESET, Event.STOP):
            self.reasons = ()
        if event is Event.RECOVER:
            self.faults = ()
        return True

    def fault(self, code: FaultCode, text: str, now: float) -> None:
        """Latch a fault; one entry per code."""
        if any(f.code is code for f in self.faults):
            return
        self.faults += (Fault(code, text, now),)
        self.fault_count += 1
        self.fire(Event.FAULT)
        self.reasons = tuple(str(f) for f in self.faults)


def transition_table() -> str:
    """The machine as a Markdown table, one row an event, one column a state."""
    head = "| event | " + " | ".join(s.name for s in State) + " |"
    lines = [head, "|" + "---|" * (len(State) + 1)]
    for event in Event:
        cells = []
        for state in State:
            move = TABLE.get((state, event))
            if move is None:
                cells.append("")
            elif event is Event.AT_REST:
                cells.append("what the stop was for")
            else:
                cells.append(move.state.name + (f", then {move.then.name}" if move.then is not None else ""))
        lines.append(f"| {event.value} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(transition_table())
