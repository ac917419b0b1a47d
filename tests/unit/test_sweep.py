"""Sweeps: the same table from any number of workers, a row for what failed, nothing flown over a mistake in a path."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from windtunnel.cli import run_cli
from windtunnel.errors import ConfigError, ConfigValueError, SweepFailedError
from windtunnel.lab import sweep as module
from windtunnel.lab.scenario import Scenario
from windtunnel.lab.sweep import Job, Sweep, point_id, points_of, sweep

TEXT = """
windtunnel: 1
name: swept
duration_s: 10
seed: 5
fleet:
  pools:
    chat: {model: Llama-3.1-8B, gpu: h100_sxm, replicas: 2, engine: {max_num_seqs: 16}}
source: {kind: arrivals, rate_rps: 5, input_tokens: 100, output_tokens: 20}
control: {queue: {kind: fifo}, admission: {limit: {kind: none}}, routing: {kind: least_outstanding}}
slo: {ttft_s: 1.0}
"""
RATES = {"source.rate_rps": [5, 20], "fleet.pools.chat.replicas": [1, 2]}


def scenario(**changes: Any) -> Scenario:
    return Scenario.load(TEXT).with_(changes)


def numbers(made: Sweep) -> pd.DataFrame:
    return made.table.drop(columns="cpu_s")


def test_SV_9_results_do_not_depend_on_the_number_of_workers() -> None:
    inline = sweep(scenario(), RATES, replications=2, backend="inline")
    two = sweep(scenario(), RATES, replications=2, n_jobs=2)
    pd.testing.assert_frame_equal(numbers(inline), numbers(two))
    assert len(inline.table) == 8 and (inline.table.status == "ok").all()
    assert inline.table[["source.rate_rps", "fleet.pools.chat.replicas", "replication"]].values.tolist() == [
        [rate, n, r] for rate in (5, 20) for n in (1, 2) for r in (0, 1)], "in the order of the grid, the last path fastest"


def test_SV_9_a_row_is_that_run() -> None:
    made = sweep(scenario(), {"source.rate_rps": [20]}, backend="inline", replications=2)
    run = scenario(**{"source.rate_rps": 20}).run(replication=1)
    row = made.table.iloc[1]
    assert (row.offered, row.goodput_rps, row["ttft_s.p99"]) == (run.metric("offered"), run.metric("goodput_rps"), run.metric("ttft_s.p99"))
    assert row.seed == 5 and row.cpu_s > 0 and row.point_id == point_id({"source.rate_rps": 20}) and len(row.point_id) == 12


def test_SV_9_a_worker_gets_the_scenario_and_nothing_else(tmp_path: Path) -> None:
    """A job is text: small however large its parent, with files found where the scenario's were."""
    (tmp_path / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n" + "1.0,100,5\n" * 3)
    source = "{kind: arrivals, rate_rps: 5, input_tokens: 100, output_tokens: 20}"
    (tmp_path / "s.yaml").write_text(TEXT.replace(source, "{kind: trace, path: t.csv}"))
    made = Scenario.load(tmp_path / "s.yaml")
    job = Job("x", made.dump(), str(made._base), 0)
    assert len(pickle.dumps(job)) < 3000
    table = sweep(made, {"fleet.pools.chat.replicas": [1, 2]}, n_jobs=2).table
    assert table.completed.tolist() == [3, 3]


def test_SV_9_what_cannot_run_and_what_breaks_are_rows_with_their_error(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n1.0,100,5\n")
    trace = {"kind": "trace", "path": str(tmp_path / "t.csv")}
    gone = {"kind": "trace", "path": str(tmp_path / "none.csv")}
    made = sweep(scenario(), [{"source": trace}, {"source": gone}, {"fleet.pools.chat.model": "Llama-3.1-70B"}, {}], backend="inline")
    assert made.table.status.tolist() == ["ok", "failed", "refused", "ok"]
    assert "none.csv" in made.table.error[1] and "weights 141.1 GB" in made.table.error[2] and made.table.error[0] is None
    assert made.table["goodput_rps"].notna().tolist() == [True, False, False, True]
    said = repr(made)
    assert "4 points, 2 ok, 1 refused, 1 failed" in said and "weights 141.1 GB" in said


def test_SV_9_a_bug_in_one_point_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Scenario.run

    def run(self: Scenario, **options: Any) -> Any:
        if self.fleet.pools["chat"].replicas == 2:
            raise ZeroDivisionError("by chance")
        return whole(self, **options)

    monkeypatch.setattr(Scenario, "run", run)
    table = sweep(scenario(), {"fleet.pools.chat.replicas": [1, 2]}, backend="inline").table
    assert table.status.tolist() == ["ok", "failed"] and table.error[1] == "ZeroDivisionError: by chance"
    with pytest.raises(SweepFailedError, match="no point of 1 came to its end: ZeroDivisionError"):
        sweep(scenario(), {"fleet.pools.chat.replicas": [2]}, backend="inline")


def test_SV_9_nothing_flies_over_a_mistake_in_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    flown: list[Job] = []
    monkeypatch.setattr(module, "fly", lambda job: flown.append(job) or {"status": "ok", "error": None, "cpu_s": 0.0})
    for wrong in ({"source.rate": [1]}, {"fleet.pools.chat.replicas": [1, -1]}, {"fleet.pools.chat.replicas": ["many"]}, {"nope": [1]}):
        with pytest.raises(ConfigError):
            sweep(scenario(), wrong, backend="inline")
    for wrong in ({"source.rate_rps": 5}, {"source.rate_rps": "5,6"}):
        with pytest.raises(ConfigValueError, match=r"grid\.source\.rate_rps: expected a list"):
            sweep(scenario(), wrong, backend="inline")  # type: ignore[arg-type]
    for empty in ([], {"source.rate_rps": []}):
        with pytest.raises(ConfigValueError, match="at least one point"):
            sweep(scenario(), empty, backend="inline")
    with pytest.raises(ConfigValueError, match="replications"):
        sweep(scenario(), RATES, replications=0)
    assert flown == []


def test_SV_9_points_progress_and_the_best() -> None:
    assert points_of({}) == [{}] and points_of(iter([{"a": 1}])) == [{"a": 1}]
    assert point_id({"a": 1, "b": 2}) == point_id({"b": 2, "a": 1}) != point_id({"a": 2, "b": 1})
    told: list[tuple[int, int]] = []
    made = sweep(scenario(), {"source.rate_rps": [5, 20]}, backend="inline", progress=lambda done, of: told.append((done, of)))
    assert told == [(1, 2), (2, 2)]
    assert made.best() == {"source.rate_rps": 20} and made.best("gpu_hours", largest=False) in made.points
    with pytest.raises(ConfigValueError, match="no column"):
        made.best("fun")


def test_SV_9_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.yaml").write_text(TEXT)
    where = str(tmp_path / "s.yaml")
    assert run_cli(["--json", "sweep", where, "-g", "source.rate_rps=5,20", "-g", "fleet.pools.chat.replicas=1,2", "--jobs", "1",
                    "--csv", str(tmp_path / "t.csv")]) == 0
    said = json.loads(capsys.readouterr().out)["result"]
    assert [p["source.rate_rps"] for p in said["points"]] == [5, 5, 20, 20] and len(pd.read_csv(tmp_path / "t.csv")) == 4
    assert run_cli(["sweep", where]) == 2 and "needs a grid" in capsys.readouterr().err
    assert run_cli(["sweep", where, "-g", "source.rate_rps"]) == 2 and "expected path=v1,v2" in capsys.readouterr().err
