"""examples/ run, each as a program, on a data set of one short episode; and the public names are what they say."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import vipra_ros

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True,
                          timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """One scripted demonstration, converted at the policy's rate."""
    pytest.importorskip("mujoco")
    folder = tmp_path_factory.mktemp("examples")
    run("-m", "vipra_ros.cli", "collect", "--expert", "--task", "reach", "--episodes", "1", str(folder / "bags"))
    run("-m", "vipra_ros.cli", "convert", str(folder / "bags"), str(folder / "dataset"))
    return str(folder / "dataset")


def test_read_dataset(dataset):
    said = run("examples/read_dataset.py", dataset)
    assert "1 episodes" in said and "front: " in said and "largest distance" in said


@pytest.mark.slow
def test_policy_offline(dataset):
    said = run("examples/policy_offline.py", "models/tiny", dataset, "--every", "30")
    off = float(re.search(r"mean over \d+ chunks: ([\d.]+) rad", said)[1])
    assert 0 < off < 0.5, "pictures, joints or units do not fit"  # a chunk in degrees would be 50 times that


@pytest.mark.slow
def test_ask_server(dataset, micro_checkpoint):
    serve = [sys.executable, "-m", "vipra_ros.cli", "serve", str(micro_checkpoint), "--host", "127.0.0.23"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen([*serve, "--port", "0", "--threads", "1"], cwd=ROOT, env=environment,
                              stdout=subprocess.PIPE, text=True)
    try:
        uri = re.search(r"ws://\S+", server.stdout.readline())[0]
        said = run("examples/ask_server.py", uri, dataset, "--count", "2")
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=20)
    assert "14 steps of joint_position at 15 Hz" in said and said.count("first row") == 2


def test_every_example_is_tested_and_documented():
    tested, page = Path(__file__).read_text(), (ROOT / "docs" / "python.md").read_text()
    for path in (ROOT / "examples").glob("*.py"):
        assert f"examples/{path.name}" in tested and f"examples/{path.name}" in page


def test_public_names():
    page = (ROOT / "docs" / "python.md").read_text()
    for name in vipra_ros.__all__:
        assert getattr(vipra_ros, name).__doc__ and name in dir(vipra_ros) and f"`{name}(" in page
    with pytest.raises(AttributeError, match="no attribute 'nix'"):
        vipra_ros.nix  # noqa: B018


def test_importing_the_package_loads_nothing():
    code = "import sys, vipra_ros; print([m for m in ('numpy', 'torch', 'yaml', 'pyarrow') if m in sys.modules])"
    assert run("-c", code).strip() == "[]"


def test_observation_of_a_data_set_is_what_training_saw(dataset, micro_checkpoint):
    """Frames `frame_stride` apart, the episode's first one before its start; the last joints, oldest first."""
    import numpy as np

    from vipra_ros import Dataset, load_policy, observation_at
    opened, policy = Dataset(dataset), load_policy(micro_checkpoint, threads=1)
    first, later = observation_at(opened, 0, policy), observation_at(opened, 10, policy)
    assert np.array_equal(first.frames["front"][0], first.frames["front"][1])
    assert np.array_equal(later.frames["front"][0], opened.frame("front", 8))
    assert np.array_equal(later.frames["front"][1], opened.frame("front", 10))
    assert later.stamp == pytest.approx(10 / 15) and later.instruction == opened.episodes[0].task
    assert first.joints is None  # this policy asks for none
    assert policy.infer(later, seed=0).actions.shape == (14, 8)
