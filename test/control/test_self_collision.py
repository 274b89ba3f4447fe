"""The arm keeps off itself: capsules against the true hulls of its links, and the limiter that uses them."""

import dataclasses

import numpy as np
import pytest
from hulls import nearest

from vipra_ros.config import ConfigError
from vipra_ros.control import kinematics
from vipra_ros.control.limits import Limiter
from vipra_ros.control.profile import Capsule, load_profile
from vipra_ros.control.reference import Limited, Reference
from vipra_ros.control.self_collision import SelfCollision
from vipra_ros.control.workspace import WorkspaceCheck

PROFILE = load_profile("fr3")
HOME = PROFILE.home_q
T = 1 / 15


def within_the_box(rng, n):
    q = rng.uniform(PROFILE.lower, PROFILE.upper, (n, 7))
    return q[WorkspaceCheck(PROFILE).excess(q)[:, 0] <= 0]


def test_hulls_are_five_centimetres_apart_wherever_capsules_allow():
    q = within_the_box(np.random.default_rng(0), 40_000)
    excess = SelfCollision(PROFILE).excess(kinematics.frames(PROFILE, q))
    near = np.flatnonzero((excess <= 0) & (excess > -0.06))
    assert len(near) > 300
    assert nearest(q[near])[0].min() >= 0.05 - 1e-3
    touching = nearest(q)[0] < 0.05
    assert touching.sum() > 100 and (excess[touching] > 0).all()


def test_the_hand_counts():
    """Wrist folded back so that the fingers point at the upper arm: hulls of links alone would not say so."""
    q = within_the_box(np.random.default_rng(1), 40_000)
    frames = kinematics.frames(PROFILE, q)
    bare = dataclasses.replace(PROFILE, capsules=tuple(c for c in PROFILE.capsules if c.link < 8))
    assert ((SelfCollision(PROFILE).excess(frames) > 0) & (SelfCollision(bare).excess(frames) < -0.03)).any()


def test_distance_of_segments():
    """Against the least distance between many points on both."""
    rng = np.random.default_rng(2)
    for _ in range(50):
        a, b = rng.normal(0, 0.2, (2, 2, 3))
        if rng.random() < 0.3:
            b[1] = b[0] + 0.7 * (a[1] - a[0])  # parallel
        if rng.random() < 0.2:
            a[1] = a[0]  # a point
        profile = dataclasses.replace(
            PROFILE,
            capsules=(Capsule(link=0, start=tuple(a[0]), end=tuple(a[1]), radius=0.0),
                      Capsule(link=7, start=tuple(b[0]), end=tuple(b[1]), radius=0.0)),
        )
        frames = kinematics.frames(PROFILE, rng.uniform(PROFILE.lower, PROFILE.upper))
        b = b @ frames[6, :3, :3].T + frames[6, :3, 3]
        s = np.linspace(0, 1, 201)[:, None]
        brute = np.linalg.norm((a[0] + s * (a[1] - a[0]))[:, None] - (b[0] + s * (b[1] - b[0]))[None], axis=-1).min()
        assert SelfCollision(profile).distances(frames)[0] == pytest.approx(brute, abs=3e-3)


def test_without_capsules_nothing_is_near():
    bare = dataclasses.replace(PROFILE, capsules=())
    assert np.isneginf(SelfCollision(bare).excess(kinematics.frames(bare, HOME[None]))).all()


def towards_itself(rng):
    """A position too near another link, with the TCP in the box, and the way there from home."""
    while True:
        q = within_the_box(rng, 4000)
        excess = SelfCollision(PROFILE).excess(kinematics.frames(PROFILE, q))
        yield from q[excess > 0.03]


def drive(limiter, q0, target, seconds=6.0):
    reference, flags = Reference.rest(0.0, q0), Limited.NO
    for begin in np.arange(0.0, seconds, 7 * T):
        times = begin + T * np.arange(1, 15)
        reference = limiter.extend(reference, begin, times, np.tile(target, (14, 1)), np.zeros((14, 7)))
        flags |= reference.limited(begin + 1e-3) | reference.limited(begin + 3 * T)
    return np.array([reference.at(t)[0] for t in np.arange(0.0, seconds, 0.02)]), flags


def test_a_target_at_the_arm_itself_ends_short_of_it():
    targets, stopped = towards_itself(np.random.default_rng(3)), 0
    for _ in range(12):
        q, flags = drive(Limiter(PROFILE), HOME, next(targets))
        assert nearest(q)[0].min() >= 0.05 - 1e-3
        stopped += bool(flags & Limited.SELF)
    assert stopped == 12


def test_an_arm_too_near_itself_may_leave_but_not_come_nearer():
    check, targets = SelfCollision(PROFILE), towards_itself(np.random.default_rng(4))
    left = 0
    for _ in range(8):
        near = next(targets)
        before = check.excess(kinematics.frames(PROFILE, near))
        worse = check.excess(kinematics.frames(PROFILE, drive(Limiter(PROFILE), near, next(targets), 3.0)[0])).max()
        assert worse <= before + 2e-3
        away = drive(Limiter(PROFILE), near, HOME)[0]
        left += np.abs(away[-1] - HOME).max() < 0.01
    assert left >= 6


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"capsules": (Capsule(link=1, start=(0.0, 0.0), end=(0.0, 0.0, 0.0), radius=0.1),)}, r"capsules\[0\]"),
    ],
)
def test_wrong_capsules_are_said(changes, said):
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(PROFILE, **changes)
