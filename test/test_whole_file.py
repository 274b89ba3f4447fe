"""Files that are there in whole or not at all."""

import os
import signal

import pytest

from vipra_ros.whole_file import in_whole, write_whole


def test_replaces_what_was_there_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "notes.json"
    write_whole(path, "one")
    write_whole(path, "zwei \N{LATIN SMALL LETTER U WITH DIAERESIS}", sync=True)
    assert path.read_text(encoding="utf-8") == "zwei \u00fc"
    assert os.listdir(path.parent) == ["notes.json"]


def test_an_error_keeps_the_old_file_and_removes_the_new(tmp_path):
    path = tmp_path / "notes.json"
    write_whole(path, "old")
    with pytest.raises(ValueError, match="half way"), in_whole(path) as beside:
        beside.write_text("ne")
        raise ValueError("half way")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["notes.json"]


def test_a_kill_keeps_the_old_file_and_the_next_attempt_writes_over_the_remains(tmp_path):
    path = tmp_path / "notes.json"
    write_whole(path, "old")
    child = os.fork()
    if not child:
        with in_whole(path) as beside:
            beside.write_text("ne")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert path.read_text() == "old" and len(os.listdir(tmp_path)) == 2
    write_whole(path, "new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["notes.json"]


def test_two_at_once(tmp_path):
    """The file of one process is not taken away by another that was faster."""
    path = tmp_path / "notes.json"
    with in_whole(path, shared=True) as mine:
        child = os.fork()
        if not child:
            write_whole(path, "other", shared=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert path.read_text() == "other"
        mine.write_text("mine")
    assert path.read_text() == "mine" and os.listdir(tmp_path) == ["notes.json"]
