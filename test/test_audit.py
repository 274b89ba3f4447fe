"""`make audit`: what it makes of pip-audit's answers."""

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def audit():
    loader = SourceFileLoader("audit", str(ROOT / ".ci" / "audit"))
    module = module_from_spec(spec_from_loader("audit", loader))
    loader.exec_module(module)
    return module


FINE = {"name": "numpy", "version": "2.4.6", "vulns": []}
BAD = {"name": "leaky", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]},
                                                    {"id": "PYSEC-2", "fix_versions": []}]}
SKIPPED = {"name": "ours", "skip_reason": "not found"}


def test_holes_are_listed_and_fail(audit):
    lines, status = audit.told([FINE, BAD, SKIPPED])
    assert status == 1 and lines == ["leaky 1.0: PYSEC-1, mended in 1.1", "leaky 1.0: PYSEC-2, mended in no release",
                                     "audit: known holes: 2, in 2 releases; not known to the service: 1"]
    assert audit.told([FINE]) == (["audit: known holes: 0, in 1 releases"], 0)


@pytest.mark.parametrize("answers", [[], [SKIPPED]])
def test_without_an_answer_nothing_is_claimed(audit, answers):
    lines, status = audit.told(answers)
    assert status == 0 and len(lines) == 1 and "nothing was audited" in lines[0]


@pytest.mark.parametrize("error", [OSError, ValueError])
def test_an_answer_that_does_not_come_is_no_failure(audit, error, monkeypatch, capsys):
    def fail(*_):
        raise error
    monkeypatch.setattr(audit, "install", lambda: None)
    monkeypatch.setattr(audit, "ask", fail)
    monkeypatch.setattr("sys.argv", ["audit"])
    assert audit.main() == 0 and "nothing was audited" in capsys.readouterr().out


def test_its_own_pin_is_exact():
    pins = [line for line in (ROOT / "requirements" / "audit.txt").read_text().splitlines() if line[0] != "#"]
    assert pins and all("==" in pin for pin in pins)
