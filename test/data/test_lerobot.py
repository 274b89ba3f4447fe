"""The writer of LeRobot v3.0 and our reader of it: numbers, pictures, layout, refusals."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from vipra_ros.data.dataset import Dataset, DatasetError
from vipra_ros.data.lerobot import DatasetWriter
from vipra_ros.data.statistics import StatisticsError
from vipra_ros.data.video import encode_video, read_frames

FEATURES = {
    "observation.state": {"dtype": "float32", "shape": [3], "names": ["a", "b", "gripper"]},
    "action": {"dtype": "float32", "shape": [3], "names": ["a", "b", "gripper"]},
    "stamp_ns": {"dtype": "int64", "shape": [1], "names": None},
}
TASKS = ["lift the red cube", "hebe den blauen Würfel 立方体"]


def frames(k: int, count: int) -> list[np.ndarray]:
    return [np.full((32, 40, 3), (40 * k, 5 * i, 120), np.uint8) for i in range(count)]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A data set of 4 episodes over several files of both kinds, with what was put in."""
    monkeypatch.setattr("vipra_ros.data.lerobot._EPISODES", 3)
    rng = np.random.default_rng(0)
    writer = DatasetWriter(
        tmp_path / "set", 15.0, FEATURES, {"front": (32, 40)}, "fr3", data_mb=0.0006, video_mb=0.001
    )
    numbers, pictures = [], []
    for k, count in enumerate((6, 9, 4, 8)):
        path = tmp_path / f"{k}.mp4"
        encode_video(path, frames(k, count), 15.0)
        numeric = {
            "observation.state": rng.normal(size=(count, 3)).astype(np.float32),
            "action": rng.normal(size=(count, 3)).astype(np.float32),
            "stamp_ns": np.arange(count) + 10**18,
        }
        histogram = np.ones((3, 256), np.int64)
        extra = {
            "colour": "red" if k else None,
            "seed": k,
            "success": True,
            "source": f"bag{k}",
            "task_key": "lift",
        }
        assert writer.add(numeric, {"front": path}, TASKS[k % 2], {"front": histogram}, extra) == k
        numbers.append(numeric)
        pictures += list(read_frames(path, 15.0))
    writer.close()
    return tmp_path / "set", numbers, pictures


def test_numbers_come_back_exactly(made):
    path, numbers, _ = made
    dataset = Dataset(path)
    assert len(list((path / "data").glob("*/*.parquet"))) > 1, "the test must cover several files"
    for column in FEATURES:
        want = np.concatenate([n[column] for n in numbers]).reshape(27, -1)
        got = dataset.numeric(column)
        assert got.dtype == want.dtype and np.array_equal(got, want)
    assert np.array_equal(dataset.numeric("index")[:, 0], np.arange(27))
    assert dataset.numeric("frame_index")[5:8, 0].tolist() == [5, 0, 1]
    assert np.allclose(dataset.numeric("timestamp")[6:9, 0], np.arange(3) / 15)
    assert dataset.numeric("task_index")[[0, 6, 15, 19], 0].tolist() == [0, 1, 0, 1]
    with pytest.raises(DatasetError, match="no numeric column 'x'; it has observation.state"):
        dataset.numeric("x")


def test_episodes_tell_what_they_are(made):
    dataset = Dataset(made[0])
    assert [(e.index, e.length, e.start, e.task) for e in dataset.episodes] == [
        (0, 6, 0, TASKS[0]),
        (1, 9, 6, TASKS[1]),
        (2, 4, 15, TASKS[0]),
        (3, 8, 19, TASKS[1]),
    ]
    assert dataset.episodes[0].colour is None and dataset.episodes[3].colour == "red"
    assert dataset.episodes[2].seed == 2 and dataset.episodes[1].source == "bag1"
    assert (
        dataset.fps == 15.0 and dataset.cameras == ["front"] and dataset.tasks == TASKS and len(dataset) == 27
    )
    assert [dataset.episode_of(i).index for i in (0, 5, 6, 26)] == [0, 0, 1, 3]
    with pytest.raises(DatasetError, match="frames 0 to 26"):
        dataset.episode_of(27)


def test_pictures_stream_in_order_and_by_index(made):
    path, _, pictures = made
    dataset = Dataset(path)
    assert len(list((path / "videos").glob("*/*/*.mp4"))) > 1, "the test must cover several files"
    stream = list(dataset.frames("front"))
    assert [i for i, _ in stream] == list(range(27))
    assert all(np.array_equal(image, want) for (_, image), want in zip(stream, pictures, strict=True))
    for i in (26, 0, 14, 15, 6):
        assert np.array_equal(dataset.frame("front", i), pictures[i])
    assert [i for i, _ in dataset.frames("front", 4, 17)] == list(range(4, 17))
    assert list(dataset.frames("front", 5, 5)) == []
    with pytest.raises(DatasetError, match="no camera 'top'; it has front"):
        next(dataset.frames("top"))


def test_statistics_are_global_and_per_episode(made):
    path, numbers, _ = made
    whole = np.concatenate([n["action"] for n in numbers]).astype(np.float64)
    got = Dataset(path).statistics["action"]
    assert np.allclose(got["mean"], whole.mean(0)) and np.allclose(got["std"], whole.std(0))
    assert np.allclose(got["q99"], np.quantile(whole, 0.99, axis=0)) and got["count"].tolist() == [27]
    row = pq.read_table(path / "meta/episodes/chunk-000/file-000.parquet").to_pylist()[1]
    assert np.allclose(row["stats/action/max"], numbers[1]["action"].max(0))
    assert np.shape(row["stats/observation.images.front/mean"]) == (3, 1, 1)


def test_layout_is_v3(made):
    path = made[0]
    info = json.loads((path / "meta/info.json").read_text(encoding="utf-8"))
    assert info["codebase_version"] == "v3.0" and info["fps"] == 15 and info["total_frames"] == 27
    assert info["features"]["observation.images.front"]["info"]["video.codec"] == "h264"
    assert (path / info["data_path"].format(chunk_index=0, file_index=0)).exists()
    key = "observation.images.front"
    assert (path / info["video_path"].format(video_key=key, chunk_index=0, file_index=1)).exists()
    row = pq.read_table(path / "meta/episodes/chunk-000/file-000.parquet").to_pylist()[3]
    assert row["dataset_from_index"] == 19 and row["dataset_to_index"] == 27
    assert row[f"videos/{key}/to_timestamp"] - row[f"videos/{key}/from_timestamp"] == pytest.approx(8 / 15)
    file = info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
    table = pq.read_table(path / file)
    assert 3 in table["episode_index"].to_pylist()
    assert pq.read_schema(path / "meta/tasks.parquet").pandas_metadata["index_columns"] == ["task"]


def test_what_does_not_fit_is_refused_and_the_rest_survives(tmp_path):
    writer = DatasetWriter(tmp_path / "set", 15.0, FEATURES, {"front": (32, 40)}, "fr3")
    encode_video(tmp_path / "a.mp4", frames(0, 3), 15.0)
    numeric = {k: np.zeros((3, f["shape"][0])) for k, f in FEATURES.items()}
    histograms = {"front": np.ones((3, 256), np.int64)}

    def add(videos=None, **changes):
        return writer.add(numeric | changes, videos or {"front": tmp_path / "a.mp4"}, "lift", histograms)

    with pytest.raises(DatasetError, match="lengths"):
        add(action=np.zeros((4, 3)))
    with pytest.raises(DatasetError, match="cameras"):
        add({"wrist": tmp_path / "a.mp4"})
    with pytest.raises(DatasetError, match="episode column 'x'"):
        writer.add(numeric, {"front": tmp_path / "a.mp4"}, "lift", histograms, {"x": 1})
    with pytest.raises(StatisticsError, match="finite"):
        add(action=np.full((3, 3), np.inf))
    assert add() == 0 and add(action=np.ones((3, 3))) == 1
    writer.close()
    dataset = Dataset(tmp_path / "set")
    assert (
        dataset.numeric("action")[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
        and len(list(dataset.frames("front"))) == 6
    )
    with pytest.raises(DatasetError, match="not empty"):
        DatasetWriter(tmp_path / "set", 15.0, FEATURES, {}, "fr3")
    with pytest.raises(DatasetError, match="no slash"):
        DatasetWriter(tmp_path / "new", 15.0, {"a/b": FEATURES["action"]}, {}, "fr3")
    with pytest.raises(DatasetError, match="no episode"):
        DatasetWriter(tmp_path / "empty", 15.0, FEATURES, {"front": (32, 40)}, "fr3").close()


def test_other_versions_and_cut_sets_are_named(made, tmp_path):
    path = made[0]
    with pytest.raises(DatasetError, match="no meta/info.json"):
        Dataset(tmp_path / "absent")
    sorted((path / "data").glob("*/*.parquet"))[-1].unlink()
    with pytest.raises(DatasetError, match="rows, 27 are announced"):
        Dataset(path).numeric("action")
    info = json.loads((path / "meta/info.json").read_text(encoding="utf-8"))
    (path / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v2.1"}))
    with pytest.raises(DatasetError, match=r"format v2\.1, v3\.0 is read"):
        Dataset(path)
