"""Data sets of strangers: every one is opened, or refused with a DatasetError of one line."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vipra_ros.data.lerobot import Dataset, DatasetError, DatasetWriter

from .conftest import examples, faults, spoil, watched
from .test_checkpoints import NUMBERS, places

FILES = ("meta/info.json", "meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet",
         "data/chunk-000/file-000.parquet")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strangers") / "set"
    feature = {"dtype": "float32", "shape": [8], "names": None}
    writer = DatasetWriter(folder, 15.0, {"action": feature, "observation.state": feature}, {}, "fr3")
    for length in (4, 6):
        rows = np.zeros((length, 8), np.float32)
        writer.add({"action": rows, "observation.state": rows}, {}, "push the cube", {})
    writer.close()
    assert all((folder / name).exists() for name in FILES)
    return folder


def use(folder):
    with watched(DatasetError):
        data = Dataset(folder)
        for episode in data.episodes:
            assert isinstance(episode.length, int)
        assert data.numeric("action").shape == (len(data), 8)


@examples(60)
@given(data=st.data())
def test_spoilt_files(whole, tmp_path, data):
    shutil.rmtree(tmp_path / "set", ignore_errors=True)
    file = shutil.copytree(whole, tmp_path / "set") / data.draw(st.sampled_from(FILES))
    file.write_bytes(spoil(file.read_bytes(), data.draw(faults)))
    use(tmp_path / "set")


@examples(60)
@given(data=st.data())
def test_other_values(whole, tmp_path, data):
    shutil.rmtree(tmp_path / "set", ignore_errors=True)
    file = shutil.copytree(whole, tmp_path / "set") / "meta" / "info.json"
    info = json.loads(file.read_text())
    path = data.draw(st.sampled_from(list(places(info))[1:]))
    inner = info
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = data.draw(st.sampled_from(NUMBERS))
    file.write_text(json.dumps(info))
    use(tmp_path / "set")


def test_what_is_wrong_is_said(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "set")
    (folder / "meta" / "info.json").write_text("{")
    with pytest.raises(DatasetError, match=r"set/meta is not that of a v3.0 .*\(JSONDecodeError.*convert it again"):
        Dataset(folder)
