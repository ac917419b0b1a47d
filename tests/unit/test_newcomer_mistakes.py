"""Mistakes of somebody new: each is one sentence with exit code 2, never a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from windtunnel.cli import run_cli
from windtunnel.errors import PlannerConfigError
from windtunnel.lab.planner_plugins import Importable
from windtunnel.lab.scenario import Scenario


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


@pytest.mark.parametrize("name", ["summary.json", "manifest.json", "requests.parquet"])
@pytest.mark.parametrize("command", [["run"], ["planner", "explain"], ["scenario", "check"], ["compare"]])
def test_a_file_of_a_saved_run_is_no_scenario(name: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept").mkdir()
    for file in ("summary.json", "manifest.json", "requests.parquet"):
        (tmp_path / "kept" / file).write_text('{"seed": 3, "name": "x"}', "utf-8")
    assert run_cli([*command, str(tmp_path / "kept" / name)]) == 2
    said = capsys.readouterr().err
    assert f"kept/{name} is part of a saved run, not a scenario; name the run" in said and said.count("\n") == 1


def test_any_other_file_is_told_in_one_sentence_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "package.json").write_text('{"version": 1, "scripts": {}}', "utf-8")
    assert run_cli(["run", str(tmp_path / "package.json")]) == 2
    said = capsys.readouterr().err
    assert "package.json: not a scenario: it has none of the keys windtunnel, fleet, source" in said and said.count("\n") == 1
    assert run_cli(["run", str(tmp_path)]) == 2
    assert f"{tmp_path} is a directory, not a scenario" in capsys.readouterr().err


def test_a_log_is_known_by_what_it_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Scenario.load("burst-diurnal").with_({"duration_s": 40.0, "warmup_s": 0.0, "record": "decisions"}).run()
    run.planner_audit(tmp_path / "audit.txt")
    assert run_cli(["planner", "explain", str(tmp_path / "audit.txt")]) == 0
    assert "burst-diurnal" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["windtunnel", "windtunnel.cli"])
def test_the_module_is_the_command(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "run", "no-such-scenario"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert 'no scenario "no-such-scenario"' in done.stderr and done.stderr.count("\n") == 1
