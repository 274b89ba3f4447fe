"""What `vipra view` says before it writes anything; needs no rerun."""

import sys

import pytest

from vipra_ros import cli
from vipra_ros.control.profile import load_profile
from vipra_ros.data import messages
from vipra_ros.data.bag_writer import EpisodeWriter


@pytest.fixture
def no_rerun(monkeypatch):
    for name in [m for m in sys.modules if m.partition(".")[0] == "rerun" or m == "vipra_ros.view.rrd"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rerun", None)


def said(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        cli.main(["view", *map(str, words)])
    assert ended.value.code == 1
    return capsys.readouterr().err


def test_a_wrong_path_is_told_before_a_missing_package(no_rerun, tmp_path, capsys):
    text = said(capsys, tmp_path / "nothing")
    assert "nothing" in text and "rerun" not in text


def test_no_display_is_told_with_the_way_out(monkeypatch, tmp_path, capsys):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert said(capsys, tmp_path, "--open") == "vipra: no display; use --web\n"


def test_a_missing_rerun_is_told_in_one_line_with_what_to_install(no_rerun, tmp_path, capsys):
    writer = EpisodeWriter(tmp_path, "one", sync=False)
    for k in range(3):
        writer.write("joint_states", messages.JOINT_STATE,
                     messages.joint_state(10**18 + k, load_profile("fr3").joint_names, [0.0] * 7), 10**18 + k)
    text = said(capsys, writer.close({}))
    assert text.count("\n") == 1 and "rerun" in text and ".[view]" in text
