"""Figures: what they say, what they draw, and that colours can be told apart."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from IPython.core.formatters import DisplayFormatter

from windtunnel import Run, Scenario, compare
from windtunnel.cockpit import figures, palette
from windtunnel.cockpit.decimate import decimate, decimate_steps
from windtunnel.cockpit.figures.spec import nice
from windtunnel.cockpit.plot import wire
from windtunnel.errors import ConfigValueError


@pytest.fixture(scope="module")
def runs() -> tuple[Run, Run]:
    scenario = Scenario.load("overload").with_({"duration_s": 40.0, "warmup_s": 0.0})
    return scenario.variant("unprotected").run(), scenario.run()


@pytest.mark.parametrize("name", sorted(figures.FIGURES))
def test_CF_6_every_figure_has_units_text_and_a_static_twin(name: str, runs: tuple[Run, Run]) -> None:
    base, run = runs
    picture = run.figure(name, baseline=base)
    spec = picture.spec
    assert spec.text.endswith(".") and spec.y_title and spec.x_title
    bundle, _ = DisplayFormatter().format(picture)  # what a notebook stores
    assert set(bundle) == {"text/plain", "image/svg+xml", "application/vnd.plotly.v1+json"}
    assert bundle["image/svg+xml"].startswith("<svg") and len(bundle["image/svg+xml"]) < 40_000
    json.dumps(bundle["application/vnd.plotly.v1+json"])
    assert spec.layout()["xaxis"]["title"]["text"] != spec.layout()["yaxis"]["title"]["text"]
    sent = wire(spec, 3)
    assert sent["rev"] == 3 and all(len(t["x"]) == len(t["y"]) <= 4 * 2000 for t in sent["traces"])


def test_CF_1_unknown_figure_names_the_known_ones(runs: tuple[Run, Run]) -> None:
    with pytest.raises(ConfigValueError, match='unknown figure "tttf"'):
        runs[0].figure("tttf")


def test_CF_5_decimation_example() -> None:
    y = np.array([0, 5, 1, 2, 9, 3, 4, 4, 8, 7], float)
    assert decimate(y, 4).tolist() == [0, 2, 4, 9]
    assert decimate(y, 6).tolist() == [0, 2, 4, 5, 8, 9]


@settings(max_examples=60, deadline=None)
@given(arrays(float, st.integers(1, 400), elements=st.floats(-1e6, 1e6) | st.just(float("nan"))), st.integers(4, 60))
def test_CF_5_decimation_keeps_extremes_and_order(y: np.ndarray, limit: int) -> None:
    keep = decimate(y, limit)
    assert len(keep) <= max(limit, len(y) if len(y) <= limit else 0)
    assert (np.diff(keep) > 0).all() and keep[0] == 0 and keep[-1] == len(y) - 1
    if not np.isnan(y).all():
        assert np.nanmin(y[keep]) == np.nanmin(y) and np.nanmax(y[keep]) == np.nanmax(y)


def test_CF_5_steps_drop_repeats_but_keep_the_last() -> None:
    x, y = np.arange(6.0), np.array([1, 1, 2, 2, 2, 2.0])
    assert decimate_steps(x, y).tolist() == [0, 2, 5]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_CF_7_lines_stand_out_from_the_ground(theme: str) -> None:
    for role in palette.ROLES:
        assert palette.contrast(palette.colour(role, theme), palette.GROUND[theme]) >= 3.0, role
    assert palette.contrast(palette.TEXT[theme], palette.GROUND[theme]) >= 4.5
    for ground, ink, _ in palette.BADGES.values():
        assert palette.contrast(ground, ink) >= 4.5


def test_nice_is_the_next_of_1_2_5() -> None:
    assert [nice(x) for x in (0.9, 1.0, 1.1, 4.0, 30.0)] == [1.0, 1.0, 2.0, 5.0, 50.0]


def test_CR_50_reports_need_no_network_and_escape_names(runs: tuple[Run, Run], tmp_path: Path) -> None:
    base, run = runs
    evil = "<img src=x onerror=alert(1)>"
    page = compare({"base": base, evil: run}).report(tmp_path / "r.html").read_text()
    page += run.report(tmp_path / "one.html").read_text()
    body = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert evil not in body and "&lt;img src=x" in body
    assert not re.search(r'(src|href)="(https?:)?//', body)
    assert "Traceback" not in body and str(tmp_path) not in body


def test_a_report_reads_like_prose(tmp_path: Path) -> None:
    calm = Scenario.load("overload").with_({"duration_s": 20.0, "warmup_s": 0.0, "source.rate_rps": 1.0, "control.admission.limit": {
        "kind": "fixed", "limit": 64}, "slo": {"interactive": {"ttft_s": 2.0, "tpot_s": 0.05}, "batch": {"e2e_s": 300}}}).run()
    text = calm.report(tmp_path / "calm.html").read_text("utf-8")
    body = text[text.index("<main>"):]
    assert "interactive: TTFT ≤ 2.00 s, TPOT ≤ 50.0 ms, batch: E2E ≤ 5 min 0 s" in body
    assert "The limit stayed at 64 requests in flight." in body and "Nobody waited." in body
    assert ".to_dict()" not in body, "a page has no Python prompt"
    assert "100.0 % of" in body and "100.0% of" not in body
    assert calm.figure("replicas").spec.layout()["yaxis"]["dtick"] == 1
    assert calm.figure("latency_cdf").spec.layout()["xaxis"]["dtick"] in ("D2", 1)


def test_what_serves_in_seconds_has_no_time_per_token(tmp_path: Path) -> None:
    run = Scenario.load("planner-step").with_({"duration_s": 30.0, "warmup_s": 0.0}).run()
    body = run.report(tmp_path / "x.html").read_text("utf-8").partition("<main>")[2]
    assert "TTFT" in body and "TPOT" not in body and "tpot_s" not in run._repr_html_()


def test_a_difference_without_an_interval_is_called_that_everywhere() -> None:
    base = Scenario.load("overload").with_({"duration_s": 20.0, "warmup_s": 0.0, "source.rate_rps": 5.0})
    found = compare({"two": base, "three": base.with_({"fleet.pools.chat.replicas": 3})}, replications=1)
    assert found.line("gpu_hours").delta_pct == pytest.approx(50, abs=2)
    assert "no interval" in found.table_html() and "no interval" in repr(found)
    assert "; three costs " in found.winner and "% more GPU-hours" in found.winner


def test_figures_and_summary_agree_on_what_is_left_out(tmp_path: Path) -> None:
    run = Scenario.load("overload").with_({"duration_s": 40.0, "warmup_s": 10.0, "cooldown_s": 5.0}).run()
    values = run.summary().values
    for name, told in (("goodput", f"{100 * values['good_fraction']:.1f} % of all"), ("load", f"{values['offered']:,} requests offered")):
        assert run.figure(name).spec.text.startswith(told), name
    assert f"TTFT p50 {1e3 * run.metric('ttft_s.p50'):.0f} ms" in run.figure("ttft").spec.text
    flood = Scenario.load("tenant-flood").with_({"duration_s": 15.0, "warmup_s": 5.0}).run()
    by = flood.summary(by="tenant").by
    assert by is not None
    told = flood.figure("tenants").spec.text
    assert all(f"{row.tenant}: {100 * row.good_fraction:.1f} % of {row.offered:,} good" in told for row in by.itertuples()), told
    assert flood.figure("replicas").spec.text == "1 replica ready throughout."
    labels = [a["text"] for a in run.figure("load").spec.layout()["annotations"]]
    assert labels == ["warm-up", "cool-down"]
    bands = run.figure("load").spec.bands
    assert bands[0][:2] == (0.0, pytest.approx(10, abs=0.5)) and bands[1][0] == pytest.approx(35, abs=0.5)
    assert "warm-up to 10 s and the last 5 s" in run.report(tmp_path / "x.html").read_text("utf-8")
    assert Scenario.load("overload").with_({"duration_s": 5.0, "warmup_s": 0.0}).run().figure("load").spec.bands == ()


def test_a_report_of_a_stopped_run_says_so_first(tmp_path: Path) -> None:
    flight = Scenario.load("overload").with_({"duration_s": 4000.0}).start()
    flight.advance(0.05)
    flight.cancel()
    body = flight.result().report(tmp_path / "x.html").read_text("utf-8").partition("<main>")[2]
    assert "This run was stopped at" in body and " of 4000 s: the numbers are of what had happened by then." in body
    whole = Scenario.load("overload").with_({"duration_s": 5.0, "warmup_s": 0.0}).run()
    assert "was stopped" not in whole.report(tmp_path / "y.html").read_text("utf-8").partition("<main>")[2]
