"""The page: what it says of passed, failed and missing checks, and the exit code."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from windtunnel.lab.validation import __main__ as command
from windtunnel.lab.validation.check import Check, exact, shown, within
from windtunnel.lab.validation.page import Page
from windtunnel.lab.validation.sections import SECTIONS, Section

GOOD = within("A <b>", "one | two", "W", 2.0, 2.0000001, 1e-6, 10, "s")
BAD = exact("A <b>", "path", "wait", 1e-3, 1e-9, 500)


def one(check: Check) -> list[Check]:
    return [check]


def page(*checks: Check) -> Page:
    return Page((Section("A <b>", "what & why", ()),), checks, 1.0, 1, datetime(2026, 1, 2, tzinfo=UTC))


def test_SQ_54_markdown_and_html_say_the_same() -> None:
    text, html = page(GOOD, BAD).markdown(), page(GOOD, BAD).html()
    assert "**1 of 2 checks passed, 1 failed.**" in text and "1 of 2 checks passed, 1 failed" in html
    assert "| FAIL | path | wait |" in text and "one \\| two" in text and text.count("## What is not validated") == 1
    assert "A &lt;b&gt;" in html and "what &amp; why" in html and "<b>\n" not in html and "class=miss" in html
    assert "2026-01-02" in text and "http" not in html  # nothing is loaded from elsewhere


def test_rows_without_a_target_are_not_counted_as_passed() -> None:
    text = page(GOOD, shown("A <b>", "roofline", "W", 1.0, 1.8, 3)).markdown()
    assert "**1 of 1 checks passed.**" in text and "1 of 1 passed; 1 more rows without a target" in text and "| – | roofline |" in text


def test_SQ_54_nothing_checked_is_said() -> None:
    assert "0 of 0 checks passed" in page().markdown()


@pytest.mark.parametrize(("check", "code"), [(GOOD, 0), (BAD, 1)])
def test_SQ_54_the_command_writes_both_files_and_tells_by_its_exit_code(check: Check, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                         capsys: pytest.CaptureFixture[str]) -> None:
    sections = (Section("A <b>", "", (partial(one, check),)),)
    monkeypatch.setattr(command, "validate", partial(command.validate, sections=sections))
    assert command.main(["--out", str(tmp_path / "a/V.md"), "--html", str(tmp_path / "b/v.html"), "--processes", "1"]) == code
    assert (tmp_path / "a/V.md").read_text().startswith("# Validation") and (tmp_path / "b/v.html").exists()
    assert ("path, wait" in capsys.readouterr().out) is bool(code)


def test_every_section_has_jobs_and_a_title_of_its_own() -> None:
    assert len({s.title for s in SECTIONS}) == len(SECTIONS) and all(s.jobs and s.about for s in SECTIONS)


def test_the_shipped_page_was_made_by_this_code_and_passes() -> None:
    text = Path("data/VALIDATION.md").read_text()
    assert all(f"## {s.title}" in text for s in SECTIONS) and "FAIL" not in text and " failed" not in text
