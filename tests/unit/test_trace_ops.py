from __future__ import annotations

from pathlib import Path

import pytest

from windtunnel.errors import ConfigUnknownKeyError, ConfigValueError, TraceEmptyError
from windtunnel.policy.routing.hashing import h64
from windtunnel.sources.traces.assign import AssignDeadline, AssignPriority, AssignTenants
from windtunnel.sources.traces.choose import Sample, Splice, Window
from windtunnel.sources.traces.open import Operation, Trace, open_trace
from windtunnel.sources.traces.ops import OPERATIONS, operation_of
from windtunnel.sources.traces.row import TraceRow
from windtunnel.sources.traces.scale import Clamp, RateScale, Repeat, ScaleTokens, Shift, TimeScale

DATA = Path(__file__).parents[2] / "data" / "traces"
FOUR = Trace.from_rows([TraceRow(str(i), float(i), 100 + i, 10) for i in range(4)])
LONG = Trace.from_rows([TraceRow(str(i), i * 0.5, 10, 10) for i in range(4000)])
# session s: root and a later turn, with a child session; a single request between them
TREE = Trace.from_rows([TraceRow("a", 0.0, 5, 5, session="s", turn=0), TraceRow("x", 1.0, 5, 5),
                        TraceRow("b", 2.0, 5, 5, session="s", turn=1),
                        TraceRow("c", 3.0, 5, 5, session="k", parent_session="s", branch="fork"),
                        TraceRow("d", None, 5, 5, session="k", turn=1, delay_s=1.0)])


def times(trace: Trace, *ops: Operation) -> list[float | None]:
    return [row.arrival_s for row in trace.apply(*ops).rows()]


def ids(trace: Trace, *ops: Operation, seed: int = 0) -> list[str]:
    return [row.request_id for row in trace.apply(*ops, seed=seed).rows()]


def test_TR_30_time_scale() -> None:
    assert times(FOUR, TimeScale(0.5)) == [0.0, 0.5, 1.0, 1.5]
    row = TraceRow("a", 4.0, 1, 1, session="s", delay_s=2.0, deadline_in_s=8.0)
    assert next(Trace.from_rows([row]).apply(TimeScale(0.5)).rows()).deadline_in_s == 8.0
    both = next(Trace.from_rows([row]).apply(TimeScale(0.5, delays=True)).rows())
    assert (both.arrival_s, both.delay_s, both.deadline_in_s) == (2.0, 1.0, 4.0)


def test_TR_31_rate_scale_down_keeps_a_share() -> None:
    kept = ids(LONG, RateScale(0.25))
    assert len(kept) == pytest.approx(1000, rel=0.1) and kept == ids(LONG, RateScale(0.25)) != ids(LONG, RateScale(0.25), seed=1)
    assert set(times(LONG, RateScale(0.25))) <= set(times(LONG))


def test_TR_31_rate_scale_up_copies_in_the_same_span() -> None:
    grown = list(LONG.apply(RateScale(2.5)).rows())
    assert len(grown) == pytest.approx(10_000, rel=0.03) and len({row.request_id for row in grown}) == len(grown)
    at = [row.arrival_s for row in grown]
    assert at == sorted(at) and at[0] >= 0.0 and at[-1] <= 1999.5 + 0.5
    shifts = [row.arrival_s - 0.5 * int(row.request_id[:-2]) for row in grown if row.request_id.endswith("~1")]
    assert len(shifts) == 4000 and min(shifts) >= 0 and max(shifts) < 0.5 and sum(shifts) / 4000 == pytest.approx(0.25, rel=0.05)
    assert ids(FOUR, RateScale(1)) == ["0", "1", "2", "3"]


def test_TR_31_copies_have_blocks_of_their_own_unless_shared() -> None:
    trace = Trace.from_rows([TraceRow("a", 0.0, 600, 1, blocks=(1, 2)), TraceRow("b", 1.0, 600, 1, blocks=(1, 3)),
                             TraceRow("c", 2.0, 9, 1)])
    rows = {row.request_id: row.blocks for row in trace.apply(RateScale(2, jitter_s=0.0)).rows()}
    assert rows["a"] == (1, 2) and rows["c"] is None and rows["c~1"] is None
    assert rows["a~1"] and rows["b~1"] and rows["a~1"][0] == rows["b~1"][0] != 1 and rows["a~1"][1] != rows["b~1"][1]
    shared = {row.request_id: row.blocks for row in trace.apply(RateScale(2, share_prefix=True)).rows()}
    assert shared["a~1"] == (1, 2)
    moon = open_trace(DATA / "mooncake_arxiv_first1000.jsonl.gz")
    assert moon.apply(RateScale(2)).card().hit_bound == pytest.approx(moon.card().hit_bound, abs=1e-12)


def test_TR_31_trees_are_never_torn() -> None:
    for seed in range(20):
        kept = ids_or_none(TREE, RateScale(0.5), seed)
        assert {"a", "b", "c", "d"} <= set(kept) or not {"a", "b", "c", "d"} & set(kept)
        grown = list(TREE.apply(RateScale(1.5), seed=seed).rows())
        copies = {row.request_id: row for row in grown if row.request_id.endswith("~1")}
        tree = {"a~1", "b~1", "c~1", "d~1"}
        assert tree <= set(copies) or not tree & set(copies)
        if tree <= set(copies):
            assert copies["c~1"].session == "k~1" and copies["c~1"].parent_session == "s~1" and copies["d~1"].arrival_s is None
            assert copies["b~1"].arrival_s - copies["a~1"].arrival_s == pytest.approx(2.0)


def ids_or_none(trace: Trace, op: Operation, seed: int) -> list[str]:
    try:
        return ids(trace, op, seed=seed)
    except TraceEmptyError:
        return []


def test_TR_32_window() -> None:
    assert times(FOUR, Window(1, 3)) == [0.0, 1.0] and ids(FOUR, Window(1, 3)) == ["1", "2"]
    assert times(FOUR, Window(2)) == [0.0, 1.0]
    assert ids(TREE, Window(0, 1)) == ["a", "b", "c", "d"] and ids(TREE, Window(1, 9)) == ["x"]
    with pytest.raises(TraceEmptyError):
        ids(FOUR, Window(50, 60))


def test_TR_33_sample() -> None:
    assert len(ids(LONG, Sample(p=0.5))) == pytest.approx(2000, rel=0.06)
    assert len(ids(LONG, Sample(n=37))) == 37 and len(ids(FOUR, Sample(n=9))) == 4
    counts = [0] * 4
    for seed in range(400):
        for id_ in ids(FOUR, Sample(n=1), seed=seed):
            counts[int(id_)] += 1
    assert min(counts) > 65  # 100 expected; 4 sd is 35
    assert {len(ids(TREE, Sample(n=1), seed=seed)) for seed in range(20)} == {1, 4}


def test_TR_34_splice() -> None:
    assert times(FOUR, Splice(FOUR, 2)) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert ids(FOUR, Splice(FOUR, 2)) == ["a/0", "a/1", "b/0", "b/1", "b/2", "b/3"]
    other = Trace.from_rows([TraceRow("z", 0.0, 1, 1)])
    assert ids(FOUR, Splice(other, 2)) == ["0", "1", "z"]
    rows = list(TREE.apply(Splice(TREE, 1)).rows())
    assert [row.request_id for row in rows] == ["a/a", "a/b", "a/c", "a/d", "b/a", "b/x", "b/b", "b/c", "b/d"]
    assert rows[2].parent_session == "a/s"


def test_TR_35_repeat_and_shift() -> None:
    assert times(FOUR, Repeat(2)) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert ids(FOUR, Repeat(3))[-1] == "3~2" and ids(FOUR, Repeat(1)) == ["0", "1", "2", "3"]
    assert times(FOUR, Shift(2.5)) == [2.5, 3.5, 4.5, 5.5]


def test_TR_35_clamp_drops_blocks_beyond() -> None:
    trace = Trace.from_rows([TraceRow("a", 0.0, 1500, 50, blocks=(1, 2, 3)), TraceRow("b", 0.0, 400, None, blocks=(1,))], block_size=512)
    first, second = trace.apply(Clamp(max_input=1024, max_output=20)).rows()
    assert (first.input_tokens, first.output_tokens, first.blocks) == (1024, 20, (1, 2))
    assert (second.input_tokens, second.output_tokens, second.blocks) == (400, None, (1,))


def test_TR_35_scale_tokens_rounds_half_up_and_drops_blocks() -> None:
    trace = Trace.from_rows([TraceRow("a", 0.0, 5, 3, blocks=(1,)), TraceRow("b", 0.0, 1, None)], block_size=512)
    first, second = trace.apply(ScaleTokens(input=0.5, output=0.5)).rows()
    assert (first.input_tokens, first.output_tokens, first.blocks) == (3, 2, None)
    assert (second.input_tokens, second.output_tokens) == (1, None)
    assert next(trace.apply(ScaleTokens(output=2)).rows()).blocks == (1,)


def test_TR_36_tenants_by_hash_are_stable_under_reordering() -> None:
    op = AssignTenants({"acme": 0.7, "flood": 0.3})
    rows = list(LONG.apply(op).rows())
    assert sum(row.tenant == "acme" for row in rows) / 4000 == pytest.approx(0.7, abs=0.03)
    assert all((row.tenant == "acme") == (h64(row.request_id) / 2**64 < 0.7) for row in rows)
    backwards = Trace.from_rows(list(LONG.rows())[::-1]).apply(op, seed=9).rows()
    assert {row.request_id: row.tenant for row in backwards} == {row.request_id: row.tenant for row in rows}
    assert len({row.tenant for row in TREE.apply(op).rows() if row.session}) == 1


def test_TR_36_priorities_and_deadlines() -> None:
    rows = list(LONG.apply(AssignPriority({"interactive": 1, "batch": 1}), AssignDeadline({"batch": 60.0})).rows())
    assert {(row.priority, row.deadline_in_s) for row in rows} == {("interactive", None), ("batch", 60.0)}
    assert {row.deadline_in_s for row in FOUR.apply(AssignDeadline(2)).rows()} == {2.0}


def test_plain_data_names_operations() -> None:
    assert operation_of({"window": {"t0": 0, "t1": 600}}) == Window(0, 600) and operation_of({"rate_scale": 9.0}) == RateScale(9.0)
    assert operation_of({"assign_tenants": {"acme": 0.7, "flood": 0.3}}) == AssignTenants({"acme": 0.7, "flood": 0.3})
    assert operation_of({"assign_deadline": 2.0}) == AssignDeadline(2.0) and operation_of(Shift(1.0)) == Shift(1.0)
    assert set(OPERATIONS) >= {"time_scale", "rate_scale", "window", "sample", "splice", "repeat", "shift", "clamp", "scale_tokens"}


@pytest.mark.parametrize(("data", "kind", "text"), [
    ({"windw": {}}, ConfigUnknownKeyError, 'did you mean "window"'), ({"window": {"from": 1}}, ConfigUnknownKeyError, "t0, t1"),
    ("window", ConfigValueError, "expected one operation"), ({"time_scale": {"f": 0}}, ConfigValueError, "time_scale.f"),
    ({"rate_scale": {"f": float("nan")}}, ConfigValueError, "rate_scale.f"), ({"rate_scale": -1}, ConfigValueError, "rate_scale.f"),
    ({"window": {"t0": 5, "t1": 5}}, ConfigValueError, "window.t1"), ({"sample": {}}, ConfigValueError, "either p or n"),
    ({"sample": {"p": 2}}, ConfigValueError, "sample.p"), ({"clamp": {"max_input": 0}}, ConfigValueError, "clamp.max_input"),
    ({"scale_tokens": {"input": -1}}, ConfigValueError, "scale_tokens.input"), ({"repeat": {}}, ConfigValueError, "takes k"),
    ({"assign_tenants": {"a": 0}}, ConfigValueError, "sum > 0"), ({"assign_priority": {"urgent": 1}}, ConfigValueError, "urgent"),
    ({"assign_deadline": {"interactive": 0}}, ConfigValueError, "assign_deadline.interactive"),
    ({"shift": "1 s"}, ConfigValueError, "shift.s"),
])
def test_bad_operations_name_the_field(data: object, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        operation_of(data, "ops.0")


def test_operations_are_lazy_and_repeatable() -> None:
    scaled = open_trace(DATA / "azure2023_conv.csv.gz").apply(Window(0, 600), RateScale(3.0), AssignTenants({"a": 1, "b": 1}))
    once = scaled.table()
    assert once.equals(scaled.table()) and 3 * 2500 < once.num_rows < 3 * 4500
