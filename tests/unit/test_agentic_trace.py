"""Recorded coding sessions: what a row becomes, whose blocks are whose, what is refused, and sessions one after another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from windtunnel.datafiles import data_path
from windtunnel.errors import ConfigValueError, TraceFormatError, TraceRowError
from windtunnel.policy.routing.hashing import h64
from windtunnel.sources.trace import TraceSource
from windtunnel.sources.traces.open import Trace, open_trace
from windtunnel.sources.traces.ops import operation_of
from windtunnel.sources.traces.row import TraceRow

CALL: dict[str, Any] = {"session": "s", "agent": "main", "t_s": 0.0, "input_tokens": 130, "output_tokens": 5, "think_time_s": 1.0,
                        "block64_ids": [0, 1]}


def file(tmp_path: Path, *rows: dict[str, Any], without: tuple[str, ...] = (), **more: Any) -> Path:
    path = tmp_path / "calls.parquet"
    frame = pd.DataFrame([{**CALL, **row} for row in rows] or [CALL]).drop(columns=list(without))
    frame.assign(**more).to_parquet(path)
    return path


def signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


@pytest.fixture(scope="module")
def recorded() -> Trace:
    return open_trace(data_path("traces/agentic_coding_sessions.parquet"))


def test_TR_16_the_bundled_slice(recorded: Trace) -> None:
    card = recorded.card()
    assert (recorded.format, card.rows, card.block_size) == ("agentic", 2689, 64)
    assert (card.sessions, card.unique_blocks, round(card.hit_bound or 0, 4)) == (87, 222820, 0.9426)
    assert (round(card.input.mean, 1), card.input.max, card.fresh_tails) == (92498.1, 864156, 2648)


def test_TR_16_a_row_of_a_session_and_of_its_sub_agent(tmp_path: Path) -> None:
    trace = open_trace(file(tmp_path, {"t_s": 3.0, "think_time_s": 0.0}, {"agent": "agent_001", "t_s": 7.5, "think_time_s": 2.0}, {"t_s": 9.0}))
    first, child, second = trace.rows()
    blocks = tuple(signed(h64(f"s:{i}")) for i in (0, 1))
    assert first == TraceRow("0", 3.0, 130, 5, session="s", turn=0, blocks=blocks)
    assert child == TraceRow("1", 7.5, 130, 5, session="s/agent_001", parent_session="s", branch="spawn", turn=0, blocks=blocks)
    assert (second.turn, second.delay_s, second.blocks) == (1, 1.0, blocks)
    assert trace.faults is not None and trace.faults.fresh_tails == 3  # 130 tokens, 2 blocks of 64


def test_RT_41_blocks_of_two_sessions_are_different(tmp_path: Path) -> None:
    rows = list(open_trace(file(tmp_path, {}, {"session": "ü"}, {"session": "ü", "block64_ids": [0, 5]})).rows())
    assert rows[0].blocks is not None and rows[1].blocks is not None and rows[2].blocks is not None
    assert not set(rows[0].blocks) & set(rows[1].blocks)
    assert rows[1].blocks[0] == rows[2].blocks[0] == signed(h64("ü:0")) and rows[2].blocks[1] == signed(h64("ü:5"))


@pytest.mark.parametrize(("row", "told"), [
    ({"session": None}, r"session: expected a name.* \[row\.missing\]"), ({"agent": ""}, r"agent: .*\[row\.type\]"),
    ({"t_s": -1.0}, r"t_s: .*\[row\.time\]"), ({"t_s": float("inf")}, r"t_s: .*\[row\.time\]"),
    ({"think_time_s": -2.0}, r"think_time_s: .*\[row\.time\]"), ({"input_tokens": -1}, r"input_tokens: .*\[row\.range\]"),
    ({"output_tokens": -1}, r"output_tokens: .*\[row\.range\]"),
    ({"input_tokens": 64}, r"block64_ids: 2 blocks of 64 do not fit into 64 tokens \[row\.blocks\]"),
    ({"block64_ids": [-1, 0]}, r"block64_ids: .*\[row\.range\]"), ({"block64_ids": [2**31]}, r"block64_ids: .*\[row\.range\]"),
    ({"block64_ids": None}, r"block64_ids: .*\[row\.type\]")])
def test_TR_3_a_bad_row_is_named(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    path = file(tmp_path, {}, row)
    with pytest.raises(TraceRowError, match=rf"calls\.parquet:2: {told}"):
        list(open_trace(path).rows())
    skipping = open_trace(path, on_error="skip")
    assert [r.request_id for r in skipping.rows()] == ["0"] and skipping.faults is not None and skipping.faults.bad.total() == 1


def test_TR_16_unknown_lengths_and_empty_prompts(tmp_path: Path) -> None:
    bare = open_trace(file(tmp_path, {"block64_ids": [], "input_tokens": 0}, without=("output_tokens", "think_time_s")))
    assert list(bare.rows()) == [TraceRow("0", 0.0, 0, session="s", turn=0, blocks=())]
    assert [row.output_tokens for row in open_trace(file(tmp_path, {"think_time_s": None}, {"output_tokens": 7})).rows()] == [5, 7]


def test_TR_2_other_parquet_files_are_told_why_not(tmp_path: Path) -> None:
    with pytest.raises(TraceFormatError, match="agentic: no column agent and no block64_ids"):
        open_trace(file(tmp_path, without=("agent", "block64_ids")))
    with pytest.raises(TraceFormatError, match="agentic: unknown columns mood"):
        open_trace(file(tmp_path, mood="fine"))


def test_stagger_starts_sessions_one_after_another(tmp_path: Path) -> None:
    path = file(tmp_path, {"t_s": 0.0}, {"t_s": 100.0}, {"session": "b", "t_s": 5.0}, {"session": "b", "agent": "agent_001", "t_s": 6.0},
                {"session": "c"}, {"t_s": 101.0})
    times = [row.arrival_s for row in open_trace(path).apply(operation_of({"stagger": 30})).rows()]
    assert times == [0.0, 100.0, 35.0, 36.0, 60.0, 101.0]
    requests = list(TraceSource(open_trace(path), ops=[{"stagger": {"every_s": 30}}]).stream() or ())
    assert [r.id for r in requests] == ["trace-0", "trace-2", "trace-3", "trace-4", "trace-1", "trace-5"]
    assert [r.turn.root for r in requests if r.turn] == ["s", "b", "b", "c", "s", "s"]
    with pytest.raises(ConfigValueError, match="stagger"):
        operation_of({"stagger": -1})
    alone = Trace.from_rows([TraceRow("a", 1.0, 5), TraceRow("b", 1.0, 5)]).apply(operation_of({"stagger": 2}))
    assert [row.arrival_s for row in alone.rows()] == [1.0, 3.0]


def test_TR_35_clamp_cuts_each_prompt_by_itself(recorded: Trace) -> None:
    rows = [TraceRow(str(i), float(i), n, blocks=blocks) for i, (n, blocks) in enumerate((
        (100, (1, 2)), (64, None), (500, (1, 2, 3, 4, 5, 6, 7)), (128, ()), (129, (8, 9, 10))))]
    made = Trace.from_rows(rows, block_size=64).apply(operation_of({"window": {"t0": 1.0}}), operation_of({"clamp": {"max_input": 128}}))
    assert [(row.input_tokens, row.blocks) for row in made.rows()] == [(64, None), (128, (1, 2)), (128, ()), (128, (8, 9))]
    few = next(iter(recorded.batches())).slice(100, 50)
    cut = operation_of({"clamp": {"max_input": 64_000}})(Trace("x", lambda: iter([few]), 64), "")
    for before, after in zip(Trace("x", lambda: iter([few]), 64).rows(), cut.rows(), strict=True):
        assert before.blocks is not None and after.blocks == before.blocks[:1000] and after.input_tokens == min(before.input_tokens, 64_000)
    assert np.mean([row.input_tokens for row in cut.rows()]) <= 64_000
