"""Data sets merged, split and checked; every kind of damage is named."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vipra_ros.data import dataset_check, dataset_edit, dataset_show
from vipra_ros.data.convert import convert
from vipra_ros.data.dataset import Dataset, DatasetError
from vipra_ros.learning.tokenise import fingerprint

META = {"instruction": "push", "success": True, "robot": "fr3"}


@pytest.fixture
def sets(record, tmp_path):
    """Two data sets of 3 and 2 episodes, and one of all 5."""
    bags = []
    for i in range(5):
        meta = {"instruction": f"lift the {('red', 'blue')[i % 2]} cube", "task": "lift", "seed": i, "success": True,
                "robot": "fr3"}
        bags.append(record(f"bag{i}", seconds=1.2 + 0.2 * i, cameras=("front",), meta=meta,
                           q=lambda t, i=i: 0.3 * np.sin(t + i + np.arange(7)),
                           q_cmd=lambda t, i=i: 0.3 * np.sin(t + 0.04 + i + np.arange(7))))
    for name, part in (("a", bags[:3]), ("b", bags[3:]), ("all", bags)):
        convert(part, tmp_path / name, quiet=True)
    return tmp_path


def same(a, b, stats=True):
    """Both data sets hold the same episodes, pictures included."""
    assert [(e.task, e.length, e.seed, e.source, e.success) for e in a.episodes] == [
        (e.task, e.length, e.seed, e.source, e.success) for e in b.episodes
    ]
    for name, feature in a.features.items():
        if feature["dtype"] != "video":
            np.testing.assert_array_equal(a.numeric(name), b.numeric(name))
            if stats and name in a.statistics:
                for key, values in a.statistics[name].items():
                    np.testing.assert_allclose(values, b.statistics[name][key], atol=1e-12)
    for (i, one), (j, other) in zip(a.frames("front"), b.frames("front"), strict=True):
        assert i == j and np.array_equal(one, other)
    one, other = (d.statistics["observation.images.front"] for d in (a, b))
    assert np.abs(one["mean"] - other["mean"]).max() < 0.01  # those of b are of decoded frames


def test_merged_is_as_if_converted_together(sets):
    dataset_edit.merge([sets / "a", sets / "b"], sets / "merged")
    same(Dataset(sets / "all"), Dataset(sets / "merged"))
    assert dataset_check.check(sets / "merged", deep=True) == []
    assert not list(sets.glob(".*partial"))


def test_split_by_share_and_by_list_and_back(sets):
    chosen, others = dataset_edit.split(sets / "all", sets / "x", sets / "y", share=0.6, seed=4)
    assert sorted(chosen + others) == list(range(5)) and len(chosen) == 3
    assert dataset_edit.split(sets / "all", sets / "x2", sets / "y2", share=0.6, seed=4)[0] == chosen
    dataset_edit.split(sets / "all", sets / "a2", sets / "b2", episodes="0-1, 2")
    same(Dataset(sets / "a"), Dataset(sets / "a2"))
    same(Dataset(sets / "b"), Dataset(sets / "b2"))
    assert dataset_check.check(sets / "b2", deep=True) == []
    for wrong in (dict(share=1.5), dict(episodes="0-9"), dict(episodes="a"), dict(episodes="0-4"), dict(),
                  dict(share=0.5, episodes="1")):
        with pytest.raises(DatasetError):
            dataset_edit.split(sets / "all", sets / "p", sets / "q", **wrong)
    assert not (sets / "p").exists()
    with pytest.raises(DatasetError, match="exists"):
        dataset_edit.split(sets / "all", sets / "x", sets / "new", share=0.5)


def test_a_share_takes_from_every_task():
    tasks = ["lift"] * 100 + ["push"] * 20 + ["reach"] * 10
    chosen = dataset_edit.draw(tasks, 0.9, 0)
    counts = [sum(tasks[i] == t for i in chosen) for t in ("lift", "push", "reach")]
    assert len(chosen) == 117 and np.abs(np.array(counts) - [90, 18, 9]).max() <= 1
    assert chosen != dataset_edit.draw(tasks, 0.9, 1)


def test_what_does_not_fit_is_named(sets, record, tmp_path):
    bag = record("two", cameras=("front", "wrist"), meta=META)
    convert([bag], tmp_path / "two", quiet=True)
    with pytest.raises(DatasetError, match="observation.images.wrist"):
        dataset_edit.merge([sets / "a", tmp_path / "two"], tmp_path / "out")
    convert([record("slow", cameras=("front",), meta=META)], tmp_path / "slow", fps=10.0, quiet=True)
    with pytest.raises(DatasetError, match="fps 15.0, .* 10.0"):
        dataset_edit.merge([sets / "a", tmp_path / "slow"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_differently_encoded_sets_are_encoded_anew(sets, record, tmp_path):
    from vipra_ros.data.convert import ConvertSettings
    from vipra_ros.data.video import Codec
    settings = ConvertSettings(codec=Codec(crf=20, preset="veryfast", pixel_format="yuv420p"))
    convert([record("other", cameras=("front",), meta=META)], tmp_path / "c", settings=settings, quiet=True)
    dataset_edit.merge([sets / "a", tmp_path / "c"], tmp_path / "mixed")
    assert dataset_check.check(tmp_path / "mixed", deep=True) == []
    mixed, first = Dataset(tmp_path / "mixed"), Dataset(sets / "a")
    off = [np.abs(m.astype(int) - f).mean() for (_, m), (_, f) in zip(mixed.frames("front"), first.frames("front"))]
    assert len(off) == len(first) and max(off) < 3.0


def edit_parquet(path, change):
    table = pq.read_table(path)
    pq.write_table(change(table), path)


def with_column(table, name, values):
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))


def test_every_damage_is_named(sets, capsys):
    whole = sets / "all"
    assert dataset_check.check(whole, deep=True) == [] and dataset_check.main(str(whole)) == 0

    def damaged(change):
        copy = sets / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        change(copy)
        return "\n".join(dataset_check.check(copy, deep=True))

    rows = "data/chunk-000/file-000.parquet"
    episodes = "meta/episodes/chunk-000/file-000.parquet"

    def column(file, name, function):
        return lambda d: edit_parquet(d / file, lambda t: with_column(t, name, function(t[name].to_pylist())))

    def info(**changes):
        def change(d):
            path = d / "meta" / "info.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return change

    def cut_video(d):
        file = next((d / "videos").rglob("*.mp4"))
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    def stats(d):
        path = d / "meta" / "stats.json"
        values = json.loads(path.read_text())
        values["action"]["mean"][2] += 0.1
        path.write_text(json.dumps(values))

    assert "timestamp is 0.1000 s in row 7" in damaged(column(rows, "timestamp", lambda v: v[:7] + [0.1] + v[8:]))
    assert "index is 0 in row 3, 3 is expected" in damaged(column(rows, "index", lambda v: v[:3] + [0] + v[4:]))
    assert "in its rows" in damaged(column(rows, "task_index", lambda v: [1 - x for x in v]))
    assert "rows, " in damaged(lambda d: edit_parquet(d / rows, lambda t: t.slice(0, t.num_rows - 5)))
    assert "was the next frame" in damaged(column(episodes, "length", lambda v: [v[0] + 1, *v[1:]]))
    assert "info.json says 7" in damaged(info(total_episodes=7))
    assert "file-000.mp4" in damaged(cut_video)
    assert "is missing" in damaged(lambda d: next((d / "videos").rglob("*.mp4")).unlink())
    assert "stats.json: action[2]: mean" in damaged(stats)
    key = "videos/observation.images.front/from_timestamp"
    assert "begins at frame" in damaged(column(episodes, key, lambda v: [v[0] + 0.4, *v[1:]]))
    bad = [[np.nan] * 8]
    assert "action is not finite in row 2" in damaged(column(rows, "action", lambda v: v[:2] + bad + v[3:]))
    assert dataset_check.main(str(sets / "copy")) == 1
    capsys.readouterr()
    assert dataset_check.main(str(sets / "copy"), json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["good"] and told["problems"]


def test_show_fits_a_terminal_and_draws(sets, capsys):
    dataset_show.main(str(sets / "all"), str(sets / "plot.png"))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 80 and "5 episodes" in lines[0] + lines[1]
    assert (sets / "plot.png").stat().st_size > 20_000


def test_show_prints_its_figures_for_scripts(sets, capsys):
    dataset_show.main(str(sets / "all"), json=True)
    told, d = json.loads(capsys.readouterr().out), Dataset(sets / "all")
    assert (told["episodes"], told["frames"]) == (5, len(d)) and told["seconds"] == pytest.approx(len(d) / d.fps)
    assert sum(t["episodes"] for t in told["tasks"]) == 5
    assert sum(t["seconds"] for t in told["tasks"]) == pytest.approx(told["seconds"])
    assert list(told["cameras"]) == d.cameras and len(told["action"]) == 8
    column = d.numeric("action")[:, 2]
    assert told["action"][2]["min"] == pytest.approx(column.min()) and told["action"][2]["max"] == column.max()


def test_codes_and_labels_know_a_conversion_of_other_pictures_and_no_restored_file(record, tmp_path):
    """Frames of one data set are not taken for those of another with the same episodes and lengths."""
    bags = [record("bag", cameras=("front",)), record("same", cameras=("front",), root=tmp_path / "other",
                                                      picture=lambda k, shift: np.full((64, 64, 3), 3 * k, np.uint8))]
    for name, bag in zip("ab", bags):
        convert([bag], tmp_path / name, quiet=True)
    convert([bags[0]], tmp_path / "again", quiet=True)
    a, b, again = (Dataset(tmp_path / name) for name in ("a", "b", "again"))
    assert [(e.length, e.task) for e in a.episodes] == [(e.length, e.task) for e in b.episodes]
    assert fingerprint(a) == fingerprint(again) != fingerprint(b)
    video, _ = a.video_of("front", 0)[:2]
    video.write_bytes(video.read_bytes()[:-100])
    assert fingerprint(a) == fingerprint(again)


def test_maps_may_differ_and_an_episode_of_two_tasks_is_not_copied(sets, tmp_path):
    info = sets / "b" / "meta" / "info.json"
    values = json.loads(info.read_text())
    values["vipra_ros"]["topics"]["instruction"]["text"] = "lift it"
    info.write_text(json.dumps(values))
    assert len(Dataset(dataset_edit.merge([sets / "a", sets / "b"], tmp_path / "both")).episodes) == 5
    (path,) = (sets / "b" / "meta" / "episodes").glob("*/*.parquet")
    table = pq.read_table(path)
    tasks = [["reach", "lift"], *table["tasks"].to_pylist()[1:]]
    at = table.column_names.index("tasks")
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(tasks, table.schema.field(at).type)), path)
    with pytest.raises(DatasetError, match="episode 0 has 2 tasks"):
        dataset_edit.merge([sets / "a", sets / "b"], tmp_path / "out")


def test_cameras_may_have_names_without_the_usual_beginning(sets):
    old, new = "observation.images.front", "observation.image"
    for path in (sets / "a" / "meta").glob("*.json"):
        path.write_text(path.read_text().replace(old, new))
    (path,) = (sets / "a" / "meta" / "episodes").glob("*/*.parquet")
    table = pq.read_table(path)
    pq.write_table(table.rename_columns([c.replace(old, new) for c in table.column_names]), path)
    (sets / "a" / "videos" / old).rename(sets / "a" / "videos" / new)
    d = Dataset(sets / "a")
    assert dataset_show.summary(d)["cameras"] == {new: [64, 64]} and dataset_check.check(sets / "a") == []
