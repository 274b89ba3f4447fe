"""`vipra demo`: what it says of a miss."""

from types import SimpleNamespace

from vipra_ros.demo import slow


def record(success, *latencies):
    return SimpleNamespace(success=success, latencies=list(latencies))


def test_a_miss_on_a_busy_computer_is_not_put_down_to_the_policy():
    said = slow([record(True, 0.24), record(False, 0.25, 0.31)])
    assert "250 ms (p50)" in said and "end what else runs" in said


def test_it_is_silent_where_that_is_no_reason():
    assert not slow([record(True, 0.3)])
    assert not slow([record(False, 0.11, 0.12)]) and not slow([record(False)])
