"""A plugin that fails all the time is told of, and imports are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from windtunnel.cli import main

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
