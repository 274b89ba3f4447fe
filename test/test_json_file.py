"""Figures in JSON files: refused before they are measured, whole when they are there, and read by every reader."""

import json
import math
import os
import threading

import numpy as np
import pytest

from vipra_ros.config import ConfigError
from vipra_ros.json_file import json_writer, write_json


def test_the_folder_of_figures_is_there_before_they_are_measured(tmp_path):
    path = tmp_path / "new" / "figures.json"
    save = json_writer(path)
    assert path.parent.is_dir() and not path.exists()
    save({"x": 1.5})
    assert json.loads(path.read_text()) == {"x": 1.5} and os.listdir(path.parent) == ["figures.json"]
    json_writer("")({"x": 1})


def test_a_file_that_cannot_be_is_refused_before_they_are_measured(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "out.json", tmp_path):
        with pytest.raises(ConfigError, match="give a file in a folder"):
            json_writer(path)


def test_figures_go_into_a_pipe_and_do_not_replace_it(tmp_path):
    path, heard = tmp_path / "pipe", []
    os.mkfifo(path)
    save = json_writer(path)  # does not wait for its reader
    reader = threading.Thread(target=lambda: heard.append(path.read_text()), daemon=True)
    reader.start()
    save([1, 2])
    reader.join(10.0)
    assert json.loads(heard[0]) == [1, 2] and path.is_fifo()


def test_what_no_json_reader_takes_is_null(tmp_path):
    write_json({"a": math.nan, "b": [np.float32(0.5), np.inf], "c": np.array([1.0, -np.inf])}, tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [0.5, None], "c": [1.0, None]}


def test_figures_go_through_a_link_and_do_not_replace_it(tmp_path):
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    json_writer(tmp_path / "link.json")({"a": 1})
    assert (tmp_path / "link.json").is_symlink() and json.loads((tmp_path / "real.json").read_text()) == {"a": 1}


def test_a_folder_that_takes_no_file_is_refused_though_the_file_may_be_written(tmp_path, monkeypatch):
    (tmp_path / "out.json").write_text("{}")
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write everywhere
    with pytest.raises(ConfigError, match="cannot be written"):
        json_writer(tmp_path / "out.json")
