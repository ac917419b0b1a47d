"""A plugin that fails all the time is told of, and imports are asked for."""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

import pytest

from windtunnel import Run, Scenario
from windtunnel.cli import main
from windtunnel.lab import registry

PLUGIN = """
class Launch:
    def constrain(self, request):
        raise ValueError("not today")
"""
ENTRY = '{"in_process": [{"plugin_id": "launch", "stage": "constrain", "module": "a_failing_plugin", "class": "Launch"}]}'


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    out = capsys.readouterr()
    return int(ended.value.code or 0), out.out + out.err


def test_PL_802_explain_counts_the_calls_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a_failing_plugin.py").write_text(PLUGIN, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ("planner", "explain", "planner-step", "--set", "duration_s=100", "--set", f"control.planner.plugins={ENTRY}")
    code, text = said(capsys, *words)
    assert code == 2 and "--allow-imports" in text
    code, text = said(capsys, *words, "--allow-imports")
    assert code == 0 and "plugin launch failed in" in text and "(raised)" in text


def test_PL_802_a_run_without_decisions_says_how_to_get_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = str(tmp_path / "run")
    assert said(capsys, "run", "planner-step", "--set", "duration_s=30", "--set", "warmup_s=0", "--out", saved, "--quiet")[0] == 0
    code, text = said(capsys, "planner", "explain", saved)
    assert code == 3 and "--record decisions" in text


SOMETIMES = """
from windtunnel.policy.planning.contract import Accept, StageResponse

class Launch:
    n = 0
    def constrain(self, request):
        Launch.n += 1
        if Launch.n % 4 == 0:
            raise ValueError("every fourth time")
        return StageResponse(Accept())
"""


@pytest.mark.parametrize(("text", "told"), [
    (PLUGIN, "plugin  launch failed always, "), (SOMETIMES, "plugin  launch failed 1 of 6 times"),
    (SOMETIMES.replace("% 4", "% 10**9"), "")])
def test_a_run_says_that_a_plugin_failed(text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a_failing_plugin.py").write_text(text, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "a_failing_plugin", raising=False)
    saved, page = tmp_path / "run", tmp_path / "report.html"
    words = ("--set", "duration_s=100", "--set", f"control.planner.plugins={ENTRY}", "--allow-imports", "--set", "warmup_s=0")
    code, out = said(capsys, "run", "planner-step", *words, "--out", str(saved), "--report", str(page))
    assert code == 0
    again = said(capsys, "show", str(saved))[1]
    for shown in (out, again):
        assert told in shown and ("plugin" in shown) is bool(told)
        assert max(map(len, shown.splitlines())) <= 80
    html = Run.load(saved)._repr_html_()
    assert ("launch failed" in html) is bool(told) and ("Planner plugin launch failed" in page.read_text("utf-8")) is bool(told)
    monkeypatch.delitem(sys.modules, "a_failing_plugin", raising=False)


def test_nothing_that_a_run_says_is_cut_off(tmp_path: Path) -> None:
    run = Scenario.load("overload").with_({"duration_s": 5.0, "warmup_s": 0.0}).run()
    words = " ".join(repr(run).split())
    assert run.provenance in words and "…" not in words
    assert max(map(len, repr(run).splitlines())) <= 80


def test_a_report_of_a_saved_run_runs_no_code_and_needs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a_failing_plugin.py").write_text(PLUGIN, "utf-8")
    saved = tmp_path / "run"
    words = ("--set", "duration_s=100", "--set", f"control.planner.plugins={ENTRY}", "--allow-imports", "--record", "decisions", "--quiet")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        assert said(capsys, "run", "planner-step", *words, "--out", str(saved))[0] == 0
    monkeypatch.setattr(registry, "_trusted", set())
    page = tmp_path / "page.html"
    assert said(capsys, "report", str(saved), str(page), "--planner") == (0, f"{page}\n")
    text = page.read_text("utf-8")
    assert "a_failing_plugin" in text and "resolved scenario" in text and escape(Scenario.load("planner-step").question) in text
    assert Run.load(saved).save(tmp_path / "copy") and (tmp_path / "copy/scenario.yaml").read_bytes() == (saved / "scenario.yaml").read_bytes()
    assert said(capsys, "compare", str(saved), str(tmp_path / "copy"))[0] == 0
