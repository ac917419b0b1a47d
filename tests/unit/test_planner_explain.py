"""What a planner did, in words: logs from every place, folding, the story of a tick, and a word for every reason."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from planner_flight import BLOCK, PAIR, PAIR_BLOCK, SWING, flight, pair, short, swing
from test_planner_shell import Says, World, base, says

from windtunnel import Scenario
from windtunnel.errors import ConfigError, ConfigValueError, RunCorruptError, RunNotRecordedError, RunVersionError
from windtunnel.lab import planner_log as logs
from windtunnel.lab.planner_explain import timeline, timeline_text
from windtunnel.lab.planner_log import PlannerLog, planner_log
from windtunnel.lab.planner_tick import tick_text
from windtunnel.lab.planner_why import reasons_of, sentence
from windtunnel.lab.planner_words import ACTIONS, FAILED, LOAD, PLAN, RATE, SKIPPED, THROUGHPUT, in_words
from windtunnel.policy.planning.calls import CallError
from windtunnel.policy.planning.contract import Reject, StageResponse
from windtunnel.policy.planning.reasons import LoadReason, PlanReason, ThroughputReason
from windtunnel.policy.planning.settings_blocks import BudgetSettings, PoolSettings
from windtunnel.policy.planning.tick import WHY_SKIPPED
from windtunnel.policy.planning.tick_outcome import Action

RATE_RUN = {"duration_s": 300.0, "warmup_s": 0.0, "record": "decisions", "expect": [], "compare": {}}


def of_world(world: World) -> PlannerLog:
    """The log of a planner that flew without a simulator."""
    notes = [n for n in world.notes if n.stream == "planner"]
    return logs._made("world", iter([logs._entry(i, 0.0, n.kind, n.ids, dict(n.data or {})) for i, n in enumerate(notes, 1)]))


def test_every_place_gives_the_same_log(tmp_path: Path) -> None:
    run, _ = short()
    where = run.save(tmp_path / "run")
    audit = run.planner_audit(tmp_path / "audit.jsonl")
    assert len(run.planner.ticks) == 20 and run.planner.pools == ("agg",) and run.planner.settings["budget"]["max_gpus"] == 4
    for place in (where, where / "log.jsonl", audit, str(audit)):
        found = planner_log(place)
        assert found.entries == run.planner.entries and found.ticks == run.planner.ticks and found.settings == run.planner.settings


def test_logs_of_both_record_levels_are_equal_and_requests_keeps_none() -> None:
    assert short("full")[0].planner.entries == short("decisions")[0].planner.entries
    few, _ = flight(level="requests", duration_s=20.0)
    with pytest.raises(RunNotRecordedError, match='need record: decisions; this run has "requests"'):
        _ = few.planner


def test_a_scenario_with_a_pipeline_planner_is_explained() -> None:
    control = "control: {planner: {kind: pipeline, throughput: {enabled: true, interval_s: 10}, load: {enabled: true, interval_s: 5}}}\n"
    run = Scenario.load(SWING + control).with_({"record": "decisions", "duration_s": 200.0}).run()
    log = run.planner
    assert log.kind == "pipeline" and len(log.ticks) == 40 and any(s.move for s in timeline(log))
    assert run.metric("scale_reversals") is not None and set(run.plans["pool"]) == set(log.pools)
    assert log.settings["resolved"]["scale_interval_s"] == 5.0 and log.settings["slo"]["ttft_ms"] == 1000.0


def test_a_run_without_a_planner_says_so() -> None:
    run = Scenario.load("overload").with_({"duration_s": 5.0, "warmup_s": 0.0, "record": "full", "expect": [], "compare": {}}).run()
    with pytest.raises(ConfigError, match="overload: no planner ran"):
        _ = run.planner


@pytest.mark.parametrize(("text", "error", "said"), [
    ("", RunCorruptError, "first line"), ("[1]\n", RunCorruptError, "first line"), ('{"v":9,"kind":"header"}\n', RunVersionError, "format 9"),
    ('{"v":1,"kind":"header"}\nnope\n', RunCorruptError, "not a record of a planner"),
    ('{"v":1,"kind":"header"}\n{"seq":1}\n', RunCorruptError, "not a record of a planner"),
    ('{"v":1,"kind":"header"}\n[]\n', RunCorruptError, "not a record of a planner"),
    ('{"v":1,"kind":"header"}\n', ConfigError, "no planner ran"), ('{"x":1}\n', RunCorruptError, "no header")])
def test_damaged_files_are_named(tmp_path: Path, text: str, error: type[Exception], said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(error, match=said):
        planner_log(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunCorruptError, match=r"gone\.jsonl: cannot be read"):
        planner_log(tmp_path / "gone.jsonl")


def test_equal_ticks_are_folded_and_moves_are_not() -> None:
    log = swing()[0].planner
    stretches = timeline(log)
    assert [s.first for s in stretches[1:]] == [s.last + 1 for s in stretches[:-1]] and stretches[-1].last == 60  # no tick is lost
    assert len(stretches) < 30
    moves = [s for s in stretches if s.move]
    assert all(s.first == s.last and s.planned != s.baseline for s in moves) and len(moves) >= 4
    assert all(a.key != b.key for a, b in pairwise(stretches) if not (a.move or b.move))
    told = {(m.baseline, m.planned) for m in moves}
    rows = [t["components"]["agg"] for t in log.ticks]
    assert told == {(r["baseline"], r["planned"]) for r in rows if r["baseline"] != r["planned"]}


def test_folded_ranges_hold_every_value() -> None:
    log = swing()[0].planner
    for s in timeline(log):
        part = [t for t in log.ticks if s.first <= t["tick"] <= s.last]
        demand = [t["observed"]["rps"] for t in part if "rps" in t["observed"]]
        assert s.demand_rps == (min(demand), max(demand))
        assert s.from_s == part[0]["now"] and s.to_s == part[-1]["now"]


def test_since_until_and_pool() -> None:
    log = swing()[0].planner
    part = timeline(log, since_s=100.0, until_s=150.0)
    assert (part[0].first, part[-1].last) == (20, 30)
    assert timeline(log, since_s=1e9) == [] and "no tick in this part" in timeline_text(log, [])
    assert timeline(log, since_s=float("nan")) == []
    with pytest.raises(ConfigValueError, match='sizes no pool "chat"; pools: agg'):
        timeline(log, pool="chat")


def test_the_table_has_a_line_per_stretch_and_says_why() -> None:
    log = swing()[0].planner
    text = timeline_text(log, timeline(log))
    ups, downs = (sum((s.planned > s.baseline) is up for s in timeline(log) if s.move) for up in (True, False))
    assert ups and downs and text.splitlines()[0] == f"swing: pipeline planner, 60 ticks, {ups} up, {downs} down"
    assert len(text.splitlines()) == len(timeline(log)) + 2
    assert "→" in text and "the forecast demand needs at least so many (floor of throughput_propose)" in text
    assert "pool" not in text.splitlines()[1] and max(map(len, text.splitlines())) < 160


def test_two_pools_get_a_column_and_lines_of_their_own() -> None:
    settings = base(mode="disagg", pools={"prefill": PoolSettings(), "decode": PoolSettings()}, budget=BudgetSettings(max_gpus=8))
    world = World(Says(says("prefill=3 decode=5")), ready=4, settings=settings)
    world.run(40.0)
    log = of_world(world)
    text = timeline_text(log, timeline(log))
    assert text.splitlines()[1].split() == ["tick", "time,", "s", "pool", "demand/s", "ready", "plan", "why"]
    assert [s.pool for s in timeline(log)][:2] == ["prefill", "decode"] and {s.pool for s in timeline(log, pool="decode")} == {"decode"}
    assert "4 → 5" in text and "a asked for it" in text


def test_prefill_and_decode_are_told_apart() -> None:
    log = pair()[0].planner
    assert log.pools == ("prefill", "decode")
    for pool in log.pools:
        own = timeline(log, pool=pool)
        assert [s.first for s in own[1:]] == [s.last + 1 for s in own[:-1]] and own[-1].last == 60
    assert {s.pool for s in timeline(log) if s.move} == {"prefill", "decode"}
    assert "pools" in tick_text(log, 20) and "decode: hold" in tick_text(log, 20) and "decode: hold" not in tick_text(log, 20, "prefill")


def test_one_tick_tells_the_whole_chain() -> None:
    log = swing()[0].planner
    step = next(s for s in timeline(log) if s.move and s.winner == "builtin_throughput_propose")
    tick = log.ticks[step.first - 1]
    text = tick_text(log, step.first)
    assert text.startswith(f"tick {step.first} of swing at {tick['tick_at']:g} s: planned")
    for part in ("seen ", f"demand {tick['observed']['rps']:.1f} requests/s", "KV tokens wait in the engines", "pools ",
                 f"{step.ready} ready, 0 starting",
                 "forecast ", "in 15.0 s, by builtin_load_predict", "sizing ", f"→ {tick['capacity']['agg']['needed']} replicas",
                 f'builtin_throughput_propose: agg>={step.planned} "agg: set_lower_bound"', "builtin_load_propose: ",
                 f"→ agg {step.planned}, wanted ", ": floor of builtin_throughput_propose", "builtin_budget_constrain: agg>=1 agg<=4",
                 f"result     agg: {step.baseline} → {step.planned}: the forecast demand needs at least so many"):
        assert part in text, part
    order = [text.index(f"  {head} ") for head in ("seen", "pools", "forecast", "sizing", "predict", "propose", "constrain", "result")]
    assert order == sorted(order)


def test_a_tick_that_never_was_names_those_that_were() -> None:
    with pytest.raises(ConfigValueError, match="no tick 61 in swing; it has ticks 1 to 60"):
        tick_text(swing()[0].planner, 61)


def test_held_over_failed_and_rejected_are_told() -> None:
    log = swing()[0].planner
    held = next(t["tick"] for t in log.ticks if t["held_over"])
    assert "(its last answer, held over)" in tick_text(log, held)
    world = World(Says(StageResponse(Reject("freeze until noon"))))
    world.run(5.0)
    text = tick_text(of_world(world), 1)
    assert "stopped by a plugin, a: freeze until noon" in text and 'a: reject "freeze until noon"' in text
    assert "hold 3: a plugin rejected the tick" in text
    failing = World(Says(RuntimeError("boom")))
    failing.run(5.0)
    assert "a: raised an error" in tick_text(of_world(failing), 1)


def test_an_unknown_count_is_told_as_unknown() -> None:
    world = World(Says(says("agg>2")), ready=0)
    world.run(5.0)
    text = timeline_text(of_world(world), timeline(of_world(world)))
    assert "hold ?" in text and "nobody knows how many replicas there are" in text
    assert "? ready" in tick_text(of_world(world), 1)


def test_advice_is_told_as_advice() -> None:
    world = World(Says(says("agg=6")), settings=base(advisory=True))
    world.run(10.0)
    stretches = timeline(of_world(world))
    assert all("would order, but the planner only advises" in s.why for s in stretches)


def test_a_rate_planner_is_explained_too() -> None:
    run = Scenario.load("burst-diurnal").with_(RATE_RUN).run()
    log = run.planner
    assert log.kind == "rate" and len(log.ticks) == 30 and log.pools == ("chat",) and log.settings["capacity_rps"] == 4.0
    text = timeline_text(log, timeline(log))
    assert "rate planner, 30 ticks" in text and "forecast/s" not in text and "fewer have been enough for long" in text
    assert "one replica serves 4.00 requests/s" in tick_text(log, 3)
    plans = run.plans
    assert len(plans) == 30 and set(plans["pool"]) == {"chat"} and plans["planned"].notna().all()
    moves = [(s.baseline, s.planned) for s in timeline(log) if s.move]
    scaled = run.decisions.query("effect == 'ScaleTo'")["value"].astype(int).tolist()
    assert [planned for _, planned in moves] == scaled


def test_CR_11_plans_have_a_row_per_pool_and_tick() -> None:
    run, _ = swing()
    plans = run.plans
    assert len(plans) == 60 and plans["tick"].tolist() == list(range(1, 61)) and set(plans["pool"]) == {"agg"}
    assert {"baseline", "proposed", "reconciled", "constrained", "planned", "load_reason", "throughput_reason", "plan_reasons", "winner",
            "clamps"} <= set(plans)
    rows = run.decisions.query("effect == 'plan'")
    assert rows["value"].tolist() == plans["planned"].tolist() and set(rows["policy"]) == {"planner"}
    assert len(flight(level="decisions", duration_s=4.0)[0].plans) == 0


@pytest.mark.parametrize(("words", "table"), [(PlanReason, PLAN), (LoadReason, LOAD), (ThroughputReason, THROUGHPUT)])
def test_PL_317_every_reason_has_words(words: type, table: dict[str, str]) -> None:
    assert {word.value for word in words} <= set(table) | {"unchanged"} and all(table.values())


def test_every_way_to_fail_or_to_be_skipped_has_words() -> None:
    from typing import get_args, get_type_hints

    assert set(get_args(Action)) == set(ACTIONS)
    assert set(get_args(get_type_hints(CallError)["kind"])) == set(FAILED)
    assert {*WHY_SKIPPED.values(), "back_off"} == set(SKIPPED)
    source = (Path(logs.__file__).parents[1] / "policy" / "planning" / "rate.py").read_text()
    import re

    said = {w for call in re.findall(r"(?:_hold|_order)\((.*)\)", source) for w in re.findall(r'"([a-z_]+)"', call)}
    said |= {w for line in source.splitlines() if "return" in line or "reason =" in line for w in re.findall(r'"([a-z_]{6,})"', line)}
    assert {w for w in said if w not in ("planner", "capacity_rps")} - set(RATE) == set()


def test_words_that_nobody_knows_stand_for_themselves() -> None:
    assert in_words(["cooldown", "new_word", "cooldown", ""]) == "too soon after the last move; new word"


def test_reasons_are_never_empty() -> None:
    row = {"baseline": 3, "planned": 3, "winner": "", "clamps": [], "plan_reasons": ["unchanged"], "load_reason": "disabled",
           "throughput_reason": "unset"}
    assert reasons_of(row) == (("plan", "unchanged"),) and sentence(row) == "nobody asks for another count"
    assert reasons_of({**row, "plan_reasons": ["merge_floor", "cooldown"]}) == (("plan", "cooldown"),)
    assert reasons_of({**row, "plan_reasons": ["merge_floor"]}) == (("plan", "merge_floor"),)
    assert reasons_of({**row, "planned": 4, "winner": "x"}) == (("plugin", "x"),)


# -- audit ----------------------------------------------------------------------------------------------------------------------------------


def test_PL_803_the_audit_of_equal_scenarios_is_byte_identical_after_the_start(tmp_path: Path) -> None:
    a, b = flight(duration_s=60.0)[0], flight(duration_s=60.0)[0]
    one, two = a.planner_audit(tmp_path / "a" / "1.jsonl"), b.planner_audit(tmp_path / "2.jsonl")
    assert one.read_bytes().split(b"\n", 1)[1] == two.read_bytes().split(b"\n", 1)[1]
    assert json.loads(one.read_text().splitlines()[0])["started_at"] == a.meta.started_at
    a.planner_audit(one, started_at="2026-01-01T00:00:00Z")
    b.planner_audit(two, started_at="2026-01-01T00:00:00Z")
    assert one.read_bytes() == two.read_bytes()


def test_PL_803_lines_are_records_with_sorted_keys(tmp_path: Path) -> None:
    path = short()[0].planner_audit(tmp_path / "a.jsonl")
    head, *rest = path.read_text().splitlines()
    header = json.loads(head)
    assert set(header) == {"v", "kind", "planner", "run_id", "settings_sha256", "started_at"} and len(header["settings_sha256"]) == 64
    items = [json.loads(line) for line in rest]
    assert all(list(item) == sorted(item) and {"v", "seq", "t", "tick", "kind"} <= set(item) for item in items)
    assert [item["seq"] for item in items] == list(range(1, len(items) + 1))
    kinds = {item["kind"] for item in items}
    assert {"settings", "registered", "tick_started", "pulled", "plugin_answered", "clamped", "plan_emitted", "plan", "forecast_scored"} <= kinds


def test_PL_803_the_digest_leaves_out_secrets_and_endpoints() -> None:
    from windtunnel.lab.planner_audit import settings_digest

    plain = {"a": 1, "plugins": [{"plugin_id": "x"}]}
    secret = {"a": 1, "token": "t", "plugins": [{"plugin_id": "x", "endpoint": "unix:/x", "auth_token": "t", "tls": {"key": "k"}}]}
    assert settings_digest(plain) == settings_digest(secret) != settings_digest({"a": 2, "plugins": [{"plugin_id": "x"}]})


def test_PL_509_forecasts_are_scored_in_the_record() -> None:
    log = swing()[0].planner
    scored = [e for e in log.entries if e.kind == "forecast_scored" and e.data["field"] == "num_req"]
    assert len(scored) >= 20 and all(set(e.data) == {"field", "error", "wape", "bias"} for e in scored)
    last = log.ticks[-1]["forecast"]["errors"]["num_req"]
    assert (scored[-1].data["error"], scored[-1].data["wape"]) == (last["last_error"], last["wape"])


# -- every hold has a reason ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [
    BLOCK,
    PAIR_BLOCK,
    {**PAIR_BLOCK, "budget": {"max_gpus": 3}, "reconcile": {"enabled": True}},
    {**BLOCK, "target": "latency", "budget": {"max_gpus": 2}},
    {**BLOCK, "target": "sla", "load": {"enabled": True, "interval_s": 5}},
    {**BLOCK, "load": {"enabled": False}},
    {**BLOCK, "throughput": {"enabled": False}, "stabilise": {"enabled": False}},
    {**BLOCK, "advisory": True},
    {**BLOCK, "budget": {"max_gpus": 8, "power_w": 1500.0}, "pools": {"agg": {**BLOCK["pools"]["agg"], "watts_per_replica": 700.0}}},
    {**BLOCK, "predictor": {"model": "holt_winters", "quantile": 0.9}, "pools": {"agg": {**BLOCK["pools"]["agg"], "min_replicas": 2}}},
], ids=["both", "pair", "tight pair", "tight", "sla", "throughput", "load", "advisory", "power", "quantile"])
def test_PL_802_every_hold_of_a_flight_has_a_reason(block: dict) -> None:
    run, _ = flight(block, duration_s=240.0, scenario=PAIR if block.get("mode") == "disagg" else SWING)
    rows = [(t["tick"], row) for t in run.planner.ticks for row in t["components"].values()]
    assert len(rows) >= 20
    for tick, row in rows:
        if row["planned"] == row["baseline"]:
            assert row["plan_reasons"] and all(row["plan_reasons"]), tick
            assert row["load_reason"] and row["throughput_reason"], tick
            blind = {("plan", "unchanged")} == set(reasons_of(row)) and block["load"].get("enabled") and row["load_reason"] != "held_over"
            assert not blind, f"tick {tick} holds {row['planned']} and says only that nothing changed: {row}"
        assert not sentence(row).startswith(";") and sentence(row)
    assert {w for _, row in rows for w in row["plan_reasons"]} <= {r.value for r in PlanReason} | {"gpu_budget_guard_hold", "gpu_budget_reconcile"}
