"""The step table by batch and context: its laws, its edges, its CSV file and its place in a scenario."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windtunnel.errors import ConfigError, ConfigFileError, ConfigValueError, WindtunnelError
from windtunnel.lab.scenario import Scenario
from windtunnel.sim.stepmodels.model import Batch
from windtunnel.sim.stepmodels.table import Table
from windtunnel.sim.stepmodels.table_csv import read_steps

GRID = ((1, 100, 0.010), (1, 200, 0.012), (1, 400, 0.020), (4, 100, 0.016), (4, 200, 0.021), (4, 400, 0.032))
NAN, INF = float("nan"), float("inf")


def decodes(n: int, kv: float) -> Batch:
    """n decodes that attend kv tokens together."""
    return Batch(n, kv, [], n, n, n)


def test_SM_11_by_batch_and_context_is_bilinear() -> None:
    table = Table(GRID, 0.0)
    for n, mean, seconds in ((1, 100, 0.010), (1, 150, 0.011), (4, 400, 0.032), (2, 100, 0.012), (3, 200, 0.018), (2, 300, (0.032 + 0.0265) / 3)):
        assert table.seconds(decodes(n, n * mean)) == pytest.approx(seconds, rel=1e-12)


def test_SM_11_ceil_is_the_next_knot_up_in_both() -> None:
    table = Table(GRID, 0.0, mode="ceil")
    for n, mean, seconds in ((1, 1, 0.010), (1, 100, 0.010), (1, 101, 0.012), (2, 100, 0.016), (3, 399, 0.032), (4, 400, 0.032), (4, 100.25, 0.021)):
        assert table.seconds(decodes(n, n * mean)) == seconds
    assert table.beyond == ""


def test_SM_11_ceil_of_a_table_by_batch_alone() -> None:
    table = Table(((1, 1e-3), (8, 3e-3), (16, 4e-3)), 0.0, 1e-6, mode="ceil")
    assert [table.seconds(decodes(n, 0)) for n in (1, 2, 8, 9, 16)] == [1e-3, 3e-3, 3e-3, 4e-3, 4e-3]
    assert table.run(decodes(2, 100), 50) == (3e-3 + 1e-4, 2e-6, 50)


@pytest.mark.parametrize(("table", "batch", "law"), [
    (Table(GRID, 0.0), decodes(4, 4 * 150), (0.0185, 5e-5, 51)),  # 150 + 50 is still on this side of the knot at 200
    (Table(GRID, 0.0), decodes(4, 4 * 150 + 1), (0.0185 + 0.25 * 5e-5, 5e-5, 50)),
    (Table(GRID, 0.0), decodes(2, 2 * 399), (0.023955, 4.5e-5, 2)),
    (Table(GRID, 0.0, mode="ceil"), decodes(4, 4 * 150), (0.021, 0.0, 51)),
    (Table(GRID, 0.0, mode="ceil"), decodes(4, 4 * 200), (0.021, 0.0, 1)),
    (Table(GRID, 0.0, mode="ceil"), decodes(4, 4 * 200 + 1), (0.032, 0.0, 200)),
    (Table(GRID, 0.0, mode="ceil"), decodes(3, 3 * 200 - 2), (0.021, 0.0, 1)),  # a mean of 199 1/3
    (Table(GRID, 0.0), Batch(0, 0, [(64, 0)], 64, 1, 0), (0.008, 0.0, 1000))])
def test_SM_2_a_run_of_a_table_ends_with_its_cell(table: Table, batch: Batch, law: tuple[float, float, int]) -> None:
    A, B, k = table.run(batch, 1000)
    assert k == law[2]
    assert pytest.approx(law[:2], rel=1e-12, abs=1e-15) == (A, B)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), ceil=st.booleans(), n=st.integers(1, 40), mean=st.floats(0, 3000), more=st.floats(0, 1))
def test_SM_11_every_answer_of_any_table_is_a_time(data: Any, ceil: bool, n: int, mean: float, more: float) -> None:
    """Ragged, falling, single, far beyond: above 0, finite, and the run is the steps that it stands for."""
    knots = []
    for batch in sorted(data.draw(st.sets(st.integers(1, 32), min_size=1, max_size=4))):
        at = data.draw(st.sets(st.sampled_from([0.0, 1.5, 64.0, 100.25, 512.0, 2000.0]), max_size=4)) | {100.25}
        knots += [(batch, kv, data.draw(st.floats(1e-4, 1.0))) for kv in sorted(at)]
    table = Table(tuple(knots), 1e-5, mode="ceil" if ceil else "linear")
    batch = decodes(n, int(n * mean) + n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        A, B, k = table.run(batch, 500)
    assert 0 < A < INF and 1 <= k <= 500 and 0 < A + B * (k - 1) < INF
    for j in {0, 1, int(more * (k - 1)), k - 1} & set(range(k)):
        assert table.seconds(decodes(n, batch.decode_kv + n * j)) == pytest.approx(A + B * j, rel=1e-9)


def test_SM_11_batches_may_be_measured_at_other_contexts() -> None:
    table = Table(((1, 100, 0.010), (1, 900, 0.018), (8, 100, 0.020), (8, 300, 0.024)), 0.0)
    assert table.of_batch(8, 200) == pytest.approx(0.022) and table.of_batch(1, 500) == pytest.approx(0.014)
    with pytest.warns(UserWarning, match="kv_mean 500 is outside 100 to 300"):
        table.run(decodes(8, 4000), 1)
    assert Table(((1, 100, 0.010), (8, 300, 0.024)), 0.0, mode="ceil").of_batch(4, 100) == 0.024
    with pytest.raises(ConfigValueError, match="batches 1 and 8 have no kv_mean in common: 100 to 100 and 300 to 300"):
        Table(((1, 100, 0.010), (8, 300, 0.024)), 0.0)


@pytest.mark.parametrize(("mode", "batch", "seconds", "told"), [
    ("linear", decodes(4, 4 * 600), 0.043, "kv_mean 600 is outside 100 to 400"),
    ("linear", decodes(4, 4 * 20), 0.012, "kv_mean 20 is outside 100 to 400"),
    ("linear", decodes(7, 7 * 100), 0.022, "sequences 7 is outside 1 to 4"),
    ("ceil", decodes(4, 4 * 600), 0.043, "kv_mean 600 is outside 0 to 400"),
    ("ceil", decodes(7, 7 * 50), 0.022, "sequences 7 is outside 0 to 4")])
def test_SC_7_beyond_the_grid_it_goes_on_from_the_edge_cell_and_says_so(mode: str, batch: Batch, seconds: float, told: str) -> None:
    table = Table(GRID, 0.0, mode=mode)
    table.run(decodes(2, 2 * 150), 1)
    assert table.beyond == ""
    with pytest.warns(UserWarning, match=told):
        A, _, _ = table.run(batch, 1)
    assert pytest.approx(seconds, rel=1e-12) == A
    assert table.beyond.startswith(told) and table.beyond.endswith("of simulated time")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        table.run(batch, 1)
    with pytest.raises(ConfigValueError, match=told.partition(" is")[0].rpartition(" ")[0]):
        replace(Table(GRID, 0.0, mode=mode), on_extrapolation="error").run(batch, 1)


def test_SC_7_the_worst_is_kept_and_the_share_is_of_the_time() -> None:
    table = Table(((2, 0.01), (4, 0.02)), 0.0)
    with pytest.warns(UserWarning):
        for n in (3, 5, 9, 6, 1):
            table.run(decodes(n, 0), 1)
    assert table.outside.worst["sequences"] == (9, 2, 4)
    assert table.of_batch(1) == 0.01  # below the first batch: as it
    spent = [table.of_batch(n) for n in (3, 5, 9, 6, 1)]
    assert table.outside.share == pytest.approx(1 - spent[0] / sum(spent))


def test_SC_7_what_falls_with_context_does_not_go_on_falling() -> None:
    table = Table(((1, 100, 0.02), (1, 200, 0.01)), 0.0)
    assert table.of_batch(1, 5000) == 0.01
    steep = Table(((1, 100, 0.001), (1, 200, 0.1)), 0.0)
    assert steep.of_batch(1, 0) == pytest.approx(1e-6) and steep.of_batch(1, 50) == pytest.approx(0.0005, rel=1e-2)


@pytest.mark.parametrize(("bad", "what"), [
    (((1, 100, 0.1), (2, 0.1)), r"got \[2, 0.1\] after \[1, 100, 0.1\]"), (((1,),), r"got \[1\]"), (((1, 2, 3, 4),), "each, got"),
    ((), "at least one"),
    (((1, 200, 0.1), (1, 100, 0.1)), "ascending batches and kv_mean"), (((1, 100, 0.1), (1, 100, 0.1)), "ascending"),
    (((2, 100, 0.1), (1, 100, 0.1)), "ascending"), (((1, -1, 0.1),), "kv_mean"), (((1, NAN, 0.1),), "kv_mean"), (((1, 100, 0.0),), "seconds"),
    (((1, 100, INF),), "seconds"), (((1.5, 100, 0.1),), "batch"), (((0, 100, 0.1),), "batch"), (((True, 100, 0.1),), "batch")])
def test_SM_11_knots_that_mean_nothing_are_refused(bad: Any, what: str) -> None:
    with pytest.raises(ConfigValueError, match=what):
        Table(bad, 0.0)


@pytest.mark.parametrize("make", [
    lambda: Table(GRID, 0.0, 1e-6), lambda: Table(GRID, 0.0, mode="up"), lambda: Table(GRID, 0.0, on_extrapolation="stop")])
def test_SM_11_options_that_contradict_are_refused(make: Any) -> None:
    with pytest.raises(ConfigValueError):
        make()


def written(folder: Path, text: str | bytes, name: str = "steps.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_SM_11_a_csv_in_any_order(tmp_path: Path) -> None:
    text = "\ufeffseconds, kv_mean ,Batch\r\n0.02,100,4\r\n\r\n 1e-2 ,1.5e2,1\r\n0.009,100,1\r\n"
    assert read_steps(written(tmp_path, text)) == ((1, 100.0, 0.009), (1, 150.0, 0.01), (4, 100.0, 0.02))
    assert read_steps(written(tmp_path, "batch,seconds\n2,0.1")) == ((2, 0.1),)


def test_SM_11_a_large_csv_is_read_at_once(tmp_path: Path) -> None:
    rows = "\n".join(f"{n},{kv},{0.001 * n + 1e-6 * kv}" for n in range(1, 201) for kv in range(0, 10_000, 100))
    knots = read_steps(written(tmp_path, f"batch,kv_mean,seconds\n{rows}"))
    table = Table(knots, 0.0)
    assert len(knots) == 20_000 and table.of_batch(77, 4321) == pytest.approx(0.077 + 4321e-6, rel=1e-9)


@pytest.mark.parametrize(("text", "line", "what"), [
    ("batch,kv_mean,seconds\n1,128,0.005\n1,x,0.006\n", 3, 'column kv_mean: expected tokens >= 0, got "x"'),
    ("batch,kv_mean,seconds\n1,-1,0.005\n", 2, "column kv_mean"), ("batch,kv_mean,seconds\n1,,0.005\n", 2, "column kv_mean"),
    ("batch,seconds\n1,0.1\n2,nan\n", 3, 'column seconds: expected seconds > 0, got "nan"'), ("batch,seconds\n1,0\n", 2, "column seconds"),
    ("batch,seconds\n1,inf\n", 2, "column seconds"), ("batch,seconds\n1,0x1\n", 2, "column seconds"),
    ("batch,seconds\n0,1\n", 2, 'column batch: expected a count of sequences >= 1, got "0"'), ("batch,seconds\n1.5,1\n", 2, "column batch"),
    ("batch,seconds\n1,0.1\n2,0.2\n1,0.1\n", 4, "column batch: batch 1 stands in line 2 already"),
    ("batch,seconds\n1,0.1,3\n", 2, "3 values for the 2 columns batch, seconds"), ("batch,seconds\n1\n", 2, "1 values"),
    ("1,0.1\n2,0.2\n", 1, 'unknown column "1"'), ("batch,ms\n1,3\n", 1, 'unknown column "ms"; write seconds'),
    ("batch,seconds,größe\n1,3,1\n", 1, 'unknown column "größe"'), ("batch,kv_mean\n1,3\n", 1, "no column seconds"),
    ("seconds\n1\n", 1, "no column batch"), ("batch,batch,seconds\n1,1,1\n", 1, "column batch stands there twice"),
    ('batch,seconds\n1,0.1\n2,"0.2\n', 3, "not a line of a CSV file"), ("", 0, "no step in it"), ("batch,seconds\n\n", 0, "no step in it"),
    (b"\xff\xfe\x00b", 0, "not a text file in UTF-8")])
def test_SM_11_a_bad_csv_is_told_with_file_line_and_column(tmp_path: Path, text: str | bytes, line: int, what: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigFileError) as caught:
        read_steps(path)
    assert caught.value.where == (f"{path}:{line}" if line else str(path))
    assert what in str(caught.value)


TEXT = """windtunnel: 1
name: table
question: How long is a step?
duration_s: 10
fleet:
  pools:
    chat: {model: Llama-3.1-8B, gpu: h100_sxm, profile: {kind: table, PROFILE}}
source: {kind: arrivals, rate_rps: 4, input_tokens: 100, output_tokens: 40}
"""


def scenario(folder: Path, profile: str) -> Scenario:
    path = folder / "s.yaml"
    path.write_text(TEXT.replace("PROFILE", profile))
    return Scenario.load(path)


def test_SM_11_a_scenario_reads_the_csv_beside_it(tmp_path: Path) -> None:
    knots = "batch,kv_mean,seconds\n1,64,0.01\n1,512,0.02\n64,64,0.03\n64,512,0.06\n"
    written(tmp_path, knots)
    by_path = scenario(tmp_path, "path: steps.csv, prefill_s_per_token: 0.0")
    listed = scenario(tmp_path, "decode_s: [[1, 64, 0.01], [1, 512, 0.02], [64, 64, 0.03], [64, 512, 0.06]], prefill_s_per_token: 0.0")
    one, two = by_path.run(), listed.run()
    assert one.requests.equals(two.requests) and len(one.requests) > 20
    assert "table steps.csv" in one.provenance and "extrapolated" not in one.provenance
    before = by_path.digest
    written(tmp_path, knots.replace("0.06", "0.07"))
    assert Scenario.load(tmp_path / "s.yaml").digest != before
    assert Scenario.load(by_path.dump(resolved=True)).fleet == by_path.fleet


def test_SC_7_a_run_beyond_the_table_says_so_in_its_timing(tmp_path: Path) -> None:
    written(tmp_path, "batch,kv_mean,seconds\n1,64,0.01\n1,120,0.02\n64,64,0.03\n64,120,0.06\n")
    with pytest.warns(UserWarning, match="extrapolated: kv_mean 1"):
        run = scenario(tmp_path, "path: steps.csv, prefill_s_per_token: 0.0").run()
    assert "extrapolated: kv_mean 1" in run.provenance and "is outside 64 to 120" in run.provenance
    with pytest.raises(WindtunnelError, match="kv_mean"):
        scenario(tmp_path, "path: steps.csv, prefill_s_per_token: 0.0, on_extrapolation: error").run()


@pytest.mark.parametrize(("profile", "what"), [
    ("prefill_s_per_token: 0.0", "give one of decode_s and path"),
    ("path: a.csv, decode_s: [[1, 0.1]], prefill_s_per_token: 0.0", "give one of decode_s and path"),
    ("decode_s: [[1, 0.1]], mode: up, prefill_s_per_token: 0.0", 'expected one of "linear", "ceil", got "up"'),
    ("decode_s: [[1, 0.1], [2, 5, 0.1]], prefill_s_per_token: 0.0", "each, got [2, 5, 0.1] after [1, 0.1]"),
    ("decode_s: [[1, 0.1, x]], prefill_s_per_token: 0.0", 'expected a number, got "x"'),
    ("decode_s: [[1, 100, 0.1]], kv_s_per_token: 1.0e-6, prefill_s_per_token: 0.0", "counts attended tokens twice"),
    ("path: nowhere.csv, prefill_s_per_token: 0.0", 'no file "nowhere.csv"'),
    ("path: bad.csv, prefill_s_per_token: 0.0", "bad.csv:2: fleet.pools.chat: column batch"),
    ("path: by_context.csv, kv_s_per_token: 1.0e-6, prefill_s_per_token: 0.0", "counts attended tokens twice")])
def test_SM_11_a_scenario_with_a_table_that_means_nothing(tmp_path: Path, profile: str, what: str) -> None:
    written(tmp_path, "batch,seconds\nx,1\n", "bad.csv")
    written(tmp_path, "batch,kv_mean,seconds\n1,1,1\n", "by_context.csv")
    with pytest.raises(ConfigError) as caught:
        scenario(tmp_path, profile).build_fleet()
    assert what in str(caught.value)
