"""Starts, phrases and predicates, without physics."""

import numpy as np
import pytest

from vipra_ros.sim import tasks


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_seed_is_a_start(task):
    assert tasks.sample_start(task, 7) == tasks.sample_start(task, 7)
    assert tasks.sample_start(task, 7) != tasks.sample_start(task, 8)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_starts_leave_room_and_cover_colours_zones_and_phrases(task):
    starts = [tasks.sample_start(task, seed) for seed in range(300)]
    for start in starts:
        xy = np.array([c[:2] for c in start.cubes.values()])
        gaps = [np.linalg.norm(xy[i] - xy[j]) for i in range(3) for j in range(i)]
        assert min(gaps) > tasks.CUBE_SIZE * 1.4
        assert start.goal.colour in start.goal.instruction
        if task == "push":
            assert start.goal.zone in start.goal.instruction
    assert {s.goal.colour for s in starts} == set(tasks.COLOURS)
    assert {s.goal.zone for s in starts} == set(tasks.ZONES)
    shapes = {s.goal.instruction.replace(s.goal.colour, "C").replace(s.goal.zone, "Z") for s in starts}
    assert len(shapes) == len(tasks.PHRASES[task]) >= 3


def test_unknown_task_is_named():
    with pytest.raises(ValueError, match="'fly' is unknown.*reach, push, lift"):
        tasks.sample_start("fly", 0)


def _snapshot(time=0.0, tcp=(0.5, 0.0, 0.3), **cubes):
    places = {c: np.array([0.5, 0.1 * i, 0.025]) for i, c in enumerate(tasks.COLOURS)}
    return tasks.Snapshot(time, np.array(tcp), places | {c: np.array(p) for c, p in cubes.items()})


@pytest.mark.parametrize(("goal", "yes", "no"), [
    (tasks.Goal("reach", "red", "yellow", ""), _snapshot(tcp=(0.51, 0.01, 0.14)), _snapshot(tcp=(0.51, 0.01, 0.30))),
    (tasks.Goal("lift", "blue", "yellow", ""), _snapshot(blue=(0.5, 0, 0.12)), _snapshot(blue=(0.5, 0, 0.06))),
    (tasks.Goal("push", "green", "purple", ""), _snapshot(green=(0.5, -0.22, 0.025)),
     _snapshot(green=(0.5, 0.22, 0.025))),
])
def test_predicates(goal, yes, no):
    assert tasks.achieved(goal, yes)
    assert not tasks.achieved(goal, no)


def test_a_cube_carried_over_a_zone_is_not_in_it():
    assert not tasks.in_zone(np.array([0.5, tasks.ZONE_Y["yellow"], 0.2]), "yellow")


def test_success_has_to_last_and_another_colour_is_noted():
    goal = tasks.Goal("lift", "red", "yellow", "lift the red cube")
    judge = tasks.Judge(goal)
    up, down = dict(z=0.2), dict(z=0.025)

    def see(time, red, blue):
        return judge.see(_snapshot(time, red=(0.5, 0, red["z"]), blue=(0.5, 0.2, blue["z"])))

    assert not see(0.0, up, down)
    assert not see(0.3, down, down)  # dropped too early
    assert not see(1.0, down, up)
    assert not see(1.5, down, up)
    assert judge.acted_on == "blue" and not judge.success
    assert not see(2.0, up, down)
    assert see(2.0 + tasks.HOLD_SECONDS, up, down)
    assert judge.success_time == pytest.approx(2.0 + tasks.HOLD_SECONDS)
