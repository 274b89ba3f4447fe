"""Episodes on a real Ray cluster; skipped where the optional extra `ray` is not installed."""

import os
import sys

import numpy as np

from vipra_ros.data.convert import convert
from vipra_ros.data.dataset import Dataset
from vipra_ros.data.work import convert_episode


def test_a_cluster_gives_the_same_data_set(record, tmp_path, ray_cluster):
    for k in range(4):
        path = record(f"bag{k}", seconds=0.6 + 0.1 * k)
    file = path / "bag3.mcap"
    file.write_bytes(file.read_bytes()[:3000])
    options = dict(quiet=True, progress=False)
    here = convert(tmp_path / "bags", tmp_path / "one", **options)
    there = convert(tmp_path / "bags", tmp_path / "two", ray=ray_cluster, **options)
    assert here.episodes == there.episodes and there.count("converted") == 3 and there.count("broken") == 1
    one, two = Dataset(tmp_path / "one"), Dataset(tmp_path / "two")
    assert one.episodes == two.episodes and np.array_equal(one.numeric("action"), two.numeric("action"))


def test_a_worker_that_dies_costs_its_bag_only(record, tmp_path, ray_cluster, monkeypatch):
    """The function ends its process for one bag, every time it is tried."""
    for k in range(3):
        record(f"bag{k}", seconds=0.6)

    def deadly(bag, folder, settings):
        if bag.name == "bag1":
            os._exit(9)
        return convert_episode(bag, folder, settings)

    monkeypatch.setattr(sys.modules[convert.__module__], "convert_episode", deadly)
    report = convert(tmp_path / "bags", tmp_path / "set", ray=ray_cluster, quiet=True, progress=False)
    assert [e["status"] for e in report.episodes] == ["converted", "broken", "converted"]
    assert "Ray: " in report.episodes[1]["reason"]
