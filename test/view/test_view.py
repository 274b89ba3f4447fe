"""Recordings are read back with rerun's own reader: entities, counts, times, values."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rerun", reason="pip install '.[view]'")

from rerun.chunk import RrdReader

from vipra_ros import cli
from vipra_ros.config import ConfigError
from vipra_ros.control.chunk import ActionChunk
from vipra_ros.control.kinematics import forward, frames
from vipra_ros.control.profile import load_profile
from vipra_ros.data import messages
from vipra_ros.data.bag_writer import EpisodeWriter
from vipra_ros.data.incident import _chunk
from vipra_ros.view import rrd, sources

PROFILE, T = load_profile("fr3"), 1 / 15
DATA = Path(__file__).parents[1] / "data"


def from_data(name):
    """A module of test/data: its episodes and incidents are written by the real writers."""
    known = f"view_{name}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, DATA / f"{name}.py")
        sys.modules[known] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[known])
    return sys.modules[known]


record = from_data("conftest").record


def read(path):
    """(rows per entity without static ones, entity -> its columns by component, times in s per entity)."""
    (entry,) = RrdReader(path).recordings()
    rows, columns, times = Counter(), {}, {}
    for chunk in RrdReader(path).stream(store=entry):
        if chunk.is_static or rrd.TIMELINE not in chunk.timeline_names:
            continue
        entity, table = chunk.entity_path.lstrip("/"), chunk.to_record_batch()
        rows[entity] += chunk.num_rows
        for name in table.schema.names:
            if name not in chunk.timeline_names:
                columns.setdefault(entity, {}).setdefault(name, []).extend(table[name].to_pylist())
        times.setdefault(entity, []).extend(np.array(table[rrd.TIMELINE].cast("int64")) / 1e9)
    return rows, columns, {k: np.array(v) for k, v in times.items()}


def values(columns, entity, component):
    """The one value of each row."""
    (name,) = [n for n in columns[entity] if n.endswith(component)]
    return [v[0] for v in columns[entity][name]]


def bodies(path):
    """entity -> the components of its shape, of those that are there at all times and have one."""
    (entry,) = RrdReader(path).recordings()
    found = {}
    for chunk in RrdReader(path).stream(store=entry):
        table = chunk.to_record_batch()
        if chunk.is_static and any(n.startswith("Capsules3D") for n in table.schema.names):
            found[chunk.entity_path.lstrip("/")] = {n.rpartition(":")[2]: table[n].to_pylist()[0]
                                                    for n in table.schema.names if n.startswith("Capsules3D")}
    return found


def poses(columns, entity):
    """(N, 4, 4), the transforms of an entity; rerun keeps matrices column by column."""
    out = np.tile(np.eye(4), (len(columns[entity]["Transform3D:translation"]), 1, 1))
    out[:, :3, 3] = values(columns, entity, "Transform3D:translation")
    out[:, :3, :3] = np.reshape(values(columns, entity, "Transform3D:mat3x3"), (-1, 3, 3)).transpose(0, 2, 1)
    return out


def steady(folder, chunks=5, spoil=False):
    """A bag of 1 s: the arm holds its home, each chunk wants joint 1 to turn; states in between."""
    types = messages.typestore().types
    writer, joints = EpisodeWriter(folder, "steady", sync=False), PROFILE.joint_names
    begin = 10**18
    for k in range(101):
        now = begin + k * 10**7
        raw = messages.joint_state(now, [PROFILE.finger_joint, *joints[::-1]], [0.02, *PROFILE.home_q[::-1]])
        writer.write("joint_states", messages.JOINT_STATE, raw, now)
    for i in range(chunks):
        q = PROFILE.home_q + np.outer(0.01 * np.arange(1, 15), np.eye(7)[0])
        rows = np.column_stack([q, np.ones(14)])
        if spoil:
            rows[:] = np.nan
        made = ActionChunk(0.2 * i, i + 1, T, rows[:7], rows[7:], joint_names=joints)
        writer.write("policy/chunk", messages.ACTION_CHUNK, _chunk(made, types, begin), begin + (200 * i + 50) * 10**6)
    status = messages.typestore().types[messages.EXECUTOR_STATUS]
    for i, (state, reasons) in enumerate((("ARMED", []), ("RUNNING", []), ("RUNNING", []), ("HOLD", ["late [it]"]))):
        zero = {n: (0.1 * i if t[1][0].startswith("float") else "" if t[1][0] == "string" else 0)
                for n, t in messages.typestore().fielddefs[messages.EXECUTOR_STATUS][1] if t[0].name == "BASE"}
        time = types["builtin_interfaces/msg/Time"](begin // 10**9, 0)
        zero |= dict(header=types["std_msgs/msg/Header"](time, ""), state=i, state_text=state, reasons=reasons)
        writer.write("executor/status", messages.EXECUTOR_STATUS, messages.serialize(
            status(**zero), messages.EXECUTOR_STATUS), begin + i * 10**8)
    return writer.close({"instruction": "turn", "robot": "fr3 at 172.16.0.2"})


def test_an_episode_as_it_was_recorded(record, tmp_path):
    bag = record("one", seconds=1.0)
    seen = sources.look(bag)
    said = rrd.write(seen, tmp_path / "one.rrd")
    rows, columns, times = read(tmp_path / "one.rrd")
    assert rows == Counter(said), "what is told is what is there"
    assert rows["camera/front"] == rows["camera/wrist"] == 31
    for joint in PROFILE.joint_names:
        assert rows[f"joints/{joint}/measured"] == rows[f"joints/{joint}/commanded"] == 101
        assert rows[f"joints/{joint}/limits/low"] == rows[f"speed/{joint}/limits/high"] == 2
    assert 28 <= rows["arm/measured"] <= 32 and rows["hand/commanded"] == 2 and rows["hand/measured"] == 101
    joint = np.array(values(columns, "joints/fr3_joint3/measured", "Scalars:scalars"))
    assert np.allclose(joint, [from_data("conftest").joints(t)[2] for t in times["joints/fr3_joint3/measured"]])
    assert np.allclose(times["camera/front"], np.arange(31) / 30, atol=1e-6)
    assert len(RrdReader(tmp_path / "one.rrd").blueprints()) == 1


def test_the_arm_is_drawn_where_the_kinematics_put_it_and_chunks_where_they_were_due(tmp_path):
    seen = sources.look(steady(tmp_path))
    rrd.write(seen, tmp_path / "steady.rrd")
    rows, columns, times = read(tmp_path / "steady.rrd")
    links = np.array(values(columns, "arm/measured", "LineStrips3D:strips"))
    assert links.shape[1:] == (10, 3) and np.allclose(links[:, 0], 0.0)
    assert np.allclose(links[:, -1], forward(PROFILE, PROFILE.home_q)[:3, 3], atol=1e-6)
    assert np.allclose(times["arm/predicted"], 0.05 + 0.2 * np.arange(5))
    way = np.array(values(columns, "arm/predicted", "LineStrips3D:strips"))
    turned = PROFILE.home_q + 0.14 * np.eye(7)[0]
    assert way.shape == (5, 14, 3) and np.allclose(way[0, -1], forward(PROFILE, turned)[:3, 3], atol=1e-6)
    lanes = sorted(e for e in rows if e.startswith("joints/fr3_joint1/predicted/"))
    assert len(lanes) == 5 and sum(rows[e] for e in lanes) == 5 * 14  # 14 rows last 0.93 s: five chunks overlap
    first = values(columns, lanes[0], "Scalars:scalars")
    assert np.allclose(first, PROFILE.home_q[0] + 0.01 * np.arange(1, 15))
    assert np.allclose(times[lanes[0]], T * np.arange(1, 15), atol=1e-6)
    assert values(columns, "log", "TextLog:text") == ["ARMED", "RUNNING", "HOLD - late [it]"]
    assert values(columns, "log", "TextLog:level") == ["INFO", "INFO", "WARN"]
    assert rows["figures/tracking_error"] == 4 and values(columns, "hand/measured", "Scalars:scalars")[0] == 0.02


def test_the_body_moves_as_the_kinematics_say(record, tmp_path):
    bag = record("one", seconds=1.0)
    rrd.write(sources.look(bag), tmp_path / "one.rrd")
    _, columns, times = read(tmp_path / "one.rrd")
    moved = [c.link for c in PROFILE.capsules if c.link]
    assert moved
    for link in moved:
        entity = f"arm/measured/link{link}"
        q = np.array([from_data("conftest").joints(t) for t in times[entity]])[:, :7]
        assert np.ptp(q, axis=0).max() > 0.01 and np.array_equal(times[entity], times["arm/measured"])
        assert np.allclose(poses(columns, entity), frames(PROFILE, q)[:, link - 1], atol=1e-6)


def test_the_shapes_are_the_capsules_of_the_profile(tmp_path):
    rrd.write(sources.look(steady(tmp_path)), tmp_path / "steady.rrd")
    found = bodies(tmp_path / "steady.rrd")
    links = sorted({c.link for c in PROFILE.capsules})
    assert sorted(found) == sorted(f"arm/{which}/link{n}" for which in ("measured", "predicted") for n in links)
    for link in links:
        shape, told = found[f"arm/measured/link{link}"], [c for c in PROFILE.capsules if c.link == link]
        assert np.allclose(shape["radii"], [c.radius for c in told])
        for i, capsule in enumerate(told):
            x, y, z = shape["rotation_axis_angles"][i]["axis"]
            angle, across = shape["rotation_axis_angles"][i]["angle"], np.hypot(x, y)
            assert z == 0.0 and across > 0.0, "turned about an axis across z"
            way = np.array([np.sin(angle) * y / across, -np.sin(angle) * x / across, np.cos(angle)])
            assert np.allclose(shape["translations"][i], capsule.start)
            assert np.allclose(shape["translations"][i] + shape["lengths"][i] * way, capsule.end, atol=1e-6)
    alpha = {which: found[f"arm/{which}/link1"]["colors"][0] & 0xFF for which in ("measured", "predicted")}
    assert alpha["measured"] == 255 and alpha["predicted"] < 128, "what was is solid, what was foreseen is seen through"


def test_the_predicted_body_is_where_the_newest_chunk_wanted_it(tmp_path):
    rrd.write(sources.look(steady(tmp_path)), tmp_path / "steady.rrd")
    _, columns, times = read(tmp_path / "steady.rrd")
    due = np.concatenate([0.2 * i + T * np.arange(1, 4 if i < 4 else 15) for i in range(5)])
    assert np.allclose(times["arm/predicted/link7"], due, atol=1e-6), "three rows until the next chunk, of the last all"
    turned = PROFILE.home_q + np.outer(0.01 * np.round((due - 0.2 * np.minimum(due // 0.2001, 4)) / T), np.eye(7)[0])
    assert np.allclose(poses(columns, "arm/predicted/link7"), frames(PROFILE, turned)[:, 6], atol=1e-6)


def test_a_chunk_of_nan_draws_nothing(tmp_path):
    rrd.write(sources.look(steady(tmp_path, spoil=True)), tmp_path / "nan.rrd")
    rows, _, _ = read(tmp_path / "nan.rrd")
    assert not any("predicted" in entity for entity in rows) and rows["joints/fr3_joint1/measured"] == 101


def test_an_incident_counts_from_its_fault(tmp_path):
    incident = from_data("test_incident")
    flown = incident.Flown()
    flown.fly(0.6)
    flown.fly(0.4, spoil=True)
    flown.fail()
    seen = sources.look(incident.write(flown, tmp_path / "in"))
    rrd.write(seen, tmp_path / "incident.rrd")
    rows, columns, times = read(tmp_path / "incident.rrd")
    begin, end = times["joints/fr3_joint7/measured"][[0, -1]]
    assert begin < -0.9 and 0.0 <= end < 0.1
    assert rows["joints/fr3_joint7/arm_command"] == rows["joints/fr3_joint7/commanded"] > 45
    texts, levels = values(columns, "log", "TextLog:text"), values(columns, "log", "TextLog:level")
    fault = next(i for i, t in enumerate(texts) if "joint_reflex" in t)
    assert levels[fault] == "ERROR" and abs(times["log"][fault]) < 0.05
    assert any("not finite" in t for t in texts) and rows["figures/limited"] > 45


def test_an_episode_of_a_data_set(record, tmp_path, capsys):
    from vipra_ros.data.convert import convert

    bags = [record("a", seconds=1.5), record("b", seconds=2.0)]
    convert(bags, tmp_path / "set", fps=15)
    out = tmp_path / "b.rrd"
    with pytest.raises(SystemExit) as ended:
        cli.main(["view", str(tmp_path / "set"), "--episode", "1", "--save", str(out)])
    assert ended.value.code == 0 and f"vipra view {tmp_path / 'set'} --episode 1 --open" in capsys.readouterr().out
    rows, columns, times = read(out)
    seen = sources.look(tmp_path / "set", 1)
    frames = len(seen.joints["measured"][0])
    assert 25 <= frames <= 31 and rows["camera/front"] == rows["joints/fr3_joint1/commanded"] == frames
    assert times["joints/fr3_joint1/commanded"][0] == pytest.approx(1 / 15, abs=1e-6)
    assert "push the green cube" in values(columns, "log", "TextLog:text")[0]
    with pytest.raises(ConfigError, match="episode 2 is asked for, there are 0 to 1"):
        sources.look(tmp_path / "set", 2)


def test_episodes_of_one_name_are_two_recordings(tmp_path):
    ids = set()
    for folder in ("monday", "tuesday"):
        rrd.write(sources.look(steady(tmp_path / folder)), tmp_path / f"{folder}.rrd")
        (entry,) = RrdReader(tmp_path / f"{folder}.rrd").recordings()
        ids.add(entry.recording_id)
    assert len(ids) == 2 and all(i.startswith("steady-") for i in ids)


def test_a_folder_of_bags_and_what_is_none(record, tmp_path):
    record("a", seconds=0.5)
    record("b", seconds=0.5)
    assert sources.look(tmp_path / "bags", 1).name == "b"
    with pytest.raises(ConfigError, match="episode 2 is asked for, there are 2 bags; give --episode 0 .. 1"):
        sources.look(tmp_path / "bags", 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds neither a bag nor a data set"):
        sources.look(tmp_path / "empty")
