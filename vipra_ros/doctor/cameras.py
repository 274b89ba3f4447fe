"""Cameras as they arrive: rate, gaps, size, age, frozen pictures, quality of service; nodes/probe.py listens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vipra_ros.doctor.report import FAIL, OK, WARN, Finding

AREA = "cameras"
#: Hz; the policy's own rate is 15.
LEAST_RATE = 15.0
#: A pause this many times the median period is a gap; more than this share of gaps is a finding.
GAP, GAP_SHARE = 2.5, 0.02
#: A camera has ended when nothing comes for this many median periods, and s.
SILENCE, LEAST_SILENCE = 10, 0.5
#: s between the stamp of a picture and its arrival.
OLD, FUTURE = 0.2, 0.05
#: bytes a second of one camera beyond which a recorder, and a network of 1 Gbit/s, have no room for a second one.
HEAVY = 50e6


@dataclass(frozen=True)
class Sample:
    """What was heard of one camera for some seconds.

    Attributes:
        topic: its name; invalid: why no topic can have this name. seconds: s listened for.
        arrivals: s, monotonic, when messages came; silence: s from the last one to the end of listening.
        ages: s, arrival less stamp (ROS clock).
        digests: of the picture's bytes, one a message; sizes: bytes of the messages.
        shape: (height, width) of the last picture, (0, 0) when it could not be decoded.
        publishers: how many there are; reliabilities: theirs ("reliable", "best_effort"); mismatch: why not.
    """

    topic: str
    seconds: float
    arrivals: Sequence[float] = ()
    ages: Sequence[float] = ()
    digests: Sequence[bytes] = ()
    sizes: Sequence[int] = ()
    shape: tuple[int, int] = (0, 0)
    publishers: int = 0
    reliabilities: Sequence[str] = ()
    mismatch: str = ""
    silence: float = 0.0
    invalid: str = ""


def judge(sample: Sample, simulated: bool = False) -> list[Finding]:
    """Every finding about one camera."""
    name = sample.topic

    def finding(check: str, level: str, text: str, fix: str = "") -> Finding:
        return Finding(AREA, f"{name} {check}", level, text, fix)

    if sample.invalid:
        return [finding("topic", FAIL, sample.invalid, "give the topic of a camera; ros2 topic list shows them")]
    if not sample.publishers:
        here = os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "")
        near = f"; ROS_AUTOMATIC_DISCOVERY_RANGE={here} hides those of other machines" * (here in ("LOCALHOST", "OFF"))
        return [finding("publisher", FAIL, f"nobody publishes it (listened for {sample.seconds:.0f} s)",
                        "start the camera driver; ros2 topic list; ROS_DOMAIN_ID must be the same in both terminals"
                        + near)]
    fix = "give the topic of a camera; ros2 topic info --verbose shows both sides"
    found = [finding("QoS", FAIL, sample.mismatch, fix)
             if sample.mismatch else finding("QoS", OK, f"{', '.join(sample.reliabilities)}; we ask for best effort")]
    if sample.publishers > 1:
        found.append(finding("publisher", WARN, f"{sample.publishers} publish it", "stop all but one"))
    if len(sample.arrivals) < 3:
        fix = "raw images are lost whole without room: see receive buffer and transport; or use the compressed topic"
        return [*found, finding("rate", FAIL, f"{len(sample.arrivals)} messages in {sample.seconds:.0f} s", fix)]
    periods = np.diff(sample.arrivals)
    rate = len(periods) / (sample.arrivals[-1] - sample.arrivals[0])
    gaps = float((periods > GAP * np.median(periods)).mean())
    text = f"{rate:.1f} Hz, longest pause {1e3 * periods.max():.0f} ms (n = {len(sample.arrivals)})"
    if sample.silence > max(SILENCE * np.median(periods), LEAST_SILENCE):
        text = f"silent since {sample.silence:.1f} s, {rate:.1f} Hz before"
        fix = "it ended while it was listened to: the driver's log, dmesg (USB), cable and power"
        found.append(finding("rate", FAIL, text, fix))
    elif rate < LEAST_RATE * 0.95:
        fix = f"{LEAST_RATE:.0f} Hz are needed: more light (exposure), a USB 3 port"
        found.append(finding("rate", WARN, text, fix))
    elif gaps > GAP_SHARE:
        found.append(finding("rate", WARN, f"{text}, {gaps:.0%} gaps",
                             "messages get lost: compressed topic, receive buffer, fewer cameras on one USB bus"))
    else:
        found.append(finding("rate", OK, text))
    frozen = len(set(sample.digests)) == 1
    same = sum(a == b for a, b in zip(sample.digests, sample.digests[1:])) / (len(sample.digests) - 1)
    if frozen or same > 0.5:
        text = "every picture is the same" if frozen else f"{same:.0%} of the pictures repeat the one before"
        fix = "restart the driver, plug the camera in again; a simulated one repeats while nothing moves"
        found.append(finding("pictures", FAIL if frozen and not simulated else WARN, text, fix))
    else:
        found.append(finding("pictures", OK, "they change"))
    if min(sample.shape) == 0:
        found.append(finding("size", FAIL, "the picture cannot be decoded", "publish JPEG, PNG, rgb8 or bgr8"))
    else:
        flow = float(np.mean(sample.sizes)) * rate
        text = f"{sample.shape[1]}x{sample.shape[0]}, {flow / 1e6:.1f} MB/s"
        found.append(finding("size", WARN, text, "subscribe to the compressed topic") if flow > HEAVY
                     else finding("size", OK, text))
    age = float(np.median(sample.ages))
    text = f"pictures arrive {1e3 * age:.0f} ms after their stamp"
    if age < -FUTURE:
        text = f"stamps lie {-age:.2f} s in the future"
        found.append(finding("stamp", FAIL, text, "synchronise the clocks (chrony)"))
    elif age > OLD:
        found.append(finding("stamp", WARN, text, "synchronise the clocks, shorten the driver's queue"))
    else:
        found.append(finding("stamp", OK, text))
    return found
