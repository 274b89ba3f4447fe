"""How far long work has got: times for people, the pace, the bar."""

import pytest

from vipra_ros.progress import Pace, bar, duration


@pytest.mark.parametrize("seconds, text", [(0, "0 s"), (41.4, "41 s"), (720, "12 min"), (12_240, "3.4 h"),
                                           (181_440, "2.1 days"), (-3, "0 s")])
def test_times_for_people(seconds, text):
    assert duration(seconds) == text


def test_the_pace_is_that_since_the_first_look():
    pace = Pace()
    assert pace.left(100.0, 0.5) is None and pace.left(100.0, 0.5) is None, "nothing is known yet"
    assert pace.left(110.0, 0.6) == pytest.approx(40.0)
    assert pace.left(160.0, 1.1) == 0.0


def test_a_bar_says_nothing_where_there_is_no_terminal(capsys):
    with bar("working", 3) as advance:
        advance()
        advance(2, note="one broken")
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal_shows_what_is_done_and_left(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    with bar("working", 3) as advance:
        advance(2, note="one broken")
    said = capsys.readouterr().err
    assert "working" in said and "2/3" in said and "one broken" in said and "-:--:--" in said
