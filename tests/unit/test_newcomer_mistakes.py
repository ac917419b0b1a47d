"""Mistakes of somebody new: each is one sentence with exit code 2, never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from windtunnel.cli import run_cli
from windtunnel.errors import PlannerConfigError
from windtunnel.lab.planner_plugins import Importable


@pytest.mark.parametrize("text", ["def x(:", "raise RuntimeError('no')", "class X:\n    def __init__(self):\n        raise SystemExit(3)"])
def test_a_plugin_that_fails_while_it_is_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    name = f"broken_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PlannerConfigError, match=f"cannot make {name}.X"):
        Importable.model_validate({"module": name, "class": "X"}).made("planner.plugins", "constrain")


def test_since_after_until_and_unknown_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["planner", "explain", "planner-steady", "--since", "9", "--until", "1"]) == 2
    assert run_cli(["schema", "--nope"]) == 2
    said = capsys.readouterr().err
    assert "--since 9 and --until 1" in said and "see windtunnel schema --help" in said and "Traceback" not in said


def test_hpa_with_most_below_least_is_refused() -> None:
    from windtunnel.lab.planner_plugins import HpaEntry
    with pytest.raises(PlannerConfigError, match="most 1 is below least 9"):
        HpaEntry(kind="hpa", target=1.0, least=9, most=1).make("agg")
