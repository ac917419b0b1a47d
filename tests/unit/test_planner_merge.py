"""The worked cases of the merge and of the prediction chain."""

from __future__ import annotations

import pytest

from windtunnel.policy.planning.chain import Chain, chain_augment
from windtunnel.policy.planning.contract import (
    Accept,
    ComponentTarget,
    Override,
    OverrideType,
    PredictionData,
    PredictResponse,
    Reject,
    StageResponse,
)
from windtunnel.policy.planning.merge import Ballot, Clamp, Conflict, MergeOutcome, type_aware_merge

TYPES = {">=": OverrideType.AT_LEAST, "<=": OverrideType.AT_MOST}


def target(text: str) -> ComponentTarget:
    """`p8`, `p>=3`, `p?` (no opinion)."""
    for sign, kind in TYPES.items():
        if sign in text:
            name, n = text.split(sign)
            return ComponentTarget(name, int(n), kind)
    return ComponentTarget(text[0], None if text[1:] == "?" else int(text[1:]))


def ballot(who: str, *targets: str, held: bool = False) -> Ballot:
    """`100a!` = priority 100, plugin a, final."""
    final = who.endswith("!")
    digits = "".join(c for c in who if c.isdigit())
    answer = Override(tuple(target(t) for t in targets))
    return Ballot(who.rstrip("!"), int(digits or 1), StageResponse(answer, final), held)


def accept(who: str, final: bool = False) -> Ballot:
    return Ballot(who, 1, StageResponse(Accept(), final))


def reject(who: str, reason: str, priority: int = 1) -> Ballot:
    return Ballot(who, priority, StageResponse(Reject(reason)))


def got(outcome: MergeOutcome) -> str:
    assert outcome.proposal is not None
    return " ".join(f"{t.component}{t.replicas}" for t in outcome.proposal.targets)


def kinds(outcome: MergeOutcome) -> list[str]:
    return [r[0] for r in outcome.records]


@pytest.mark.parametrize(("case", "ballots", "base", "expected"), [
    ("M1", [], {"p": 5}, "p5"),
    ("M2", [ballot("100", "p8"), ballot("50", "p10")], {"p": 5}, "p10"),
    ("M3", [ballot("100", "p4"), ballot("50", "p>=6")], {"p": 5}, "p6"),
    ("M3b", [ballot("100", "p12"), ballot("50", "p<=8")], {"p": 5}, "p8"),
    ("M4", [ballot("100", "p8", "d<=6"), ballot("50", "d10")], {"p": 5, "d": 3}, "p8 d6"),
    ("M5", [ballot("100!", "p8"), ballot("50", "p10"), ballot("30", "p<=4")], {"p": 5}, "p8"),
    ("M6", [ballot("100!", "p8"), ballot("50!", "p10")], {"p": 5}, "p10"),
    ("M6b", [ballot("100!", "p8")], {"p": 5, "d": 3}, "p8 d3"),
    ("M7", [ballot("1a", "p>=4"), ballot("1b", "p>=7")], {"p": 3}, "p7"),
    ("M7b", [ballot("1a", "p<=8"), ballot("1b", "p<=5")], {"p": 10}, "p5"),
    ("M7c", [ballot("1a", "p>=6"), ballot("1b", "p<=4")], {"p": 5}, "p6"),
    ("M11", [ballot("a!", "p>=3")], {"p": 10}, "p10"),
    ("M11b", [ballot("a!", "p<=20")], {"p": 5}, "p5"),
    ("M11c", [ballot("a!", "p-2")], {"p": 5}, "p0"),
    ("M12", [ballot("a!", "p8", "p3", "p<=6")], {"p": 5, "d": 2}, "p6 d2"),
    ("M13", [ballot("a", "p>=7"), ballot("b", "p<=3")], {"p": 5}, "p7"),
    ("M13b", [ballot("a", "p>=7"), ballot("b", "p<=3")], {"p": 10}, "p7"),
    ("M14", [ballot("a", "p<=8")], {"p": None}, "pNone"),
    ("M14b", [ballot("a", "p<=8"), ballot("b", "p12")], {"p": None}, "p8"),
    ("M15", [ballot("a", "x>=2"), ballot("b", "y<=5")], {"p": 1}, "x2 y0 p1"),
])
def test_PL_205_worked_cases(case, ballots, base, expected):
    assert got(type_aware_merge(ballots, base)) == expected


def test_PL_207_M1_passthrough_is_called_merged():
    outcome = type_aware_merge([], {"p": 5})
    assert outcome.proposal.source == "merged" and outcome.winners == {"p": ""} and not outcome.records


def test_PL_203_M5_final_ignores_the_others():
    outcome = type_aware_merge([ballot("100a!", "p8"), ballot("50b", "p10"), ballot("30c", "p<=4"), accept("d")], {"p": 5})
    assert outcome.used_final_from == outcome.proposal.source == "100a" and outcome.ignored == ("50b", "30c")
    assert "final_used" in kinds(outcome)


def test_PL_203_accept_with_final_is_not_final():
    assert got(type_aware_merge([accept("a", final=True), ballot("b", "p9")], {"p": 5})) == "p9"


def test_PL_202_M8_reject_beats_final_whatever_the_priorities():
    outcome = type_aware_merge([ballot("10!", "p8"), reject("p100", "veto", 100)], {"p": 5})
    assert (outcome.proposal, outcome.short_circuit_reason, outcome.used_final_from, outcome.rejected_by) == (None, "p100: veto", "", ("p100",))
    assert outcome.clamped == outcome.conflicts == outcome.set_dropped == outcome.ignored == ()
    both = type_aware_merge([reject("a", "x", 9), ballot("c", "p1"), reject("b", "y", 1)], {"p": 5})
    assert both.short_circuit_reason == "a: x" and both.rejected_by == ("a", "b")


def test_PL_204_M9_a_stage_of_bounds_drops_sets():
    outcome = type_aware_merge([ballot("a", "p12", "d<=6"), ballot("b", "d10")], {"p": 3, "d": 2}, set_allowed=False)
    assert {t.component: t.replicas for t in outcome.proposal.targets} == {"p": 3, "d": 2}
    assert [d.component for d in outcome.set_dropped] == ["p", "d"]
    twice = type_aware_merge([ballot("a", "p12", "p13")], {"p": 5}, set_allowed=False)
    assert got(twice) == "p5" and [d.component for d in twice.set_dropped] == ["p", "p"]


def test_PL_204_no_opinion_is_skipped_before_anything_else():
    outcome = type_aware_merge([ballot("a!", "x?", "p?")], {"p": 5}, set_allowed=False)
    assert got(outcome) == "p5" and outcome.set_dropped == ()


def test_PL_208_M10_clamps_name_the_owner_of_the_bound():
    outcome = type_aware_merge([ballot("1s", "p1"), ballot("1a", "p>=2"), ballot("1b", "p>=7"), ballot("1c", "p>=4")], {"p": 0})
    assert got(outcome) == "p7" and outcome.clamped == (Clamp("p", "floor", "1b"),) and outcome.winners == {"p": "1b"}
    outcome = type_aware_merge([ballot("1s", "p10"), ballot("1a", "p<=8"), ballot("1b", "p<=4")], {"p": 0})
    assert got(outcome) == "p4" and outcome.clamped == (Clamp("p", "ceiling", "1b"),)
    outcome = type_aware_merge([ballot("1s", "p4"), ballot("1a", "p>=2"), ballot("1b", "p<=6")], {"p": 0})
    assert got(outcome) == "p4" and outcome.clamped == ()


def test_PL_208_equal_bounds_belong_to_the_first():
    outcome = type_aware_merge([ballot("1a", "p>=7"), ballot("1b", "p>=7")], {"p": 5})
    assert outcome.clamped == (Clamp("p", "floor", "1a"),)
    outcome = type_aware_merge([ballot("1a", "p<=0"), ballot("1b", "p<=0")], {"p": 5})
    assert outcome.clamped == (Clamp("p", "ceiling", "1a"),)


def test_PL_207_M11_negative_counts_as_zero():
    outcome = type_aware_merge([ballot("a!", "p-2")], {"p": 5})
    assert "negative_clamped" in kinds(outcome) and got(outcome) == "p0"


def test_PL_208_M12_and_ties_inside_one_plugin():
    outcome = type_aware_merge([ballot("a!", "p8", "p3", "p<=6")], {"p": 5, "d": 2})
    assert outcome.clamped == (Clamp("p", "ceiling", "a"),)
    [tie] = [r for r in outcome.records if r[0] == "tie_broken"]
    assert tie[1] == "a" and tie[3] == {"loser": "a", "value": 8, "other": 3, "rule": "first_in_answer"}


def test_PL_208_M13_a_conflict_is_never_silent():
    low = type_aware_merge([ballot("a", "p>=7"), ballot("b", "p<=3")], {"p": 5})
    assert low.clamped == (Clamp("p", "floor", "a"),) and low.conflicts == (Conflict("p", 7, "a", 3, "b"),)
    high = type_aware_merge([ballot("a", "p>=7"), ballot("b", "p<=3")], {"p": 10})
    assert high.clamped == (Clamp("p", "ceiling", "b"),) and len(high.conflicts) == 1
    at = type_aware_merge([ballot("a", "p>=7"), ballot("b", "p<=3")], {"p": 7})
    assert at.clamped == () and len(at.conflicts) == 1


def test_PL_206_M14_unknown_count_is_held():
    assert "no_recommendation" in kinds(type_aware_merge([ballot("a", "p<=8")], {"p": None}))


def test_PL_203_M16_final_is_ignored_where_sets_are():
    outcome = type_aware_merge([ballot("a!", "p8"), ballot("b", "p<=6")], {"p": 5}, set_allowed=False)
    assert got(outcome) == "p5" and [d.component for d in outcome.set_dropped] == ["p"] and "final_ignored" in kinds(outcome)
    outcome = type_aware_merge([ballot("a", "p<=-3")], {"p": 5}, set_allowed=False)
    assert got(outcome) == "p0" and "negative_clamped" in kinds(outcome)


def test_PL_201_a_tie_between_different_values_is_told():
    outcome = type_aware_merge([ballot("5a", "p8"), ballot("5b", "p9"), ballot("5c", "p8")], {"p": 5})
    ties = [r for r in outcome.records if r[0] == "tie_broken"]
    assert got(outcome) == "p8" and [(t[1], t[3]["loser"], t[3]["rule"]) for t in ties] == [("5a", "5b", "registration")]
    sorted_ = type_aware_merge([ballot("5b", "p9"), ballot("5a", "p8")], {"p": 5}, tie_break="plugin_id")
    assert got(sorted_) == "p8" and sorted_.records[0][3]["rule"] == "plugin_id"
    beaten = type_aware_merge([ballot("5a", "p8"), ballot("5b", "p9"), ballot("1c", "p3")], {"p": 5})
    assert "tie_broken" not in kinds(beaten)


def test_PL_201_two_equal_finals_are_a_tie():
    outcome = type_aware_merge([ballot("5a!", "p8"), ballot("5b!", "p>=9")], {"p": 5})
    [tie] = [r for r in outcome.records if r[0] == "tie_broken"]
    assert tie[3] == {"loser": "5b", "value": "p8", "other": "p>=9", "rule": "registration"}


def test_PL_205_huge_and_empty():
    assert got(type_aware_merge([ballot("a", "p2147483647")], {"p": 5})) == "p2147483647"
    assert got(type_aware_merge([], {})) == ""
    assert got(type_aware_merge([Ballot("a", 1, StageResponse(Override(())))], {"p": 0})) == "p0"
    assert got(type_aware_merge([Ballot("a", 1, StageResponse())], {"p": 4})) == "p4"


# -- the chain ----------------------------------------------------------------------------------------------------------------------


def step(priority: int, req=None, isl=None, osl=None, *, final: bool = False, source: str = "", **more):
    return (f"p{priority}", priority, PredictResponse(PredictionData(req, isl, osl, source=source, **more), final=final))


def seen(outcome):
    p = outcome.predictions
    return (p.predicted_num_req, p.predicted_isl, p.predicted_osl)


def test_PL_209_C1_C2_first_writer_by_priority():
    assert seen(chain_augment([step(100, 1000, 3000, 150), step(10, 1200)])) == (1200, 3000, 150)
    outcome = chain_augment([step(10, 0.0), step(100, 1000, 3000, 150)])
    assert seen(outcome) == (0.0, 3000, 150)
    assert outcome.owner == {"predicted_num_req": "p10", "predicted_isl": "p100", "predicted_osl": "p100"}


def test_PL_209_C3_final_ends_the_chain():
    outcome = chain_augment([step(10, osl=100), step(50, isl=2000, final=True), step(100, 500)])
    assert seen(outcome) == (None, 2000, 100) and [r[0] for r in outcome.records] == ["chain_final_not_lowest"]
    assert outcome.final_from == "p50"


def test_PL_209_C4_lowest_final_leaves_no_record_and_source_is_the_first_non_empty():
    outcome = chain_augment([step(5, 1000, final=True), step(100, 1)])
    assert seen(outcome) == (1000, None, None) and outcome.records == ()
    assert chain_augment([step(10, source=""), step(100, source="base")]).predictions.source == "base"


def test_PL_209_times_come_with_the_request_count():
    outcome = chain_augment([step(1, isl=5, window_s=1.0, horizon_s=2.0), step(2, 7, window_s=30.0, horizon_s=60.0), step(3, 9, window_s=5.0)])
    assert (outcome.predictions.window_s, outcome.predictions.horizon_s) == (30.0, 60.0)
    alone = chain_augment([step(1, isl=5, window_s=1.0, horizon_s=2.0)])
    assert (alone.predictions.window_s, alone.predictions.horizon_s, alone.predictions.predicted_isl) == (None, None, 5)


def test_PL_209_failed_and_empty_plugins_change_nothing():
    outcome = chain_augment([("a", 1, None), ("b", 2, PredictResponse(reason="no data")), step(3, 8)])
    assert seen(outcome) == (8, None, None) and outcome.reasons == ("no data",)
    assert chain_augment([]).predictions is None
    final = chain_augment([("b", 2, PredictResponse(final=True)), step(3, 8)])
    assert final.predictions is None and final.final_from == "b"


def test_PL_209_chain_is_incremental():
    chain = Chain()
    assert chain.add("a", 1, PredictResponse(PredictionData(3.0))) and not chain.add("b", 2, PredictResponse(final=True))
    assert chain.outcome().predictions.predicted_num_req == 3.0
