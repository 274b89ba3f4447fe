"""Figures of the pages that come from benches stand there as the benches wrote them."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
measured = pytest.importorskip("measured")


def test_the_safety_page_shows_what_was_measured():
    text = measured.PAGE.read_text()
    assert measured.page(text) == text, "run python docs/measured.py"


def test_a_page_without_a_place_for_a_table_is_refused():
    with pytest.raises(ValueError, match="no place for faults"):
        measured.page("# nothing here")


def test_tables_are_of_files_with_and_without_the_machine():
    row = dict(fault="x", detected=12.0, stopped=None, state="ARMED", again=None, by="", outside=0, samples=9,
               operator="nothing")
    assert measured.faults([row]) == measured.faults({"machine": {}, "rows": [row]})
    assert measured.faults([row])[-1] == "| x | 12 | - | ARMED | - |  | 0 of 9 | nothing |"


def test_a_boundary_is_the_last_one_or_that_of_all():
    rate = dict(n=9, period_ms=[10.0] * 4, jitter_ms=[1.0] * 4, cpu=dict(executor=0.3, controller=0.6),
                pictures_hz=dict(front=30.0), stall_fraction=0.05, histogram={"<5": 9})
    old = measured.control({"rates": {"22": {**rate, "boundary_step": 0.01}}})
    assert "boundary, rad" in old[0] and old[2].endswith("| 5 % | 0.01 |")
    new = measured.control({"rates": {"22": {**rate, "boundaries": 3, "boundary_mean": 0.01, "boundary_max": 0.2}}})
    assert "boundary mean / max, rad" in new[0] and new[2].endswith("| 5 % | 0.0100 / 0.2000 |")
    none = {**rate, "stall_fraction": None, "boundaries": 0, "boundary_mean": None, "boundary_max": None}
    assert measured.control({"rates": {"22": none}})[2].endswith("| - % | - / - |")
