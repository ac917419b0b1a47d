"""The planner's picture, its part of the report, and runs side by side."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import plotly.io as pio
import pytest
from IPython.core.formatters import DisplayFormatter
from planner_flight import BLOCK, SWING, flight, pair, swing

from windtunnel import Run, Scenario
from windtunnel.cockpit.figures.planner import planner_timeline, sentences
from windtunnel.cockpit.figures.planner_data import forecasts_of, ideal_fleet, pool_series
from windtunnel.cockpit.figures.planner_rows import BLIND, COMING, NEEDED, STATES, STEADY, STOPPED, _few, bounds_of_pool, rows_of, state_of
from windtunnel.cockpit.planner_report import planner_section
from windtunnel.errors import ConfigError, ConfigValueError, RunNotRecordedError
from windtunnel.lab.capacity import perfect_gpu_hours
from windtunnel.lab.planner_explain import timeline
from windtunnel.lab.planner_log import PlannerLog
from windtunnel.lab.planner_score import capacity_of, moves_of, planner_score, planner_table
from windtunnel.lab.planner_words import LOAD, PLAN, RATE, THROUGHPUT


@pytest.fixture(scope="module")
def fixed() -> Run:
    return Scenario.load(SWING).run()


@pytest.fixture(scope="module")
def rate() -> Run:
    return Scenario.load("burst-diurnal").with_({"duration_s": 400.0, "warmup_s": 0.0, "record": "decisions", "expect": [], "compare": {}}).run()


def test_PL_804_rows_of_a_pipeline_planner() -> None:
    run, _ = swing()
    rows = rows_of(run, "light")
    assert [row.title for row in rows] == ["Demand and forecast, made 15 s ahead", "Forecast error (demand − forecast)", "Replicas: agg",
                                           "TTFT by window of arrival", "TPOT by window of arrival", "Why (hover)"]
    names = [[t["name"] for t in row.traces if t.get("showlegend", True)] for row in rows]
    assert names[0] == ["80 % band of its errors", "demand", "forecast for then", "what ready replicas can serve"]
    assert names[2] == ["ready", "starting", "planned", "perfect fleet"] and names[3] == ["p50", "p99"]
    assert rows[2].lines == [(1.0, "floor 1"), (8.0, "ceiling 8"), (4.0, "budget of 4 GPUs")]
    assert [row.lines for row in rows[3:5]] == [[(1.0, "SLO 1 s")], [(0.05, "SLO 0.05 s")]]
    for row in rows:
        for t in row.traces:
            assert len(t["x"]) == len(t["y"]) > 0


def test_PL_804_forecasts_are_drawn_where_they_were_for() -> None:
    run, _ = swing()
    log = run.planner
    f = forecasts_of(run, log)
    made = [t for t in log.ticks if t["forecast"].get("rps") is not None]
    assert len(f.at) == len(made) and f.at[0] == made[0]["tick_at"] + made[0]["forecast"]["horizon_s"] - made[0]["forecast"]["window_s"] / 2
    arrived = run.requests["arrived_s"].to_numpy()
    end = made[0]["tick_at"] + made[0]["forecast"]["horizon_s"]
    came = int(((arrived > end - 10.0) & (arrived <= end)).sum()) / 10.0
    assert f.error[0] == pytest.approx(came - made[0]["forecast"]["rps"])
    assert len(f.error) < len(f.at) and f.error_at.max() < 300.0  # the last ones were for after the run
    assert (f.low <= f.high).all() and (f.low >= 0).all()
    inside = np.mean((f.error >= np.quantile(f.error, 0.1)) & (f.error <= np.quantile(f.error, 0.9)))
    assert 0.7 < inside < 0.9


def test_PL_804_counts_are_those_of_the_ticks() -> None:
    run, _ = swing()
    seen = pool_series(run.planner, run).pools["agg"]
    rows = [t["components"]["agg"] for t in run.planner.ticks]
    assert seen.planned[:60].tolist() == [r["planned"] for r in rows] and seen.ready[:60].tolist() == [r["ready"] for r in rows]
    assert seen.at[0] == 5.0 and seen.at[-1] == pytest.approx(run.tables.end_s)
    few = seen.changes()
    assert len(few.at) < 25 and few.at[-1] == seen.at[-1]
    back = np.searchsorted(few.at, seen.at, side="right") - 1
    assert (few.planned[back] == seen.planned).all() and (few.ready[back] == seen.ready).all() and (few.starting[back] == seen.starting).all()


def test_perfect_fleet_of_the_picture_follows_the_demand() -> None:
    run, _ = swing()
    at, need = ideal_fleet(run, run.planner, "agg")  # type: ignore[misc]
    assert at[0] == 0.0 and at[-1] == run.tables.end_s and need.min() >= 1 and need.max() >= 2


def test_PL_804_the_strip_covers_every_tick_with_its_reason() -> None:
    run, _ = swing()
    strip = rows_of(run, "light")[-1]
    bars = sorted((b, b + x, text) for t in strip.traces for b, x, text in zip(t["base"], t["x"], t["text"], strict=True))
    assert bars[0][0] == 5.0 and all(a[1] == pytest.approx(b[0]) for a, b in pairwise(bars))
    step = next(s for s in timeline(run.planner) if s.move and s.winner == "builtin_throughput_propose")
    told = f"tick {step.first}, {step.from_s:g}–{step.from_s:g} s: <b>{step.baseline} → {step.planned}</b><br>"
    assert told + "the forecast demand needs at least so many" in "\n".join(text for *_, text in bars)
    assert {t["name"] for t in strip.traces} <= {words for *_, words in STATES.values()}


def test_CR_51_a_long_run_is_drawn_with_few_bars() -> None:
    log = swing()[0].planner
    ticks = tuple({**t, "tick": t["tick"] + 60 * i, "now": t["now"] + 300.0 * i, "tick_at": t["tick_at"] + 300.0 * i}
                  for i in range(150) for t in log.ticks)
    long = PlannerLog(log.name, log.kind, log.settings, (), ticks)
    stretches = timeline(long)
    few = _few(stretches)
    assert len(stretches) > 2000 and len(few) < len(stretches)
    assert all(n <= 2000 for n in Counter(map(state_of, few)).values())
    assert sum(s.last - s.first + 1 for s in few) == sum(s.last - s.first + 1 for s in stretches) == 9000
    assert sum(s.move for s in few) == sum(s.move for s in stretches)
    assert len(pool_series(long).pools["agg"].changes().at) < 150 * 25


def test_every_reason_belongs_to_one_state() -> None:
    groups = (COMING, BLIND, STOPPED, STEADY, NEEDED)
    known = {*PLAN, *LOAD, *THROUGHPUT, *RATE}
    for i, group in enumerate(groups):
        assert group <= known
        assert not any(group & other for other in groups[i + 1:])


def test_states_of_stretches() -> None:
    found = {state_of(s) for s in timeline(swing()[0].planner)}
    assert {"up", "down", "steady", "coming", "kept", "needed"} <= found


def test_the_figure_is_a_notebook_value_in_both_themes() -> None:
    run, _ = swing()
    figure = run.figure("planner")
    bundle, _ = DisplayFormatter().format(figure)  # what a notebook stores
    assert set(bundle) == {"text/plain", "application/vnd.plotly.v1+json"} and figure._repr_html_ is None
    assert bundle["text/plain"] == sentences(run) == repr(planner_timeline(run, "dark"))
    score = planner_score(run)
    assert f"swing: 60 ticks of a pipeline planner, {score.ups} steps up, {score.downs} down; it turned back" in bundle["text/plain"]
    dark = planner_timeline(run, "dark").layout
    assert dark.paper_bgcolor == "#111418" and figure.layout.paper_bgcolor == "#FFFFFF"
    domains = [figure.layout[k]["domain"] for k in ("yaxis", "yaxis2", "yaxis3", "yaxis4", "yaxis5", "yaxis6")]
    assert all(a[0] > b[1] for a, b in pairwise(domains)) and domains[0][1] == 1.0 and domains[-1][0] == pytest.approx(0.0, abs=1e-9)
    json.dumps(bundle["application/vnd.plotly.v1+json"], allow_nan=False)


def test_a_rate_planner_has_its_picture_too(rate: Run) -> None:
    titles = [row.title for row in rows_of(rate, "light")]
    assert titles == ["Demand", "Replicas: chat", "TTFT by window of arrival", "E2E by window of arrival", "Why (hover)"]
    assert bounds_of_pool(rate.planner, "chat") == [(2.0, "floor 2"), (16.0, "ceiling 16")]
    assert "rate planner" in sentences(rate)


def test_PL_804_two_pools_share_a_row_of_gpus_with_the_budget() -> None:
    run, _ = pair()
    rows = rows_of(run, "light")
    assert [row.title for row in rows][2:5] == ["Replicas: prefill", "Replicas: decode", "GPUs of all pools"]
    assert rows[4].lines == [(6.0, "budget 6 GPUs")] and [t["name"] for t in rows[4].traces] == ["prefill", "decode"]
    assert rows[2].lines == [(1.0, "floor 1"), (8.0, "ceiling 8")] and len(rows[-1].traces[0]["y"]) > 0
    assert {pool for t in rows[-1].traces for pool in t["y"]} == {"prefill", "decode"}
    score = planner_score(run)
    each = [perfect_gpu_hours(run.requests["arrived_s"], rps, until_s=run.tables.end_s, window_s=60.0) for rps in score.capacity_rps.values()]
    assert len(each) == 2 and score.perfect_gpu_hours == pytest.approx(sum(each))


def test_without_a_planner_the_figure_says_so(fixed: Run) -> None:
    with pytest.raises(RunNotRecordedError, match="need record: decisions"):
        fixed.figure("planner")
    with pytest.raises(ConfigValueError, match="planner"):
        fixed.figure("plannr")


# -- report ---------------------------------------------------------------------------------------------------------------------------------


def test_PL_804_the_report_has_a_part_for_the_planner(tmp_path: Path) -> None:
    run, _ = swing()
    text = run.report(tmp_path / "r.html").read_text()
    assert "<h2>Planner</h2>" in text and "ticks by reason" in text and "clamps, conflicts and failures" in text and "perfect fleet" in text
    assert run.report(tmp_path / "p.html", planner=True).read_text().count("<h2>Planner</h2>") == 1
    assert "<h2>Planner</h2>" not in run.report(tmp_path / "n.html", planner=False).read_text()
    without_plotly = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.search(r"(?:src|href)=\"https?:", without_plotly)
    [payload] = re.findall(r'data-for="planner-[0-9a-f]{8}">(.*?)</script>', text, re.S)
    traces, layout = json.loads(payload.replace("<\\/", "</"))
    assert {t["yaxis"] for t in traces} == {"y", "y2", "y3", "y4", "y5", "y6"}
    assert layout["autosize"] and "_y" not in layout


def test_PL_804_runs_without_a_planner_have_no_such_part(fixed: Run, tmp_path: Path) -> None:
    assert "<h2>Planner</h2>" not in fixed.report(tmp_path / "r.html").read_text()
    with pytest.raises(RunNotRecordedError):
        fixed.report(tmp_path / "p.html", planner=True)
    recorded = Scenario.load(SWING).with_({"record": "decisions", "duration_s": 5.0}).run()
    with pytest.raises(ConfigError, match="no planner ran"):
        recorded.report(tmp_path / "p.html", planner=True)


def test_the_tables_count_every_tick_and_every_clamp() -> None:
    run, _ = swing()
    log = run.planner
    html = planner_section(run)
    rows = re.findall(r"<td>agg</td><td>(\d+)</td>", html.partition("clamps, conflicts")[0])
    assert sum(map(int, rows)) == len(log.ticks)
    clamped = sum(e.kind == "clamped" for e in log.entries)
    assert sum(map(int, re.findall(r"<td>clamp</td><td>\w+</td><td>agg</td><td>[^<]*</td><td>(\d+)</td>", html))) == clamped > 0


def test_CR_31_names_and_reasons_from_outside_are_text() -> None:
    from windtunnel.policy.planning.contract import Reject, Stage, StageResponse
    from windtunnel.policy.planning.plugin import Attached, Registration
    from windtunnel.policy.planning.shell import PipelinePlanner

    class Nasty:
        def constrain(self, request: object) -> StageResponse:
            return StageResponse(Reject("<img src=x onerror=alert(1)>"))

    def attach(planner: PipelinePlanner) -> None:
        planner._attach(Attached(Registration("nasty", Stage.CONSTRAIN), Nasty()))

    run, _ = flight(duration_s=20.0, more=attach)
    html = planner_section(run)
    assert "<img" not in html and "&lt;img src=x onerror=alert(1)&gt;" in html


# -- score -----------------------------------------------------------------------------------------------------------------------------------


def test_PL_804_regret_is_gpu_hours_over_the_perfect_fleet() -> None:
    run, _ = swing()
    score = planner_score(run)
    capacity = capacity_of(run.planner, None)["agg"]
    perfect = perfect_gpu_hours(run.requests["arrived_s"], capacity, until_s=run.tables.end_s, window_s=60.0)
    assert score.perfect_gpu_hours == perfect > 0 and score.regret_gpu_hours == pytest.approx(run.metric("gpu_hours") - perfect)
    assert score.regret_share == pytest.approx(score.regret_gpu_hours / perfect)
    assert planner_score(run, 1.0).perfect_gpu_hours > perfect


def test_PL_804_flaps_are_turns_within_ten_minutes() -> None:
    run, _ = swing()
    score = planner_score(run)
    steps = [step for _, step in moves_of(run.planner)["agg"]]
    turns = sum((a > 0) != (b > 0) for a, b in pairwise(steps))
    assert score.flaps == turns == run.metric("scale_reversals") > 0
    assert (score.ups, score.downs) == (sum(s > 0 for s in steps), sum(s < 0 for s in steps))
    assert 2 + sum(steps) == run.planner.ticks[-1]["components"]["agg"]["planned"]


def test_advice_is_no_move() -> None:
    run, _ = flight({**BLOCK, "advisory": True}, duration_s=200.0)
    assert moves_of(run.planner) == {"agg": []} and planner_score(run).flaps == 0


def test_runs_side_by_side_share_one_perfect_fleet(fixed: Run) -> None:
    run, _ = swing()
    table = planner_table({"fixed": fixed, "planned": run})
    assert table.index.tolist() == ["fixed", "planned"] and table["perfect_gpu_hours"].nunique() == 1
    assert table.loc["fixed", "gpu_hours"] == fixed.metric("gpu_hours") and table["flaps"].tolist() == [0, planner_score(run).flaps]
    assert table["ups"].isna().tolist() == [True, False]
    mixed = planner_table({"planned": run, "pair": pair()[0]})  # other pools, another perfect fleet
    assert mixed["perfect_gpu_hours"].tolist() == [planner_score(run).perfect_gpu_hours, planner_score(pair()[0]).perfect_gpu_hours]
    assert planner_table([run]).index.tolist() == ["swing"] and planner_table([run, run]).index.tolist() == ["1: swing", "2: swing"]
    assert planner_table([]).empty
    assert planner_table({"fixed": fixed})["regret_gpu_hours"].isna().all()  # nobody knows what a replica can do
    assert planner_table({"fixed": fixed}, 10.0)["regret_gpu_hours"].notna().all()


def test_an_exported_page_shows_the_figure_with_the_renderer_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = swing()[0].figure("planner")
    for chosen, kinds in (("plotly_mimetype", set()), ("notebook", {"text/html"})):
        monkeypatch.setattr(pio.renderers, "_default_name", chosen)
        monkeypatch.setattr(pio.renderers, "_default_renderers", [pio.renderers[chosen]])
        bundle, _ = DisplayFormatter().format(figure)
        assert set(bundle) == {"text/plain", "application/vnd.plotly.v1+json"} | kinds
