from __future__ import annotations

import warnings
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from windtunnel.sources.traces.open import Trace, open_trace
from windtunnel.sources.traces.row import TraceRow

COUNTS = st.integers(0, 2**31 - 1)
NAMES = st.one_of(st.none(), st.text(st.characters(codec="utf-8"), min_size=1, max_size=6))
TIMES = st.floats(0, 1e9)
MAYBE_TIMES = st.one_of(st.none(), TIMES)
IDS = st.integers(-(2**63), 2**63 - 1)
SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def rows(draw: st.DrawFn) -> list[TraceRow]:
    made = []
    for i in range(draw(st.integers(1, 12))):
        session = draw(NAMES)
        at = draw(TIMES if session is None else MAYBE_TIMES)
        made.append(TraceRow(f"r{i}{draw(NAMES) or ''}", at, draw(COUNTS), draw(st.one_of(st.none(), COUNTS)), draw(NAMES),
                             draw(st.sampled_from([None, "interactive", "batch"])), draw(NAMES), session, draw(NAMES),
                             draw(st.sampled_from([None, "fork", "spawn"])), draw(st.one_of(st.none(), COUNTS)), draw(MAYBE_TIMES),
                             draw(MAYBE_TIMES), draw(NAMES), draw(st.one_of(st.none(), st.lists(IDS, max_size=4).map(tuple))), draw(NAMES)))
    return made


@st.composite
def mooncake_rows(draw: st.DrawFn) -> list[TraceRow]:
    made = []
    for i in range(draw(st.integers(1, 12))):
        n = draw(st.integers(0, 5000))
        blocks = draw(st.one_of(st.none(), st.lists(IDS, max_size=-(-n // 512)).map(tuple)))
        session = draw(NAMES)
        delay = None if session is None else draw(st.one_of(st.none(), st.integers(0, 10**9)))
        at = draw(st.integers(0, 10**12)) if delay is None else draw(st.one_of(st.none(), st.integers(0, 10**12)))
        made.append(TraceRow(str(i), None if at is None else at / 1000, n, draw(st.one_of(st.none(), COUNTS)), session=session,
                             delay_s=None if delay is None else delay / 1000, blocks=blocks))
    return made


@SETTINGS
@given(rows())
def test_TR_20_own_parquet_gives_back_what_was_written(tmp_path: Path, written: list[TraceRow]) -> None:
    Trace.from_rows(written, block_size=512).write(tmp_path / "t.parquet")
    again = open_trace(tmp_path / "t.parquet")
    assert list(again.rows()) == written and again.block_size == 512 and again.own_ids


@SETTINGS
@given(mooncake_rows())
def test_TR_20_mooncake_gives_back_what_was_written(tmp_path: Path, written: list[TraceRow]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trace.from_rows(written, block_size=512, own_ids=False).write(tmp_path / "t.jsonl")
    assert list(open_trace(tmp_path / "t.jsonl").rows()) == written
