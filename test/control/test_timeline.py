"""Rows by time: late, joined, never twice, never backwards."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vipra_ros.control.timeline import Timeline

T = 0.1


def put(
    line,
    start,
    stamp,
    *,
    rows=14,
    execute=7,
    commit=None,
    value=None,
    task=0,
    chunk=1,
    on_grid=True,
    period=T,
):
    """Add a chunk whose joint 1 is `value(t)`; the commit time is the stamp unless given."""
    times = stamp + period * np.arange(1, rows + 1)
    q = np.zeros((rows, 7))
    q[:, 0] = [value(t) if callable(value) else (value or 0.0) for t in times]
    return line.add(
        stamp=stamp,
        period=period,
        q=q,
        gripper=np.ones(rows),
        execute=execute,
        chunk_id=chunk,
        task_id=task,
        commit=start if commit is None else commit,
        on_grid=on_grid,
    )


def test_async_drops_late_rows_by_time():
    line = Timeline("async")
    added = put(line, 0.25, 0.0, on_grid=False, value=lambda t: t)
    assert (added.used, added.late) == (5, 2)  # rows at 0.1 and 0.2 are past
    assert [round(r.time, 6) for r in line.executable()] == [0.3, 0.4, 0.5, 0.6, 0.7]
    assert line.late == 2


def test_a_first_row_too_near_is_late():
    line = Timeline("async")
    assert put(line, 0.08, 0.0, on_grid=False).late == 1
    assert put(Timeline("async"), 0.06, 0.0, on_grid=False).late == 0


def test_sync_begins_on_arrival_and_appends():
    line = Timeline("sync")
    assert put(line, 5.0, 1.0).late == 0
    assert line.executable()[0].time == pytest.approx(5.1)
    put(line, 5.2, 1.0, chunk=2)
    assert [round(r.time, 6) for r in line.executable()][:2] == [5.3, 5.4]
    assert len(line.executable()) == 5 + 7
    assert len({r.chunk_id for r in line.executable()}) == 2


def test_all_late_changes_nothing():
    line = Timeline("async")
    put(line, 0.0, 0.0, value=1.0, on_grid=False)
    before = line.rows
    assert put(line, 3.0 - 2.4, -5.0, value=2.0).used == 0
    assert line.rows == tuple(r for r in before if r.time > 0.6 + 1e-6)


@pytest.mark.parametrize(
    "blending, expected",
    [
        ("none", [1.0, 1.0, 1.0, 1.0]),
        ("linear", [i / 11 for i in range(1, 5)]),
        ("ensemble", [0.5 - 0.0025] * 4),
    ],
)
def test_blending_over_the_overlap(blending, expected):
    line = Timeline("async", blending)
    put(line, 0.0, 0.0, value=0.0, on_grid=False)
    added = put(line, 0.4, 0.4, value=1.0, chunk=2)  # old rows (with lookahead) until 1.4: 10 in common
    assert added.boundary_step == pytest.approx(1.0)
    assert added.blended == (0 if blending == "none" else 10)
    assert [r.q[0] for r in line.executable()][:4] == pytest.approx(expected, abs=1e-4)


def test_ensemble_weights_oldest_most():
    line = Timeline("async", "ensemble", decay=0.5)
    for k, value in enumerate((0.0, 1.0, 2.0)):
        put(line, 0.1 * k, 0.1 * k, value=value, chunk=k, on_grid=k > 0)
    weights = np.exp(-0.5 * np.arange(3))
    assert line.executable()[0].q[0] == pytest.approx(weights @ [0, 1, 2] / weights.sum())


def test_a_chunk_off_the_beat_is_interpolated_onto_the_grid():
    line = Timeline("async", "none")
    put(line, 0.0, 0.0, value=lambda t: 2 * t, on_grid=False)
    put(line, 0.2, 0.16, value=lambda t: 2 * t, chunk=2)
    assert [round(r.time, 6) for r in line.executable()][:3] == [0.3, 0.4, 0.5]
    for row in line.executable():
        assert row.q[0] == pytest.approx(2 * row.time)
    assert line.executable()[-1].time <= 0.16 + 7 * T + 1e-9  # lookahead stays lookahead


def test_lookahead_is_never_executed_alone():
    line = Timeline("async")
    put(line, 0.0, 0.0, on_grid=False)
    assert len(line.expire(2.0)) == 7
    assert line.rows == () and line.executed == 7


def test_instruction_change_flushes():
    line = Timeline("async", "linear")
    put(line, 0.0, 0.0, value=0.0, on_grid=False)
    added = put(line, 0.2, 0.2, value=1.0, task=1, chunk=2)
    assert added.blended == 0 and added.flushed == 12
    assert all(r.q[0] == 1.0 and r.task_id == 1 for r in line.rows)


def test_committed_rows_for_real_time_chunking():
    line = Timeline("async")
    put(line, 0.0, 0.0, value=lambda t: t, on_grid=False)
    times, rows = line.committed(0.25, 3)
    assert times == pytest.approx([0.3, 0.4, 0.5]) and rows.shape == (3, 8)
    assert rows[:, 0] == pytest.approx(times)


def test_velocities_are_central_and_do_not_overshoot():
    line = Timeline("async", "none")
    put(line, 0.0, 0.0, value=lambda t: t * t, on_grid=False)
    times, _, dq = line.targets(0.0, np.zeros(7))
    assert dq[1:, 0] == pytest.approx(2 * times[1:])  # exact for a parabola, the last by its lookahead
    line = Timeline("async", "none")
    put(line, 0.0, 0.0, value=lambda t: (-1.0) ** round(t / T), on_grid=False)
    assert np.all(line.targets(0.0, np.zeros(7))[2] == 0)


def test_sync_ends_at_rest():
    line = Timeline("sync", "none")
    put(line, 0.0, 0.0, value=lambda t: t)
    _, _, dq = line.targets(0.0, np.zeros(7))
    assert dq[0, 0] == pytest.approx(1.0) and np.all(dq[-1] == 0)


def test_wrong_mode_is_named():
    with pytest.raises(ValueError, match="async"):
        Timeline("soon")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.floats(-0.5, 0.3), st.floats(0.0, 0.4), st.integers(1, 14), st.integers(0, 1)),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from(["sync", "async"]),
    st.sampled_from(["none", "linear", "ensemble"]),
)
def test_no_row_twice_and_no_step_back(chunks, mode, blending):
    line, now, done = Timeline(mode, blending), 0.0, []
    for number, (lag, passed, execute, task) in enumerate(chunks):
        rows = line.executable()
        grid = rows[0].time if rows and rows[0].time - T <= now else None
        put(
            line,
            0.0,
            now + lag,
            execute=execute,
            commit=grid or now,
            on_grid=grid is not None,
            task=task,
            chunk=number,
        )
        times = [r.time for r in line.rows]
        assert np.all(np.diff(times) > T / 2)
        now += passed
        done += [r.time for r in line.expire(now)]
    done += [r.time for r in line.expire(now + 100)]
    assert np.all(np.diff(done) > T / 4), done
    assert line.executed >= len(done)
