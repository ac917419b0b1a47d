"""Mistakes of somebody new: each is one sentence with exit code 2, never a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from windtunnel import capacity
from windtunnel.cli import run_cli
from windtunnel.errors import ConfigValueError, PlannerConfigError
from windtunnel.lab.capacity import search
from windtunnel.lab.planner_plugins import Importable
from windtunnel.lab.scenario import Scenario
from windtunnel.sources.seeding import generator


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


@pytest.mark.parametrize(("text", "told"), [
    ("TIMESTAMP,ContextTokens\n", "the first line has no GeneratedTokens; the format azure begins with TIMESTAMP,ContextTokens,GeneratedTokens"),
    ("timestamp_ms,input_tokens,output_tokens\n0,1,1\n", "the first line has no arrival_s; the format lengths begins with arrival_s,input_tokens"),
    ("arrival_s,input_tokens,output_tokens,tenant\n", "the first line has columns too many: tenant; the format lengths"),
    ("\ufeffarrival_s,input_tokens,output_tokens\n", "must read exactly arrival_s,input_tokens,output_tokens, with commas and no byte order mark"),
    ("arrival_s;input_tokens;output_tokens\n", "must read exactly arrival_s,input_tokens,output_tokens, with commas"),
    ("a,b,c\n", "unknown trace format (mooncake: "), ("größe,ü\n", "unknown trace format (mooncake: "),
])
def test_a_trace_that_is_nearly_of_a_format_is_told_what_is_wrong(text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text(text + "1,2,3\n", "utf-8")
    assert run_cli(["trace", "card", str(tmp_path / "t.csv")]) == 3
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1


@pytest.mark.parametrize(("url", "code", "told"), [
    ("nonsense", 2, "url: expected an address such as"), ("ftp://x", 2, "url: expected an address"), ("http://127.0.0.1:99999", 2, "url: expected"),
    ("http://127.0.0.1:9", 4, "http://127.0.0.1:9: the engine cannot be measured: ")])
def test_calibrate_says_which_address_did_not_answer(url: str, code: int, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["calibrate", "--engine", "llamacpp", "--url", url, "--budget-s", "1"]) == code
    said = capsys.readouterr().err
    assert told in said and "Traceback" not in said
    assert code == 2 or "is a llamacpp engine running there" in said


@pytest.mark.parametrize("slo", [{"e2e_s": -5.0}, {"e2e_s": "5s"}, {"interactive": {"e2e_s": float("nan")}}, {"e2e_s": True}])
def test_a_bound_is_a_number_above_0(slo: dict[str, object]) -> None:
    scenario = Scenario.load("straggler")
    run = scenario.fast().run()
    for ask in (lambda: capacity(scenario, slo), lambda: run.summary(slo=slo)):
        with pytest.raises(ConfigValueError, match=r"^slo\..*e2e_s: expected"):
            ask()


def test_a_capacity_tells_itself_in_words() -> None:
    with pytest.raises(ConfigValueError, match="expected a Scenario, got 'straggler'"):
        capacity("straggler", {"e2e_s": 5.0})  # type: ignore[arg-type]
    held = repr(search(lambda rate: 1.0 if rate <= 3 else 0.5, start_rps=2.0, tolerance=0.1))
    assert held.startswith("Capacity 3.00 rps: the most traffic found at which 90 % of the requests are good\n") and "50.0 %" in held
    assert "at no rate that was tried" in repr(search(lambda rate: 0.0, start_rps=2.0))


@pytest.mark.parametrize(("words", "told"), [
    (["run", "overload", "--seed", "-1"], "seed: expected an int >= 0 and < 9223372036854775808, got -1"),
    (["run", "overload", "--seed", str(2**63)], "seed: expected an int >= 0"), (["run", "overload", "--replication", "-1"], "replication: expected"),
    (["sweep", "overload", "-g", "source.rate_rps=20", "--jobs", "0"], "n_jobs: expected a number of processes"),
    (["sweep", "overload", "-g", "source.rate=20"], "grid source.rate: unknown key; write rate_rps: 20 (requests per second)"),
    (["sweep", "overload", "-g", "source.rate_rps=.nan"], "grid source.rate_rps: expected a finite number, got nan"),
    (["nope"], "see windtunnel --help"), (["planner", "nope"], "--help"), (["run", "overload", "--nope"], "see windtunnel run --help"),
])
def test_numbers_and_words_that_mean_nothing_are_one_sentence(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(words) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1, said


@pytest.mark.parametrize("seed", [-1, 1.5, "7", True, None, 2**63])
def test_a_seed_is_a_natural_number(seed: object) -> None:
    with pytest.raises(ConfigValueError, match="seed: expected an int"):
        generator(seed, "x")  # type: ignore[arg-type]
    assert generator(np.int64(7), "x").random() == generator(7, "x").random()


@pytest.mark.parametrize(("there", "instead", "said"), [
    ("windtunnel: 1\n", "", "windtunnel: missing; expected 1; write windtunnel: 1"),
    ("kind: affine, ", "", "fleet.pools.p.profile.kind: missing; one of roofline, affine, table,"),
    ("kind: arrivals, ", "", "source.kind: missing; one of "),
    ("kind: affine, ", "kind: afine, ", 'fleet.pools.p.profile.kind: unknown kind "afine"; did you mean "affine"')])
def test_what_is_left_out_is_told_with_what_to_write(there: str, instead: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """windtunnel: 1
name: little
question: does it fly
seed: 1
duration_s: 1
fleet:
  pools:
    p: {model: Llama-3.1-8B, gpu: h100_sxm, replicas: 1, profile: {kind: affine, base_s: 0.01}}
source: {kind: arrivals, rate_rps: 2, input_tokens: 100, output_tokens: 50}
"""
    assert there in text
    (tmp_path / "little.yaml").write_text(text.replace(there, instead), "utf-8")
    assert run_cli(["scenario", "check", str(tmp_path / "little.yaml")]) == 2
    assert said in capsys.readouterr().err
