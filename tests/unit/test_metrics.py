"""Metrics against worked numbers: the golden example of eight requests, percentiles, expressions, number style."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from windtunnel.cockpit.cards import fmt
from windtunnel.errors import ConfigMetricError, ConfigValueError, RunNotRecordedError
from windtunnel.lab import columns, metrics, tables
from windtunnel.lab.run import Run
from windtunnel.lab.run_meta import RunMeta
from windtunnel.lab.tables import Tables

SLO = {"ttft_s": 1.0, "tpot_s": 0.05}
GOLDEN = [  # id tenant arrived ttft e2e in out outcome ended
    ("r1", "a", 0.0, 0.2, 1.2, 100, 21, "success", None),
    ("r2", "a", 1.0, 0.4, 0.4, 50, 1, "success", None),
    ("r3", "b", 2.0, 1.5, 3.5, 400, 41, "success", None),
    ("r4", "b", 3.0, 0.3, 4.3, 200, 41, "success", None),
    ("r5", "a", 4.0, None, None, 100, None, "rate_limited", 4.0),
    ("r6", "b", 5.0, 0.9, None, 300, 10, "local_timeout", 9.0),
    ("r7", "a", 6.0, 0.6, 1.0, 120, 11, "success", None),
    ("r8", "b", 9.5, 1.2, None, 80, 5, "local_cancelled", 12.0),
]


def made(rows: dict[str, list[Any]], *, end_s: float = 12.0, replicas: dict[str, list[Any]] | None = None, **meta: Any) -> Run:
    arrow = {
        "requests": columns.from_rows(rows),
        "replicas": tables.arrow_table("replicas", replicas or {}),
        "series": tables.arrow_table("series", {}),
    }
    return Run(RunMeta("golden", complete=True, **meta), Tables.from_arrow("requests", arrow, end_s=end_s))


def golden(**meta: Any) -> Run:
    rows: dict[str, list[Any]] = {
        "request_id": [r[0] for r in GOLDEN],
        "tenant": [r[1] for r in GOLDEN],
        "arrived_s": [r[2] for r in GOLDEN],
        "first_token_s": [None if r[3] is None else r[2] + r[3] for r in GOLDEN],
        "ended_s": [r[8] if r[4] is None else r[2] + r[4] for r in GOLDEN],
        "input_tokens": [r[5] for r in GOLDEN],
        "output_tokens": [r[6] for r in GOLDEN],
        "outcome": [r[7] for r in GOLDEN],
        "intended_s": [r[2] for r in GOLDEN],
        "dispatched_s": [None if r[0] == "r5" else r[2] for r in GOLDEN],
    }
    return made(rows, **{"slo": SLO, "planned_s": 10.0, "loop": "open", **meta})


def test_CR_23_golden_example() -> None:
    run = golden()
    v = run.summary().values
    tpot = run.requests.set_index("request_id")["tpot_s"]
    assert tpot[["r1", "r3", "r4", "r7"]].tolist() == pytest.approx([0.05, 0.05, 0.1, 0.04])
    assert math.isnan(tpot["r2"])
    expected = {
        "offered": 8,
        "good": 3,
        "good_fraction": 0.375,
        "success_fraction": 0.625,
        "rejected_fraction": 0.125,
        "timeout_fraction": 0.125,
        "failed_fraction": 0.125,
        "window_s": 12.0,
        "goodput_rps": 0.25,
        "request_rps": 0.4166667,
        "input_tps": 72.5,
        "output_tps": 9.5833333,
        "slo_attainment.ttft_s": 0.5,
        "slo_attainment.tpot_s": 0.5,
        "wasted_tokens": 15,
        "jain": 0.8685141,
        "offered_rps": 8 / 12,
    }
    assert {k: v[k] for k in expected} == pytest.approx(expected, abs=1e-7)
    assert v["basis"] == "elapsed"
    for expression, value in {
        "ttft_s.avg": 0.6,
        "ttft_s.p50": 0.4,
        "ttft_s.p90": 1.14,
        "ttft_s.p95": 1.32,
        "ttft_s.p99": 1.464,
        "ttft_s.std": 0.4690416,
        "ttft_s.count": 5,
        "ttft_s.adj_p50": 1.5,
        "ttft_s.adj_p90": math.inf,
        "tpot_s.p50": 0.05,
        "tpot_s.p99": 0.0985,
        "tpot_s.count": 4,
    }.items():
        assert run.metric(expression) == pytest.approx(value, abs=1e-7), expression
    assert {r[0] for r, g in zip(GOLDEN, metrics.goods(metrics.Requests(run.tables.arrow("requests")), SLO).good) if g} == {
        "r1",
        "r2",
        "r7",
    }


def test_CR_23_equal_in_pandas_from_the_saved_parquet(tmp_path: Any) -> None:
    run = golden()
    frame = pd.read_parquet(run.save(tmp_path / "g") / "requests.parquet")
    won = frame[frame["outcome"] == "success"]
    assert won["ttft_s"].quantile(0.99) == pytest.approx(run.metric("ttft_s.p99"))
    assert frame.loc[frame["outcome"] != "success", "output_tokens"].sum() == run.metric("wasted_tokens") == 15
    bounds = (won["ttft_s"] <= 1.0) & ((won["tpot_s"] <= 0.05) | (won["output_tokens"] < 2))
    assert bounds.sum() / 12.0 == pytest.approx(run.metric("goodput_rps"))


def test_CR_22_n_stands_beside_every_statistic_and_few_are_starred() -> None:
    summary = golden().summary(by="tenant")
    assert summary.table.loc["ttft_s", "n"] == 5 and summary.table.loc["tpot_s", "n"] == 4
    assert "p99 1.46*" in summary.text and "n 5" in summary.text
    assert summary.by is not None
    assert dict(zip(summary.by["tenant"], summary.by["good"])) == {"a": 3, "b": 0}
    assert summary.by["good"].sum() == summary.values["good"]
    assert summary.by["goodput_rps"].sum() == pytest.approx(summary.values["goodput_rps"])
    with pytest.raises(ConfigValueError, match="by: expected one of"):
        golden().summary(by="colour")


def test_summary_dict_has_the_flat_names_and_is_json() -> None:
    import json

    told = golden().summary().to_dict()
    assert told["requests"] == told["completed"] + told["rejected"] + told["failed"] + told["cancelled"] + told["timed_out"] == 8
    assert told["ttft_s"] == pytest.approx({"mean": 0.6, "p50": 0.4, "p95": 1.32, "p99": 1.464, "n": 5})
    assert told["makespan_s"] == 12.0 and told["output_tokens_per_s"] == pytest.approx(115 / 12) and told["cost_usd"] is None
    assert json.loads(json.dumps(told, allow_nan=False))["goodput_rps"] == 0.25


def test_MX_20_percentiles_interpolate_linearly() -> None:
    found = metrics.statistics(np.array([0.1, 0.2, 0.3, 0.4, 1.0]))
    assert [found[p] for p in ("p50", "p90", "p95", "p99")] == pytest.approx([0.3, 0.76, 0.88, 0.976])
    nothing = metrics.statistics(np.array([]))
    assert nothing["n"] == nothing["count"] == 0 and nothing["p50"] is nothing["avg"] is None


def test_MX_21_refused_requests_count_as_infinitely_late() -> None:
    values = np.array([0.3, 0.1, 0.2])
    assert metrics.adjusted(values, 1, 0.5) == 0.3
    assert metrics.adjusted(values, 1, 0.9) == math.inf
    assert metrics.adjusted(np.array([]), 0, 0.5) is None


def test_MX_22_unknown_fails_its_bound_but_a_one_token_reply_is_not_asked_for_tpot() -> None:
    rows: dict[str, list[Any]] = {
        "request_id": ["x", "y", "z"],
        "tenant": ["t"] * 3,
        "arrived_s": [0.0] * 3,
        "ended_s": [1.0] * 3,
        "outcome": ["success"] * 3,
        "first_token_s": [0.5, None, 0.5],
        "output_tokens": [1, 0, 5],
    }
    v = made(rows, slo=SLO).summary().values
    assert (v["good"], v["slo_attainment.ttft_s"], v["slo_attainment.tpot_s"]) == (1, pytest.approx(2 / 3), pytest.approx(2 / 3))


def test_MX_22_bounds_per_priority_class() -> None:
    rows: dict[str, list[Any]] = {
        "request_id": ["x", "y"],
        "tenant": ["t"] * 2,
        "priority": ["interactive", "batch"],
        "arrived_s": [0.0] * 2,
        "first_token_s": [5.0] * 2,
        "ended_s": [6.0] * 2,
        "outcome": ["success"] * 2,
        "output_tokens": [5, 5],
    }
    run = made(rows, slo={"interactive": {"ttft_s": 1.0}, "attainment": 0.9})
    assert run.metric("good_fraction") == 0.5
    assert run.metric("good_fraction[priority=batch]") == 1.0


@pytest.mark.parametrize(
    ("meta", "window", "basis"),
    [
        ({"planned_s": 20.0}, 20.0, "planned"),
        ({"planned_s": None}, 12.0, "elapsed"),
        ({"planned_s": None, "loop": "closed"}, 12.0, "elapsed"),
        ({"planned_s": None, "loop": "closed", "concurrency": 2.0}, 12.0 + 1.2 / 2.0, "padded"),
    ],
)
def test_MX_24_time_base(meta: dict[str, Any], window: float, basis: str) -> None:
    # The median success takes 1.2 s; r5 occupied its slot for 0 s, r6 for 4 s, r8 for 2.5 s: only r5 left 1.2 s unused.
    v = golden(**meta).summary().values
    assert (v["window_s"], v["basis"]) == (pytest.approx(window), basis)


def test_MX_25_means_over_time_follow_littles_law() -> None:
    v = golden().summary().values
    stay = sum(r[4] or 0.0 for r in GOLDEN) + 4.0 + 2.5
    assert v["in_flight.avg"] == pytest.approx(stay / 12.0)
    assert v["in_flight.max"] == 3 and v["waiting.avg"] == 0.0


def test_MX_27_unknown_price_is_unknown_not_zero() -> None:
    facts: dict[str, list[Any]] = {
        "replica": ["c-0", "c-1"],
        "pool": ["c", "c"],
        "requested_s": [0.0, 0.0],
        "ready_s": [0.0, 6.0],
        "gone_s": [None, None],
        "busy_s": [6.0, 3.0],
        "gpu_seconds": [12.0, 12.0],
    }
    rows: dict[str, list[Any]] = {
        "request_id": ["x"],
        "tenant": ["t"],
        "arrived_s": [0.0],
        "ended_s": [1.0],
        "outcome": ["success"],
        "output_tokens": [10],
    }
    v = made(rows, replicas=facts | {"usd": [0.5, None]}).summary().values
    assert v["usd"] is v["usd_per_1k_good"] is None
    assert v["gpu_hours"] == pytest.approx(24 / 3600) and v["utilisation"] == pytest.approx(9 / 18)
    priced = made(rows, replicas=facts | {"usd": [0.5, 0.5]}).summary().values
    assert priced["usd_per_1k_good"] == 1000.0


def test_SV_7_marked_requests_are_kept_and_left_out() -> None:
    run = golden(warmup_s=2.0, cooldown_s=1.0)
    assert run.requests["marked"].tolist() == [True, True, False, False, False, False, False, True]
    v = run.summary().values
    assert v["offered"] == 5 and v["window_s"] == 7.0


def test_CR_20_expressions() -> None:
    run = golden()
    assert run.metric("ttft_s.p50[tenant=a]") == pytest.approx(0.4)
    assert run.metric("ttft_s.max[t=2..4]") == pytest.approx(1.5)
    assert run.metric("output_tokens.sum[tenant=b,t=0..4]") == 82
    assert run.metric("offered[outcome=success]") == 5
    assert run.metric("goodput_rps[t=0..8]") == pytest.approx(3 / 8)
    assert run.metric("slo_attainment.ttft_s") == 0.5
    assert run.metric("in_flight.max") == 3
    assert run.metric("usd") is None and run.metric("ttft_s.p99[tenant=nobody]") is None
    with pytest.raises(RunNotRecordedError, match="itl_s needs itl: true or record: full"):
        run.metric("itl_s.p99")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("ttft_s", 'metric "ttft_s" needs a statistic; for example ttft_s.p99'),
        ("ttft_s.p98", 'unknown statistic "p98"'),
        ("tfft_s.p99", 'did you mean "ttft_s"'),
        ("goodput_rps.p99", 'unknown name "goodput_rps.p99"'),
        ("ttft_s.p99[", "is not name"),
        ("ttft_s.p99[tenant]", 'filter "tenant" is not key=value'),
        ("ttft_s.p99[colour=red]", 'unknown filter "colour"'),
        ("ttft_s.p99[t=5..2]", "t=5..2 is not a range"),
        ("ttft_s.p99[priority=high]", 'unknown priority "high"'),
        ("", "is not name"),
    ],
)
def test_CR_20_grammar_errors_are_sentences(text: str, sentence: str) -> None:
    with pytest.raises(ConfigMetricError) as error:
        golden().metric(text)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.1423, "s", "142 ms"),
        (0.0191, "s", "19.1 ms"),
        (1.306, "s", "1.31 s"),
        (99.96, "s", "100 s"),
        (460.2, "s", "7 min 40 s"),
        (0.0, "s", "0 s"),
        (0.9894, "share", "98.9 %"),
        (1.67, "usd", "1.67 USD"),
        (0.0583, "usd", "0.0583 USD"),
        (12345, "", "12,345"),
        (1234.5, "rps", "1,230 rps"),
        (None, "s", "–"),
        (math.nan, "", "–"),
        (math.inf, "s", "inf"),
        (0.99951, "s", "1.00 s"),
        (119.97, "s", "2 min 0 s"),
    ],
)
def test_CR_24_number_style(value: float | None, unit: str, text: str) -> None:
    assert fmt(value, unit) == text


def test_CR_10_every_column_has_its_declared_type_unit_and_nullability() -> None:
    for name, wanted in tables.SCHEMAS.items():
        schema = tables.schema_of(name)
        assert schema.names == [c.name for c in wanted] and all(c.meaning.endswith(".") for c in wanted)
        assert all(f.metadata[b"description"] for f in schema)
        frame = tables.frame_of(tables.arrow_table(name, {}))
        kinds = {"float": "float64", "int": "Int64", "word": "category", "id": "str"}
        assert {c.name: str(frame[c.name].dtype) for c in wanted if c.kind in kinds} == {
            c.name: kinds[c.kind] for c in wanted if c.kind in kinds
        }
        assert not any(c.kind == "float" and c.name.endswith("_s") and c.unit != "s" for c in wanted)


def test_unknown_counts_are_na_never_zero() -> None:
    frame = golden().requests
    assert frame["cached_tokens"].isna().all() and frame["preemptions"].isna().all()
    assert frame["output_tokens"].isna().sum() == 1 and pa.types.is_int64(tables.schema_of("requests").field("attempts").type)


def test_an_empty_run_has_a_summary_and_a_text() -> None:
    run = made(
        {
            "request_id": [],
            "tenant": [],
            "arrived_s": [],
            "first_token_s": [],
            "ended_s": [],
            "outcome": [],
            "input_tokens": [],
            "output_tokens": [],
        }
    )
    assert run.summary().values["offered"] == 0 and run.summary().values["good_fraction"] is None
    assert "0 requests" in repr(run) and "–" in repr(run)
