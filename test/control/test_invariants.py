"""No chunk sequence whatever makes a commanded sample leave a limit (judge: conftest.violations).

VIPRA_EXAMPLES=20000 runs as many sequences; with -s the counts are printed.
"""

import os
from collections import Counter

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from vipra_ros.control.executor import ExecutorSettings
from vipra_ros.control.guard import State

EXAMPLES = int(os.environ.get("VIPRA_EXAMPLES", "300"))
PERIOD = 1 / 15
CONTENT = ("sine", "noise", "flip", "step", "limit", "corner", "still", "nan", "huge", "drill")
TIMING = ("now", "now", "late", "old", "future", "far", "duplicate", "reordered")
EVENTS = ("none",) * 6 + ("hold", "stop", "home", "reset", "task", "pause", "lost")
SEEN = Counter()

chunk_plan = st.tuples(
    st.sampled_from(CONTENT),
    st.sampled_from(TIMING),
    st.sampled_from(EVENTS),
    st.integers(0, 2**16),
    st.floats(0.02, 3.0),
    st.integers(1, 14),
)
plan = st.fixed_dictionaries(
    dict(
        chunks=st.lists(chunk_plan, min_size=2, max_size=6),
        mode=st.sampled_from(["async", "async", "sync"]),
        blending=st.sampled_from(["none", "linear", "ensemble"]),
        space=st.sampled_from(["joint_position"] * 3 + ["joint_delta", "ee_delta"]),
        start_action=st.just("blend"),
        rate=st.sampled_from([PERIOD, PERIOD, 1 / 22, 1 / 50]),
        jitter=st.floats(0.2, 5.0),
    )
)


def rows_of(content, space, rng, size, horizon, q, profile):
    """Adversarial rows (horizon, A)."""
    width = 6 if space == "ee_delta" else 7
    low, high = np.array(profile.q_min), np.array(profile.q_max)
    k = np.arange(1, horizon + 1)[:, None]
    if space == "joint_position":
        base = {
            "sine": q + size * 0.3 * np.sin(0.4 * k + rng.uniform(0, 6, width)),
            "noise": q + rng.normal(0, size, (horizon, 7)),
            "flip": q + size * np.where(k % 2, 1, -1) * rng.uniform(-1, 1, 7),
            "still": np.tile(q, (horizon, 1)),
            "step": np.tile(rng.uniform(low, high), (horizon, 1)),
            "limit": np.where(rng.random(7) < 0.5, low, high) + 0 * k,
            "corner": q + (np.where(rng.random(7) < 0.5, low, high) - q) * np.minimum(1, k * size / 10),
            "drill": q + np.array([0, 0.1, 0, 0.05, 0, 0.05, 0]) * k * size,
        }.get(content, np.tile(q, (horizon, 1)))
        rows = np.clip(base, low - 0.19, high + 0.19)
    else:
        scale = np.array([0.09] * 3 + [0.4] * 3) if space == "ee_delta" else np.full(7, 0.4)
        rows = rng.uniform(-1, 1, (horizon, width)) * scale * min(1.0, size)
        if content in ("step", "limit", "corner", "drill"):
            rows = np.tile(np.sign(rows[:1]) * scale * min(1.0, size), (horizon, 1))
            if content == "drill" and space == "ee_delta":
                rows[:] = np.array([0, 0, -0.05, 0, 0, 0]) * min(1.0, size)
    rows = np.column_stack([rows, rng.uniform(-1, 1, horizon)])
    if content == "nan":
        rows[rng.integers(horizon), rng.integers(width)] = rng.choice([np.nan, np.inf, -np.inf])
    if content == "huge":
        rows[rng.integers(horizon), rng.integers(width)] = rng.choice([1e6, -1e6])
    return rows


def drive(rig, plan):
    """Run one plan through the core."""
    rng = np.random.default_rng(1)
    rig.arm()
    task = 0
    for content, timing, event, seed, size, execute in plan["chunks"]:
        own = np.random.default_rng(seed)
        period = plan["rate"]
        if event == "task":
            task += 1
        q = rig.core.reference().at(rig.now)[0]
        rows = rows_of(content, plan["space"], own, size, 14, q, rig.profile)
        stamp = rig.now + {"late": -0.3, "old": -2.0, "future": 0.09, "far": 1.0}.get(timing, 0.0)
        ids = rig.ids + {"duplicate": 0, "reordered": -2}.get(timing, 1)
        rig.ids = max(rig.ids, ids)
        chunk = rig.chunk(stamp=stamp)
        rig.ids -= 1
        chunk = type(chunk)(
            **{
                **chunk.__dict__,
                "actions": rows[:execute],
                "lookahead": rows[execute:],
                "chunk_id": ids,
                "action_space": plan["space"],
                "step_period": period,
                "task_id": task,
                "policy_id": f"{execute}",
                "epoch": rig.core.epoch,
            }
        )
        if execute != 7:  # another horizon is another policy: give the old one's lease back
            rig.core.validator.forget()
        verdict = rig.core.offer(chunk, rig.now)
        assert not (verdict and (content in ("nan", "huge") or timing in ("old", "far")))
        if event in ("hold", "stop", "home", "reset"):
            rig.run(0.05)
            getattr(rig.core, event)(rig.now)
        if event == "pause":
            rig.state_time = rig.now
        if event == "lost":
            rig.offset = np.full(7, np.nan)
        until = rig.now + own.uniform(0.05, 0.6)
        while rig.now < until:
            rig.tick(0.01 * rng.uniform(0.2, plan["jitter"]))
        rig.state_time, rig.offset = None, np.zeros(7)
        SEEN.update(chunks=1, taken=bool(verdict), faults=rig.core.machine.state is State.FAULT)
        if rig.core.machine.state is State.FAULT:
            rig.run(0.4)
            rig.core.recover(rig.now)
        rig.core.arm(rig.now)
    rig.run(1.0, 0.02)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= 300,  # a campaign in several processes must not repeat itself
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate,) if EXAMPLES > 300 else tuple(Phase),
)
@given(plan=plan)
def test_every_emitted_sample_is_within_every_limit(plan, make_rig):
    rig = make_rig(
        ExecutorSettings(
            mode=plan["mode"],
            blending=plan["blending"],
            action_space=plan["space"],
            start_action="blend",
            chunk_timeout=0.5,
        )
    )
    drive(rig, plan)
    assert not any("internal" in reason for reason in rig.core.machine.reasons), rig.core.machine.reasons
    SEEN.update(sequences=1, samples=len(rig.samples))
    if SEEN["sequences"] % max(1, EXAMPLES // 10) == 0:
        print(dict(SEEN), flush=True)
    assert rig.wrong() == []
    assert rig.core.reference().state(rig.now).at_rest or rig.core.machine.state is State.RUNNING


def test_the_judge_sees_each_kind_of_violation(violations):
    t = np.arange(0, 1, 0.001)[:, None]
    home = np.array([0, -np.pi / 4, 0, -3 * np.pi / 4, 0, np.pi / 2, np.pi / 4])
    assert violations(home + 0 * t) == []
    fast = violations(home + 1.3 * t * np.eye(7)[6])
    assert [w.split(":")[0] for w in fast] == ["velocity"]
    jump = violations(home + np.where(t > 0.5, 1e-5, 0) * np.eye(7)[2])
    assert {w.split(":")[0] for w in jump} == {"acceleration", "jerk"}
    near = np.array(home)
    near[1] = 1.73
    assert any("position-dependent" in w for w in violations(near + 0.5 * t[:20] * np.eye(7)[1]))
    assert any("position margin" in w for w in violations(near + 0.5 * t * np.eye(7)[1]))
    low = np.array(home)
    low[1] = 1.2
    assert any("workspace" in w for w in violations(np.tile(low, (5, 1))))
