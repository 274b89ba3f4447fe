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
