"""`vipra gello emulate`: servos without an arm, in a terminal. Any driver may open the port that it prints.

Faults come and go by words, typed while it runs or given beforehand with the time at which they happen.
"""

from __future__ import annotations

import queue
import signal
import sys
import threading
from collections.abc import Callable, Sequence

from vipra_ros.config import ConfigError, share
from vipra_ros.control.profile import load_profile
from vipra_ros.teleop.emulate import Faults, ServoEmulator, emulated
from vipra_ros.teleop.gello import load_gello
from vipra_ros.teleop.motions import Motion, Puppet, motion, recorded, scripted

WORDS = (
    "missing N: servo N is silent; spoilt N: its answers carry a wrong CRC; overheated N; overloaded N; garbage: noise "
    "before every answer; delay S: answers S s late; unplug; plug; power: power cycle, turns are lost; ok: all is well"
)
NOISE = b"\x00\xff\xff\xfd\x00\x17"
#: Bits of the hardware error register.
HEAT, LOAD = 0x04, 0x20


def apply(servos: ServoEmulator, text: str) -> str:
    """Do what `text` says (see WORDS); what is so from now on.

    Raises:
        ConfigError: not understood.
    """
    _understood(servos, text)()
    return f"{text}: done"


def _understood(servos: ServoEmulator, text: str) -> Callable[[], object]:
    """What `text` says, to be done later."""
    word, *values = text.split() or [""]
    simple: dict[str, Callable[[], object]] = {
        "unplug": servos.unplug,
        "plug": servos.plug,
        "power": servos.power_cycle,
        "garbage": lambda: setattr(servos.faults, "garbage", NOISE),
        "ok": lambda: (setattr(servos, "faults", Faults()), servos.plug()),
    }
    try:
        if word in simple and not values:
            return simple[word]
        (value,) = values
        if word == "delay":
            seconds = float(value)
            return lambda: setattr(servos.faults, "delay", seconds)
        if word in ("missing", "spoilt", "overheated", "overloaded"):
            servo = int(value)
            if servo not in servos.ids:
                raise ConfigError(f"{word} {servo}: the servos are {', '.join(map(str, servos.ids))}")
            return lambda: _servo_fault(servos, word, servo)
    except ConfigError:  # it is a ValueError too, and says more
        raise
    except ValueError:  # too many values, or no number
        pass
    raise ConfigError(f"{text!r} is not understood; {WORDS}")


def _servo_fault(servos: ServoEmulator, word: str, servo: int) -> None:
    if word in ("missing", "spoilt"):
        getattr(servos.faults, word).add(servo)
    else:
        servos.faults.alerts[servo] = HEAT if word == "overheated" else LOAD


def schedule(servos: ServoEmulator, texts: Sequence[str]) -> list[tuple[float, str]]:
    """`["3 unplug", "missing 2"]` as times (s since the start, 0 when none is given) and words, in order.

    Raises:
        ConfigError: words are not understood, or missing; said now and not when their time has come.
    """
    found = []
    for text in texts:
        first, _, rest = text.strip().partition(" ")
        try:
            found.append((float(first), rest.strip()))
        except ValueError:
            found.append((0.0, text.strip()))
        if not found[-1][1]:
            raise ConfigError(f"--fault {text!r} does not say what happens; for instance --fault '5 unplug'")
        _understood(servos, found[-1][1])
    return sorted(found, key=lambda x: x[0])


def emulate_main(
    config_path: str,
    arm: str,
    port: str,
    profile: str,
    moves: str,
    seed: int = 0,
    faults: Sequence[str] = (),
    seconds: float = 0.0,
) -> None:
    """Serve until Ctrl-C, or for `seconds`.

    Args:
        port: path at which the port is to appear; empty: a new one.
        moves: home, sine, reach, push, lift (the expert's way through the scene of `seed`, begun by the word
            `go`), a YAML script, or a bag.
    """
    config, robot = load_gello(config_path or share("config", "gello.yaml"), arm), load_profile(profile)
    where, said = _motion(moves, seed, robot)
    servos = emulated(config, where, port)
    coming = schedule(servos, faults)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job is born deaf to the first
        signal.signal(number, signal.default_int_handler)
    with servos:
        print(f"port: {servos.port}\nservos: {', '.join(map(str, servos.ids))} at {config.baudrate} baud")
        begin = "go: the expert begins; " if isinstance(where, Puppet) else ""
        print(f"motion: {said}\ntype: {begin}{WORDS}", flush=True)
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=lambda: [lines.put(line) for line in sys.stdin], name="words", daemon=True).start()
        try:
            while not 0 < seconds <= servos.now:
                while coming and coming[0][0] <= servos.now:
                    print(apply(servos, coming.pop(0)[1]), flush=True)
                try:
                    line = lines.get(timeout=0.05).strip()
                except queue.Empty:
                    continue
                if line:
                    print(_typed(servos, where, robot, moves, seed, line), flush=True)
        except KeyboardInterrupt:
            pass


def _typed(servos: ServoEmulator, where: Motion, robot, moves: str, seed: int, text: str) -> str:
    try:
        if text == "go" and isinstance(where, Puppet):
            from vipra_ros.teleop.demonstration import PERIOD, demonstrate

            plan = demonstrate(robot, moves, seed, where(servos.now)[0])
            where.play(servos.now, plan.rows, PERIOD)
            return f"go: {plan.instruction}, {plan.seconds:.1f} s"
        return apply(servos, text)
    except ConfigError as error:
        return str(error)


def _motion(moves: str, seed: int, robot) -> tuple[Motion, str]:
    if moves in ("home", "sine"):
        return motion(moves, robot.home_q), f"{'stays at' if moves == 'home' else 'swings about'} the home pose"
    if moves in ("reach", "push", "lift"):
        return Puppet(robot.home_q), f"stays at the home pose until `go`, then: {moves}, seed {seed}"
    if moves.endswith((".yaml", ".yml")):
        return scripted(moves, len(robot.joint_names)), f"poses of {moves}"
    return recorded(moves), f"what was commanded in {moves}"
