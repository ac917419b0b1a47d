"""The command line: documents, exit codes, what goes where, and that every command says what the API says."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from windtunnel import cli
from windtunnel.lab import digest, manifest
from windtunnel.lab.compare import compare
from windtunnel.lab.run import Run
from windtunnel.lab.scenario import Scenario, variants

SMALL = """\
windtunnel: 1
name: small
duration_s: 20
seed: 5
fleet: {pools: {chat: {model: Llama-3.1-8B, gpu: h100_sxm, engine: {max_num_seqs: 32}}}}
source: {kind: arrivals, rate_rps: 8, input_tokens: {kind: lognormal, mean: 300, cv: 1.0}, output_tokens: 60, tenants: {a: 1, b: 2}}
slo: {ttft_s: 1.0}
compare: {slow: {fleet.pools.chat.profile: {kind: affine, c0: 0.05, c1: 1e-4, c2: 1e-4, c3: 1e-7}}}
"""
MAIN = [sys.executable, "-c", "from windtunnel.cli import main; main()"]


@pytest.fixture()
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, "utf-8")
    return path


def called(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON document, stderr."""
    code = cli.run_cli([str(w) for w in words] + ["--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result.items() if k not in ("cpu_s", "wall_s", "saved")}


def test_CC_1_run_is_scenario_run(capsys: pytest.CaptureFixture[str], small: Path) -> None:
    code, doc, err = called(capsys, "run", small, "--set", "fleet.pools.chat.replicas=2", "--seed", 9)
    assert (code, doc["command"], doc["ok"], doc["warnings"], err) == (0, "run", True, [], "")
    made = Scenario.load(small, overrides=["fleet.pools.chat.replicas=2"]).run(seed=9)
    assert doc["result"]["summary"] == cli.plain(made.summary().to_dict())
    assert doc["result"]["seed"] == 9
    assert "h100_sxm" in doc["result"]["provenance"]


def test_run_has_the_numbers_that_others_read(capsys: pytest.CaptureFixture[str], small: Path) -> None:
    _, doc, _ = called(capsys, "run", small)
    summary = doc["result"]["summary"]
    for name in ("requests", "completed", "rejected", "failed", "cancelled", "timed_out", "makespan_s", "output_tokens_per_s",
                 "goodput_rps", "gpu_hours", "cost_usd"):
        assert name in summary, name
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        assert {"mean", "p50", "p95", "p99"} <= set(summary[name])
    assert summary["requests"] == summary["completed"] > 100
    assert doc["result"]["cpu_s"] > 0


def test_CC_1_compare_runs_the_variants(capsys: pytest.CaptureFixture[str], small: Path) -> None:
    code, doc, _ = called(capsys, "compare", small)
    assert code == 0
    sides = {name: [scenario.run()] for name, scenario in variants(Scenario.load(small))}
    assert doc["result"] == cli.plain(compare(sides).to_dict())


def test_compare_takes_variants_and_saved_runs(capsys: pytest.CaptureFixture[str], small: Path, tmp_path: Path) -> None:
    assert cli.run_cli(["run", str(small), "--out", str(tmp_path / "saved"), "--quiet"]) == 0
    capsys.readouterr()
    code, doc, _ = called(capsys, "compare", f"{small}@slow", tmp_path / "saved")
    assert code == 0
    text = json.dumps(doc["result"])
    assert f"{small}@slow" in text and "saved" in text
    assert cli.run_cli(["compare"]) == 2


def test_CC_1_show_is_run_load(capsys: pytest.CaptureFixture[str], small: Path, tmp_path: Path) -> None:
    _, ran, _ = called(capsys, "run", small, "--out", tmp_path / "d")
    code, shown, _ = called(capsys, "show", tmp_path / "d")
    assert code == 0
    assert shown["result"] == {k: v for k, v in ran["result"].items() if k != "saved"}
    assert cli.run_cli(["show", str(tmp_path / "d")]) == 0
    assert capsys.readouterr().out.rstrip("\n") == repr(Run.load(tmp_path / "d"))


def test_run_does_not_replace_a_run_unasked(capsys: pytest.CaptureFixture[str], small: Path, tmp_path: Path) -> None:
    words = ["run", small, "--set", "duration_s=2", "--out", tmp_path / "d"]
    assert called(capsys, *words)[0] == 0
    code, doc, _ = called(capsys, *words)
    assert (code, doc["ok"], doc["error"]["type"]) == (2, False, "ConfigFileError")
    assert called(capsys, *words, "--overwrite")[0] == 0


def test_CC_1_replay_agrees_and_says_where_not(capsys: pytest.CaptureFixture[str], small: Path, tmp_path: Path) -> None:
    called(capsys, "run", small, "--record", "full", "--out", tmp_path / "d")
    code, doc, _ = called(capsys, "replay", tmp_path / "d")
    assert (code, doc["result"]["complete"]) == (0, True)
    assert doc["result"]["events"] > 250
    other = ["--control", small, "--set", "control.admission={limit: {kind: fixed, limit: 1}}"]
    code, doc, _ = called(capsys, "replay", tmp_path / "d", *other)
    assert (code, doc["error"]["type"]) == (1, "RunReplayError")


def test_CC_1_scenario_show_list_check_and_schema(capsys: pytest.CaptureFixture[str], small: Path) -> None:
    _, doc, _ = called(capsys, "scenario", "show", small, "--variant", "slow")
    chosen = Scenario.load(small, variant="slow")
    assert doc["result"] == cli.plain({"scenario": chosen.resolved(), "digest": chosen.digest})
    assert cli.run_cli(["scenario", "show", str(small)]) == 0
    assert Scenario.load(capsys.readouterr().out) == Scenario.load(small)
    code, doc, _ = called(capsys, "scenario", "check", small)
    assert (code, list(doc["result"]["checked"])) == (0, [str(small), f"{small}@slow"])
    _, doc, _ = called(capsys, "scenario", "list")
    assert doc["result"]["scenarios"]["tenant-flood"]["variants"] == ["fair", "vtc", "quota"]
    assert all("error" not in s for s in doc["result"]["scenarios"].values())
    _, doc, _ = called(capsys, "schema")
    assert doc["result"]["$schema"].endswith("2020-12/schema")


def test_trace_card_and_doctor(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0.5,10,5\n1.5,20,7\n", "utf-8")
    code, doc, _ = called(capsys, "trace", "card", trace)
    assert (code, doc["command"], doc["result"]["input"]["max"]) == (0, "trace card", 20)
    code, doc, _ = called(capsys, "doctor")
    assert (code, doc["result"]["code_digest"], doc["result"]["packages"]["simpy"] != "missing") == (0, manifest.code_digest(), True)
    assert digest.code_digest() == manifest.code_digest()


def test_CC_1_drive_in_dry_run(capsys: pytest.CaptureFixture[str], small: Path, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("name: lab\npools: {chat: {engine: mock, model: m, slots: 64, replicas: 2}}\n", "utf-8")
    quick = ["--set", "duration_s=1", "--set", "source.output_tokens=5", "--set", "source.input_tokens=10"]
    code, doc, err = called(capsys, "drive", small, "--fleet", fleet, *quick, "--out", tmp_path / "d")
    assert (code, err) == (0, "")
    made = Run.load(tmp_path / "d")
    assert (made.world, made.mode, made.complete) == ("live", "dry_run", True)
    assert doc["result"]["summary"]["completed"] == len(made.requests) >= 1
    assert set(made.requests["replica"]) <= {"chat-0", "chat-1"}
    assert called(capsys, "replay", tmp_path / "d")[0] == 0


@pytest.mark.engine
def test_engine_up_list_down(capsys: pytest.CaptureFixture[str], small: Path) -> None:
    pytest.importorskip("xllamacpp")
    port = 18733
    code, doc, _ = called(capsys, "engine", "up", "--port", port)
    try:
        assert (code, doc["result"]["url"]) == (0, f"http://127.0.0.1:{port}")
        _, doc, _ = called(capsys, "engine", "list")
        assert [s["port"] for s in doc["result"]["servers"]] == [port]
    finally:
        code, doc, _ = called(capsys, "engine", "down")
    assert (code, doc["result"]["stopped"]) == (0, [port])


@pytest.mark.parametrize(("words", "code", "kind"), [
    (["run", "no-such-scenario"], 2, "ConfigFileError"), (["run"], 2, "UsageError"), (["nope"], 2, "UsageError"),
    (["run", "SMALL", "--bad", "1"], 2, "UsageError"), (["run", "SMALL", "--seed", "x"], 2, "UsageError"),
    (["run", "SMALL", "--set", "duration=5"], 2, "ConfigUnknownKeyError"), (["run", "SMALL", "--variant", "no"], 2, "ConfigError"),
    (["show", "no-such-dir"], 3, "RunCorruptError"), (["stop", "no-such-run"], 2, "ConfigValueError"),
    (["trace", "card", "no-such-file"], 2, "ConfigFileError"), (["scenario", "check"], 2, "ConfigError"),
    (["run", "SMALL", "--set", "fleet.pools.chat.model=Llama-3.3-70B"], 2, "ConfigInfeasibleError"),
    (["drive", "SMALL", "--fleet", "FLEET", "--mode", "armed", "--cap", "max_in_flight=2"], 6, "ArmRefusedError"),
    (["drive", "SMALL", "--fleet", "FLEET", "--mode", "armed", "--cap", "max_inflight=2"], 2, "ConfigUnknownKeyError"),
])
def test_CC_2_CC_3_failures_are_documents_with_their_code(capsys: pytest.CaptureFixture[str], small: Path, words: list[str], code: int,
                                                          kind: str) -> None:
    fleet = small.parent / "fleet.yaml"
    fleet.write_text("name: lab\npools: {chat: {engine: mock, model: m, slots: 4}}\n", "utf-8")
    named = {"SMALL": str(small), "FLEET": str(fleet)}
    words = [named.get(w, w) for w in words]
    got, doc, _ = called(capsys, *words)
    assert (got, doc["ok"], doc["error"]["type"], doc["result"], doc["windtunnel_json"]) == (code, False, kind, None, 1)
    assert set(doc["error"]) == {"type", "message", "hint", "where"}
    assert cli.run_cli(words) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("windtunnel: ") and "Traceback" not in err


def test_CC_2_a_bug_is_70_with_a_traceback(capsys: pytest.CaptureFixture[str], small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("oops")

    monkeypatch.setattr(Scenario, "start", broken)
    code, doc, err = called(capsys, "run", small)
    assert (code, doc["error"]["type"]) == (70, "KeyError")
    assert "Traceback" in err and "report it" in doc["error"]["hint"]


def test_CC_3_json_has_no_nan_sorted_keys_and_inf_as_text() -> None:
    text = cli.document({"b": float("nan"), "a": float("inf"), "c": [float("-inf"), 1.5]})
    assert json.loads(text) == {"a": "inf", "b": None, "c": ["-inf", 1.5], "windtunnel_json": 1}
    assert text.index('"a"') < text.index('"b"') < text.index('"c"')


def test_CC_4_no_progress_and_no_escape_bytes_in_a_pipe(small: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "PYTEST_CURRENT_TEST", "WINDTUNNEL_QUIET")}
    done = subprocess.run([*MAIN, "run", str(small)], capture_output=True, env=environment, check=True, timeout=60)
    assert b"\x1b" not in done.stdout + done.stderr
    assert done.stderr == b""
    assert done.stdout.startswith(b"Run small-")


def commands() -> list[list[str]]:
    cli._register()
    out: list[list[str]] = []
    for name in cli.app:
        if not name.startswith("-"):
            inner = [n for n in cli.app[name] if not n.startswith("-")]
            out += [[name, n] for n in inner] if inner else [[name]]
    return out


def test_the_commands_are_these() -> None:
    assert {" ".join(c) for c in commands()} == {
        "run", "compare", "compile", "show", "report", "replay", "drive", "calibrate", "engine up", "engine down", "engine list", "scenario check",
        "scenario list", "scenario show", "scenario timing", "schema", "trace card", "trace convert", "stop", "sweep", "doctor", "planner explain",
        "planner audit"}


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_CC_5_help_fits_80_columns_with_one_example(command: list[str], capsys: pytest.CaptureFixture[str],
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.run_cli([*command, "--help"]) == 0
    out = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80
    assert out.count("Example: windtunnel " + " ".join(command)) == 1


@pytest.mark.parametrize("command", [c for c in commands() if c[0] not in ("engine", "show", "report", "replay", "drive", "calibrate")
                                     and c != ["planner", "audit"]], ids=" ".join)
def test_CC_5_examples_run(command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    cli.run_cli([*command, "--help"])
    example = re.search(r"Example: windtunnel (.*?)\n\s*\n", capsys.readouterr().out, re.S)
    assert example is not None
    words = example[1].split()
    if command == ["run"] or command == ["compare"]:
        words = [w.replace("=30", "=5").replace("=20", "=5") for w in words]
        words += ["--set", "warmup_s=0"]
    if command in (["scenario", "timing"], ["trace", "convert"]):
        words[-1] = str(tmp_path / words[-1])
    assert cli.run_cli(words) == 0
    assert capsys.readouterr().out


def test_CC_5_version_is_fast_and_names_the_code() -> None:
    before = os.times()
    done = subprocess.run([*MAIN, "--version"], capture_output=True, text=True, check=True, timeout=30)
    after = os.times()
    assert re.fullmatch(r"windtunnel \S+, code [0-9a-f]{8}, (compiled|plain Python)\n", done.stdout)
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1.0
    heavy = "print(sorted({'pandas', 'pyarrow', 'numpy', 'pydantic'} & set(sys.modules)))"
    code = f"import sys; from windtunnel.cli import run_cli; run_cli(['--version']); {heavy}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.endswith("[]\n"), "--version needs none of the heavy packages"


def test_a_simulated_run_brings_in_nothing_of_the_live_world() -> None:
    fly = "Scenario.load('peer-chat-10k').with_({'source.ops': [{'window': {'t0': 0, 't1': 1.0}}]}).run().summary()"
    said = "print(sorted(m for m in sys.modules if m in ('httpx', 'rich', 'prometheus_client', 'ipywidgets') or m.startswith('windtunnel.live')))"
    done = subprocess.run([sys.executable, "-c", f"import sys; from windtunnel import Scenario; {fly}; {said}"], capture_output=True, text=True,
                          check=True, timeout=60)
    assert done.stdout == "[]\n", "what nobody needs costs every start a quarter of a second"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_CC_2_an_interrupted_run_is_saved_incomplete(small: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    words = ["run", str(small), "--set", "duration_s=200000", "--set", "source.rate_rps=50", "--out", str(tmp_path / "d"), "--json"]
    process = subprocess.Popen([*MAIN, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not _catches(process.pid, number):
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (code, b"")
    doc = json.loads(out)
    assert (doc["ok"], doc["result"]["complete"]) == (False, False)
    made = Run.load(tmp_path / "d")
    assert not made.complete
    assert len(made.requests) > 10


def _catches(pid: int, number: signal.Signals) -> bool:
    """Has the process installed its own handler of the signal? SIGINT has Python's from the start, so SIGTERM tells for both."""
    caught = int(next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt")).split()[1], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def test_CC_6_a_closed_pipe_is_quiet() -> None:
    done = subprocess.run(["bash", "-c", f'{sys.executable} -c "from windtunnel.cli import main; main()" schema | head -c 10 >/dev/null'],
                          capture_output=True, timeout=60)
    assert done.stderr == b""


def test_planner_explain_tells_a_scenario_a_run_and_an_audit(capsys: pytest.CaptureFixture[str], tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    sets = ["--set", "duration_s=120", "--set", "warmup_s=0"]
    code, doc, _ = called(capsys, "planner", "explain", "burst-diurnal", *sets)
    assert code == 0 and doc["command"] == "planner explain" and doc["result"]["planner"] == "rate" and doc["result"]["ticks"] == 12
    assert cli.run_cli(["run", "burst-diurnal", *sets, "--record", "decisions", "--out", str(tmp_path / "run")]) == 0
    assert cli.run_cli(["planner", "audit", str(tmp_path / "run"), str(tmp_path / "audit.jsonl")]) == 0
    capsys.readouterr()
    for where in (tmp_path / "run", tmp_path / "audit.jsonl"):
        code, again, _ = called(capsys, "planner", "explain", where)
        assert code == 0 and again["result"]["timeline"] == doc["result"]["timeline"]
    code, tick, _ = called(capsys, "planner", "explain", tmp_path / "run", "--tick", 7)
    assert code == 0 and tick["result"]["tick"]["tick"] == 7
    code, part, _ = called(capsys, "planner", "explain", tmp_path / "run", "--since", 50, "--until", 70)
    assert (part["result"]["timeline"][0]["first"], part["result"]["timeline"][-1]["last"]) == (5, 7)


@pytest.mark.parametrize(("words", "code", "said"), [
    (["burst-diurnal@for_the_peak"], 2, "has no planner to explain"), (["nope"], 2, 'no scenario "nope"'), (["gone.jsonl"], 3, "no such file"),
    (["RUN", "--tick", "99"], 2, "no tick 99"), (["RUN", "--pool", "x"], 2, 'no pool "x"'), (["RUN", "--seed", "0"], 2, "--seed is for scenarios"),
    (["RUN", "--set", "a=1"], 2, "--set is for scenarios"), (["FEW"], 3, "need record: decisions"), (["RUN", "--tick", "x"], 2, "x")])
def test_planner_explain_refuses_in_one_sentence(words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    for name, level in (("RUN", "decisions"), ("FEW", "requests")):
        if name in words:
            Scenario.load("burst-diurnal").with_({"duration_s": 20.0, "warmup_s": 0.0, "record": level}).run().save(tmp_path / name)
    got, doc, _ = called(capsys, "planner", "explain", *words)
    assert got == code and said in doc["error"]["message"]
