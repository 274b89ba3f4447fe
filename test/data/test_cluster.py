"""Episodes on a real Ray cluster on this machine; skipped where the optional extra `ray` is not installed."""

import os
from pathlib import Path

import numpy as np
import pytest

from vipra_ros.data.convert import convert
from vipra_ros.data.dataset import Dataset

ray = pytest.importorskip("ray")


@pytest.fixture
def cluster(monkeypatch):
    """Two processors; its workers find this source tree."""
    root = str(Path(__file__).resolve().parents[2])
    monkeypatch.setenv("PYTHONPATH", f"{root}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    context = ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80_000_000, log_to_driver=False)
    yield context.address_info["gcs_address"]
    ray.shutdown()


def test_a_cluster_gives_the_same_data_set(record, tmp_path, cluster):
    for k in range(4):
        path = record(f"bag{k}", seconds=0.6 + 0.1 * k)
    file = path / "bag3.mcap"
    file.write_bytes(file.read_bytes()[:3000])
    options = dict(quiet=True, progress=False)
    here = convert(tmp_path / "bags", tmp_path / "one", **options)
    there = convert(tmp_path / "bags", tmp_path / "two", ray=cluster, **options)
    assert here.episodes == there.episodes and there.count("converted") == 3 and there.count("broken") == 1
    one, two = Dataset(tmp_path / "one"), Dataset(tmp_path / "two")
    assert one.episodes == two.episodes and np.array_equal(one.numeric("action"), two.numeric("action"))


def test_a_worker_that_dies_costs_its_bag_only(record, tmp_path, cluster, monkeypatch):
    """The function ends its process for one bag, every time it is tried."""
    from vipra_ros.data import cluster as module

    for k in range(3):
        record(f"bag{k}", seconds=0.6)
    work = module._work

    def deadly(bag, folder, settings):
        if bag.endswith("bag1"):
            os._exit(9)
        return work(bag, folder, settings)

    monkeypatch.setattr(module, "_work", deadly)
    report = convert(tmp_path / "bags", tmp_path / "set", ray=cluster, quiet=True, progress=False)
    assert [e["status"] for e in report.episodes] == ["converted", "broken", "converted"]
    assert "Ray: " in report.episodes[1]["reason"]
