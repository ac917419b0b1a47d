"""Comparisons: worked intervals, pairing, verdicts, the winner in words."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from windtunnel.errors import ConfigMetricError, ConfigValueError
from windtunnel.lab import bootstrap, columns, stats, tables
from windtunnel.lab.compare import Runs, compare, direction, replicate
from windtunnel.lab.run import Run
from windtunnel.lab.run_meta import RunMeta
from windtunnel.lab.tables import Tables
from windtunnel.lab.verdicts import SAME, Line, text_line

BASE, CANDIDATE = [0.94, 0.91, 0.95, 0.93, 0.92], [0.97, 0.95, 0.97, 0.96, 0.96]


def run_of(
    name: str, ttft: np.ndarray, *, replication: int = 0, gpu_seconds: float = 3600.0, at: np.ndarray | None = None, **meta: Any
) -> Run:
    n = len(ttft)
    at = np.arange(n, dtype=float) if at is None else at
    rows = {
        "request_id": [f"r{i}" for i in range(n)],
        "tenant": [f"t{i % 2}" for i in range(n)],
        "arrived_s": at,
        "first_token_s": at + ttft,
        "ended_s": at + ttft + 1.0,
        "outcome": ["success"] * n,
        "input_tokens": [100] * n,
        "output_tokens": [21] * n,
    }
    replicas = {"replica": ["c-0"], "pool": ["c"], "ready_s": [0.0], "busy_s": [1.0], "gpu_seconds": [gpu_seconds]}
    arrow = {
        "requests": columns.from_rows(rows),
        "replicas": tables.arrow_table("replicas", replicas),
        "series": tables.arrow_table("series", {}),
    }
    about = RunMeta(name, replication=replication, slo={"ttft_s": 1.0}, planned_s=float(n) + 10, complete=True, **meta)
    return Run(about, Tables.from_arrow("requests", arrow, end_s=float(n) + 10))


def with_share(name: str, good: float, replication: int, **more: Any) -> Run:
    """A run of 100 requests of which a share is good."""
    return run_of(name, np.where(np.arange(100) < round(100 * good), 0.5, 2.0), replication=replication, **more)


def sides(**candidate: Any) -> tuple[Runs, Runs]:
    base = Runs([with_share("base", g, i) for i, g in enumerate(BASE)])
    return base, Runs([with_share("six", g, i, **candidate) for i, g in enumerate(CANDIDATE)])


def test_EX_6_golden_interval() -> None:
    found = stats.paired(BASE, CANDIDATE)
    assert np.std(np.subtract(CANDIDATE, BASE), ddof=1) == pytest.approx(0.0083666, abs=1e-7)
    assert stats.t_quantile(0.975, 4) == pytest.approx(2.7764451, abs=1e-7)
    assert (found.value, found.lo, found.hi) == pytest.approx((0.032, 0.0216115, 0.0423885), abs=1e-7)


def test_EX_6_golden_table() -> None:
    base, six = sides()
    line = compare({"base": base, "six": six}, ["good_fraction"], "good_fraction").line("good_fraction")
    assert (line.delta, line.lo, line.hi) == pytest.approx((0.032, 0.0216115, 0.0423885), abs=1e-7)
    assert (line.baseline, line.candidate, line.n, line.method, line.verdict) == (
        pytest.approx(0.93),
        pytest.approx(0.962),
        5,
        "paired",
        "better",
    )
    assert line.delta_pct == pytest.approx(100 * 0.032 / 0.93)
    swapped = compare({"six": six, "base": base}, ["good_fraction"], "good_fraction").line("good_fraction")
    assert (swapped.lo, swapped.hi) == pytest.approx((-0.0423885, -0.0216115), abs=1e-7) and swapped.verdict == "worse"
    same = compare({"base": base, "same": base}, ["good_fraction"], "good_fraction")
    line = same.line("good_fraction")
    assert (line.delta, line.lo, line.hi, line.verdict) == (0.0, 0.0, 0.0, "no difference shown")
    assert same.winner == "No difference shown in good_fraction with 5 replications; try replications=20."


def test_EX_5_the_winner_in_words_names_what_got_worse() -> None:
    base, six = sides(gpu_seconds=5400.0)
    found = compare({"base": base, "six": six}, primary="good_fraction")
    assert found.winner == (
        "six is better than base: good_fraction +0.0320 (95 % CI 0.0216 to 0.0424, 5 paired replications); it costs 50 % more GPU-hours."
    )
    back = compare({"six": six, "base": base}, primary="good_fraction")
    assert back.winner.startswith("six is better than base: base has good_fraction -0.0320 (95 % CI -0.0424 to -0.0216")
    assert found.table["metric"].tolist()[:2] == ["good_fraction", "goodput_rps"] and "usd_per_1k_good" not in set(found.table["metric"])


def test_EX_4_directions() -> None:
    higher = [
        "goodput_rps",
        "good_fraction",
        "success_fraction",
        "jain",
        "output_tps",
        "prefix_hit_rate",
        "utilisation",
        "slo_attainment.ttft_s",
    ]
    lower = [
        "ttft_s.p99",
        "ttft_s.p99[tenant=a]",
        "lag_p99_s",
        "rejected_fraction",
        "gpu_hours",
        "usd",
        "usd_per_1k_good",
        "kwh",
        "wasted_tokens",
        "scale_reversals",
    ]
    neutral = ["window_s", "makespan_s", "decision_count", "in_flight.avg", "offered", "output_tokens.avg"]
    assert [direction(m) for m in (*higher, *lower, *neutral)] == [1] * len(higher) + [-1] * len(lower) + [0] * len(neutral)


def test_EX_4_infinite_or_unknown_is_judged_by_order() -> None:
    base, _ = sides()
    none = Runs([run_of("none", np.full(100, np.nan), replication=i) for i in range(5)])
    found = compare({"base": base, "none": none}, ["ttft_s.p99", "ttft_s.adj_p99"])
    line = found.line("ttft_s.p99")
    assert (line.candidate, line.lo, line.verdict) == (None, None, "worse")
    assert compare({"none": none, "base": base}, ["ttft_s.p99"]).line("ttft_s.p99").verdict == "better"
    json.dumps(found.to_dict(), allow_nan=False)
    repr(found)


def test_EX_3_one_seed_uses_the_same_blocks_for_both() -> None:
    rng = np.random.default_rng(1)
    shared = rng.exponential(0.5, 2000)
    a, b = run_of("a", shared), run_of("b", shared * 0.9)
    found = compare([a, b], ["goodput_rps", "ttft_s.p50", "ttft_s.avg", "jain", "output_tps", "rejected_fraction", "gpu_hours"])
    assert {line.method for line in found.by_candidate()["b"] if line.metric != "gpu_hours"} == {"one_seed"}
    ttft = found.line("ttft_s.avg")
    delta = -0.1 * shared.mean()
    spread = abs(0.1 * shared.std() / math.sqrt(2000))  # paired: only the difference varies, not the level
    assert ttft.lo is not None and ttft.hi is not None
    assert ttft.lo < delta < ttft.hi and 1.0 < (ttft.hi - ttft.lo) / spread < 8.0 and ttft.verdict == "better"
    assert found.line("goodput_rps").verdict == "better" and found.line("rejected_fraction").verdict == "no difference shown"
    gpus = found.line("gpu_hours")
    assert (gpus.method, gpus.lo) == ("none", None)
    assert "one seed, block bootstrap" in found.winner and "GPU-hours" not in found.winner
    dear = run_of("b", shared * 0.9, gpu_seconds=7200.0)
    assert compare([a, dear]).winner.endswith("; it costs 100 % more GPU-hours.")
    assert "gpu_hours" in repr(compare([a, dear])) and "no interval" in repr(compare([a, dear]))
    assert compare([a, b]).to_dict() == compare([a, b]).to_dict()


def test_resampled_quantiles_equal_numpys() -> None:
    rng = np.random.default_rng(2)
    x, block = rng.lognormal(size=500), stats.blocks_of(500)
    weights = stats.block_weights(resamples=20)
    for q in (0.5, 0.99):
        direct = [np.quantile(np.concatenate([np.repeat(x[block == b], int(w)) for b, w in enumerate(row)]), q) for row in weights]
        assert stats.resampled_quantile(x, block, weights, q) == pytest.approx(direct)
    big, whole = rng.lognormal(size=60_000), np.ones((1, stats.BLOCKS))
    assert stats.resampled_quantile(big, stats.blocks_of(60_000), whole, 0.99)[0] == pytest.approx(np.quantile(big, 0.99))
    assert math.isnan(stats.resampled_quantile(np.empty(0), stats.blocks_of(0), whole, 0.5)[0])


def test_EX_3_different_arrivals_one_run_each_have_no_interval() -> None:
    a, b = run_of("a", np.full(100, 0.5)), run_of("b", np.full(100, 0.4), at=np.arange(100) * 1.01)
    found = compare([a, b], ["ttft_s.p50"])
    assert (found.line("ttft_s.p50").method, found.line("ttft_s.p50").lo, found.line("ttft_s.p50").same_source) == ("none", None, False)
    assert "different arrivals, one run each: no interval" in repr(found) and "different arrivals" in found.winner


def test_EX_3_live_runs_are_compared_by_welch() -> None:
    rng = np.random.default_rng(3)
    live = [[run_of(n, rng.exponential(s, 200), world="live", mode="armed") for _ in range(4)] for n, s in (("a", 0.5), ("b", 0.2))]
    line = compare({"a": live[0], "b": live[1]}, ["ttft_s.avg"]).line("ttft_s.avg")
    means = [[r.metric("ttft_s.avg") for r in side] for side in live]
    assert line.method == "welch" and line.verdict == "better"
    assert (line.lo, line.hi) == pytest.approx((stats.welch(*means).lo, stats.welch(*means).hi))  # type: ignore[arg-type]


def test_three_items_name_the_best() -> None:
    base, six = sides()
    worst = Runs([with_share("bad", 0.5, i) for i in range(5)])
    best = Runs([with_share("best", 0.99, i) for i in range(5)])
    found = compare({"base": base, "six": six, "bad": worst, "best": best}, ["good_fraction"], "good_fraction")
    assert found.names == ("base", "six", "bad", "best") and found.winner.startswith("best is better than base")
    assert found.table["name"].tolist() == ["six", "bad", "best"]
    assert [n for n, _ in found.first_runs()] == ["base", "six", "bad", "best"]


def test_EX_2_scenarios_are_replicated_and_names_kept_apart() -> None:
    class Scenario:
        name = "s"

        def run(self, *, replication: int = 0) -> Run:
            return with_share("s", 0.9, replication)

    runs = replicate(Scenario(), 3, first=2)  # type: ignore[arg-type]
    assert [r.replication for r in runs] == [2, 3, 4] and repr(runs) == "Runs s: 3 replications"
    found = compare([Scenario(), Scenario()], replications=2)
    assert found.names == ("s", "s-2") and found.line("goodput_rps").n == 2 and found.line("goodput_rps").same_source is True


def test_slo_instead_of_each_runs() -> None:
    a, b = run_of("a", np.full(50, 0.5)), run_of("b", np.full(50, 0.3))
    found = compare([a, b], ["good_fraction"], slo={"ttft_s": 0.4})
    assert (found.line("good_fraction").baseline, found.line("good_fraction").candidate) == (0.0, 1.0)
    assert a.metric("good_fraction") == 1.0  # the runs are as they were


def test_text_fits_a_hundred_columns_and_html_escapes() -> None:
    base, six = sides()
    found = compare({"base <b>": base, "a rather long candidate name": six})
    lines = repr(found).splitlines()
    assert max(len(line) for line in lines[1:]) <= 100 and lines[-1].startswith("next")
    html = found._repr_html_()
    assert "base <b>" not in html and "base &lt;b&gt;" in html and "▲ better" in html and len(html) < 60_000


def test_bad_arguments_are_sentences() -> None:
    a = run_of("a", np.full(50, 0.5))
    with pytest.raises(ConfigValueError, match="items: expected at least 2 to compare, got 1"):
        compare([a])
    with pytest.raises(ConfigMetricError, match='did you mean "goodput_rps"'):
        compare([a, a], ["godput_rps"])
    with pytest.raises(ConfigValueError, match="'jain' was not compared"):
        compare([a, a], ["good_fraction"]).line("jain")


@pytest.mark.parametrize(
    ("p", "df", "t"),
    [
        (0.975, 1, 12.706204736),
        (0.975, 4, 2.776445105),
        (0.975, 19, 2.093024054),
        (0.95, 9, 1.833112933),
        (0.995, 30, 2.749995654),
        (0.975, 1e6, 1.959966),
        (0.025, 4, -2.776445105),
        (0.5, 7, 0.0),
    ],
)
def test_t_quantiles(p: float, df: float, t: float) -> None:
    assert stats.t_quantile(p, df) == pytest.approx(t, rel=1e-6)
    assert stats.t_cdf(stats.t_quantile(p, df), df) == pytest.approx(p, abs=1e-12)


def test_t_distribution_with_a_broken_number_of_degrees_of_freedom() -> None:
    df, x = 2.5, np.linspace(-2000.0, 3.0, 4_000_001)
    density = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi) * (1 + x**2 / df) ** (-(df + 1) / 2)
    assert stats.t_cdf(3.0, df) == pytest.approx(np.trapezoid(density, x), abs=1e-7)


def test_SV_8_batch_means_cover_the_mean_of_independent_values() -> None:
    rng = np.random.default_rng(4)
    covered = sum(i.lo <= 1.0 <= i.hi and i.reliable for i in (stats.batch_means(rng.exponential(size=2000)) for _ in range(200)))
    assert 175 <= covered <= 200
    assert stats.batch_means(rng.exponential(size=2000)).n in (10, 20)


def test_SV_8_correlated_batches_are_flagged() -> None:
    drift = np.linspace(0.0, 1.0, 2000)
    found = stats.batch_means(drift)
    assert found.n == 10 and not found.reliable
    assert not stats.batch_means([1.0, 2.0]).reliable
    assert stats.batch_means(np.arange(100.0) % 10, quantile=0.9).value == pytest.approx((3.6 + 8.6) / 2)


def test_SV_7_mser5_deletes_the_transient_and_nothing_else() -> None:
    rng = np.random.default_rng(5)
    steady = rng.normal(1.0, 0.1, 2000)
    transient = steady.copy()
    transient[:200] += np.linspace(5.0, 0.0, 200)
    assert 150 <= stats.mser5(transient) <= 400 and stats.mser5(transient) % 5 == 0
    assert stats.mser5(steady) <= 1000 and stats.mser5([1.0] * 10) == 0


def test_same_arrivals() -> None:
    a, b = run_of("a", np.full(10, 0.5)), run_of("b", np.full(10, 0.9))
    assert bootstrap.same_arrivals(a, b)
    assert not bootstrap.same_arrivals(a, run_of("c", np.full(11, 0.5)))


def test_no_verdict_is_cut_off_and_the_last_digit_of_a_sum_is_no_difference() -> None:
    same = Line("ttft_s.p50", 0.0171, 0.0171, 0.0, 0.0, -0.000245, 0.000227, 1, "one_seed", True, SAME)
    tiny = Line("tpot_s.p99", 0.00752, 0.00750, -0.0000193, -0.3, -0.0000802, 0.0, 1, "one_seed", True, SAME)
    for line in (same, tiny):
        text = text_line(line)
        assert text.endswith("no difference") and len(text) <= 100, text
    assert "-2.4e-04 … 2.3e-04" in text_line(same) and "-1.9e-05" in text_line(tiny)
    values = np.full(100, 0.5)
    a, b = run_of("a", values), run_of("b", values * (1 + 1e-15))
    assert compare([a, b]).line("ttft_s.p50").delta == 0.0
