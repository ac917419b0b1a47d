from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from windtunnel.errors import ConfigFileError, ConfigValueError, TraceEmptyError, TraceFormatError, TraceRowError
from windtunnel.events import Request, Truth
from windtunnel.sources import trace as trace_module
from windtunnel.sources.arrivals import FixedSchedule, RequestRate
from windtunnel.sources.trace import TraceSource
from windtunnel.sources.traces.open import Trace, open_trace
from windtunnel.sources.traces.prompts import Prompts
from windtunnel.sources.traces.row import BATCH_ROWS, TraceRow

DATA = Path(__file__).parents[2] / "data" / "traces"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
LENGTHS = "arrival_s,input_tokens,output_tokens\n"


def file(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def moon(folder: Path, *lines: object, name: str = "moon.jsonl") -> Path:
    return file(folder, name, "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))


def mrow(at: float = 0, n: int = 600, out: int = 5, **more: object) -> dict[str, object]:
    return {"timestamp": at, "input_length": n, "output_length": out, **more}


def fault(path: Path, **options: str) -> TraceRowError:
    with pytest.raises(TraceRowError) as caught:
        list(open_trace(path, **options).rows())
    return caught.value


def test_TR_1_batches_are_bounded_and_gz_and_zst_are_read(tmp_path: Path) -> None:
    text = LENGTHS + "".join(f"{i},10,20\n" for i in range(20_000))
    plain = file(tmp_path, "a.csv", text)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.csv.zst").write_bytes(pa.compress(text.encode(), "zstd", asbytes=True))
    sizes = [batch.num_rows for batch in open_trace(plain).batches()]
    assert sum(sizes) == 20_000 and max(sizes) <= BATCH_ROWS
    rows = list(open_trace(plain).rows())
    assert rows[19_999] == TraceRow("19999", 19999.0, 10, 20)
    for name in ("a.csv.gz", "a.csv.zst"):
        assert list(open_trace(tmp_path / name).rows()) == rows


def test_TR_1_unknown_tokens_stay_unknown(tmp_path: Path) -> None:
    lengths = list(open_trace(file(tmp_path, "a.csv", LENGTHS + "0,10,\n1,10,0\n")).rows())
    assert [row.output_tokens for row in lengths] == [None, 0]
    moons = list(open_trace(moon(tmp_path, mrow(out=None))).rows())
    assert moons[0].output_tokens is None and moons[0].blocks is None


def test_TR_2_unknown_formats_name_what_was_tried(tmp_path: Path) -> None:
    with pytest.raises(TraceFormatError, match=r"mooncake: .*azure: .*lengths: .*own: "):
        open_trace(file(tmp_path, "a.csv", "time,tokens\n1,2\n"))
    with pytest.raises(TraceFormatError, match="azure"):
        open_trace(file(tmp_path, "a.csv", LENGTHS), format="azure")
    with pytest.raises(ConfigValueError, match="format"):
        open_trace(file(tmp_path, "a.csv", LENGTHS), format="bursty")
    with pytest.raises(ConfigValueError, match="on_error"):
        open_trace(file(tmp_path, "a.csv", LENGTHS), on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(ConfigFileError, match=r"nowhere\.csv"):
        open_trace(tmp_path / "nowhere.csv")


def test_TR_2_skip_counts_by_code_and_refuses_a_trace_that_is_mostly_bad(tmp_path: Path) -> None:
    trace = open_trace(moon(tmp_path, mrow(), mrow(at=-1), "{", mrow(at=7), mrow(at=8)), on_error="skip")
    assert [row.arrival_s for row in trace.rows()] == [0.0, 0.007, 0.008]
    assert trace.faults is not None and trace.faults.bad == {"row.time": 1, "row.json": 1}
    assert "skipped" in repr(trace.card()) and "row.json 1" in repr(trace.card())
    with pytest.raises(TraceFormatError, match="2 of 3 rows"):
        list(open_trace(moon(tmp_path, mrow(), "{", "{"), on_error="skip").rows())


def test_TR_2_collect_keeps_the_errors(tmp_path: Path) -> None:
    trace = open_trace(moon(tmp_path, "{", mrow(), mrow(n="12")), on_error="collect")
    assert len(list(trace.rows())) == 1
    assert trace.faults is not None
    assert [(e.line, e.code) for e in trace.faults.errors] == [(1, "row.json"), (3, "row.type")]


def test_TR_3_the_sentence_names_file_line_field_and_code(tmp_path: Path) -> None:
    error = fault(moon(tmp_path, *[mrow()] * 16, mrow(out="12")))
    assert str(error) == f'{tmp_path}/moon.jsonl:17: output_length: expected an int >= 0, got "12" [row.type]'


@pytest.mark.parametrize(("row", "field", "code"), [
    ("{broken", "", "row.json"), ("[1, 2]", "", "row.type"), ('{"timestamp": 0, "output_length": 1}', "input_length", "row.missing"),
    ('{"timestamp": 0, "input_length": 1}', "output_length", "row.missing"),
    ('{"input_length": 1, "output_length": 1}', "timestamp", "row.missing"), (mrow(n=1.5), "input_length", "row.type"),
    (mrow(n=True), "input_length", "row.type"), (mrow(n=-1), "input_length", "row.range"), (mrow(out=2**31), "output_length", "row.range"),
    (mrow(at=-5), "timestamp", "row.time"), (mrow(at=float("nan")), "timestamp", "row.time"), (mrow(at="0"), "timestamp", "row.type"),
    (mrow(at=float("inf")), "timestamp", "row.time"), (mrow(hash_ids=[1, 2, 3]), "hash_ids", "row.blocks"),
    (mrow(hash_ids=["1"]), "hash_ids", "row.type"), (mrow(hash_ids=[None]), "hash_ids", "row.type"),
    (mrow(hash_ids=[2**70]), "hash_ids", "row.range"), (mrow(text_input="hi"), "text_input", "row.both"),
    ({"timestamp": 0, "text_input": "hi", "output_length": 1}, "text_input", "row.key"), (mrow(outputs=4), "outputs", "row.key"),
    (mrow(session_id=4), "session_id", "row.type"),
])
def test_TR_3_and_TR_10_bad_mooncake_rows(tmp_path: Path, row: object, field: str, code: str) -> None:
    error = fault(moon(tmp_path, mrow(hash_ids=[1, 2]), mrow(hash_ids=[1, 2]), row, mrow()))
    assert (error.line, error.field, error.code) == (3, field, code)


@pytest.mark.parametrize(("row", "field", "code"), [
    ("2023-11-16 18:15:46.68,374", "GeneratedTokens", "row.missing"), ("2023-11-16 18:15:46.68,374,1,9", "", "row.key"),
    ("2023-13-16 18:15:46.68,374,1", "TIMESTAMP", "row.time"), ("2023-11-16T18:15:46.68,374,1", "TIMESTAMP", "row.time"),
    ("2023-11-16 18:15:46.12345678,374,1", "TIMESTAMP", "row.time"), ("2023-11-16 18:15:46.1,37.5,1", "ContextTokens", "row.type"),
    ("2023-11-16 18:15:46.1,-3,1", "ContextTokens", "row.range"), ("2023-11-16 18:15:46.1,3,", "GeneratedTokens", "row.missing"),
    ("2023-11-16 18:15:46.1,3,99999999999", "GeneratedTokens", "row.range"), (",3,1", "TIMESTAMP", "row.missing"),
])
def test_TR_3_and_TR_11_bad_azure_rows(tmp_path: Path, row: str, field: str, code: str) -> None:
    good = "2023-11-16 18:15:46.6805900,374,44\n"
    error = fault(file(tmp_path, "a.csv", f"{AZURE}{good}{row}\n{good}"))
    assert (error.line, error.field, error.code) == (3, field, code)


@pytest.mark.parametrize(("row", "field", "code"), [
    ("-0.5,3,4", "arrival_s", "row.time"), ("nan,3,4", "arrival_s", "row.time"), ("inf,3,4", "arrival_s", "row.time"),
    ("soon,3,4", "arrival_s", "row.type"), (",3,4", "arrival_s", "row.missing"), ("1,,4", "input_tokens", "row.missing"),
    ("1,1_0,4", "input_tokens", "row.type"), ("1", "input_tokens", "row.missing"),
])
def test_TR_3_bad_rows_of_lengths(tmp_path: Path, row: str, field: str, code: str) -> None:
    error = fault(file(tmp_path, "a.csv", f"{LENGTHS}0,1,2\n\n{row}\n"))
    assert (error.line, error.field, error.code) == (4, field, code)


def test_TR_3_the_culprit_is_found_behind_clean_chunks(tmp_path: Path) -> None:
    lines = [f"{i},10,20\n" for i in range(20_000)]
    lines[15_000] = "15000,ten,20\n"
    error = fault(file(tmp_path, "a.csv", LENGTHS + "".join(lines)))
    assert (error.line, error.field) == (15_002, "input_tokens")
    good = open_trace(tmp_path / "a.csv", on_error="skip")
    assert [row.request_id for row in good.rows()][14_999:15_001] == ["14999", "15001"]


def test_TR_3_a_file_that_breaks_off_says_where(tmp_path: Path) -> None:
    whole = (DATA / "azure2023_conv.csv.gz").read_bytes()
    path = tmp_path / "cut.csv.gz"
    path.write_bytes(whole[:90_000])
    error = fault(path)
    assert error.code == "row.missing" and "breaks off" in error.message and 5_000 < error.line < 15_000
    kept = sum(1 for _ in open_trace(path, on_error="skip").rows())
    assert kept == error.line - 2
    (tmp_path / "bad.csv.gz").write_bytes(whole[:30])
    with pytest.raises(TraceRowError):
        list(open_trace(tmp_path / "bad.csv.gz").rows())
    (tmp_path / "no.csv.gz").write_bytes(b"not gzip at all")
    with pytest.raises((TraceRowError, ConfigFileError)):
        open_trace(tmp_path / "no.csv.gz")


def test_TR_3_empty_traces(tmp_path: Path) -> None:
    with pytest.raises(TraceEmptyError):
        open_trace(file(tmp_path, "a.jsonl", ""))
    with pytest.raises(TraceEmptyError):
        list(open_trace(file(tmp_path, "a.csv", LENGTHS)).rows())
    with pytest.raises(TraceEmptyError):
        list(Trace.from_rows([]).rows())
    with pytest.raises(TraceEmptyError):
        list(TraceSource([]).stream() or ())


def test_TR_4_the_source_sorts_stably_and_the_card_counts(tmp_path: Path) -> None:
    trace = open_trace(file(tmp_path, "a.csv", LENGTHS + "5,1,1\n3,2,2\n5,3,3\n3,4,4\n"))
    assert [row.arrival_s for row in trace.rows()] == [5.0, 3.0, 5.0, 3.0]
    assert trace.card().out_of_order == 2
    sent = list(TraceSource(trace, name="t").stream() or ())
    assert [(r.id, r.arrived_s) for r in sent] == [("t-1", 0.0), ("t-3", 0.0), ("t-0", 2.0), ("t-2", 2.0)]


def test_TR_4_long_traces_are_read_twice_or_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_module, "SORTED_IN_MEMORY", 5_000)
    ordered = file(tmp_path, "a.csv", LENGTHS + "".join(f"{i},10,20\n" for i in range(20_000)))
    assert [r.arrived_s for r in TraceSource(ordered).stream() or ()] == [float(i) for i in range(20_000)]
    mixed = file(tmp_path, "b.csv", LENGTHS + "".join(f"{20_000 - i},10,20\n" for i in range(20_000)))
    assert [r.arrived_s for r in TraceSource(mixed).stream() or ()] == [float(i) for i in range(20_000)]


def test_TR_10_mooncake_rows_and_fresh_tails(tmp_path: Path) -> None:
    trace = open_trace(moon(tmp_path, mrow(at=1500, n=1024, hash_ids=[7, 8]), mrow(at=1500.5, n=1025, hash_ids=[7, 8]),
                            mrow(at=1501, n=1025, hash_ids=[7, 8, 9])))
    rows = list(trace.rows())
    assert rows[0] == TraceRow("0", 1.5, 1024, 5, blocks=(7, 8)) and rows[1].arrival_s == 1.5005
    assert trace.block_size == 512 and trace.card().fresh_tails == 1 and trace.faults is not None and trace.faults.fresh_tails == 1


def test_TR_10_sessions_and_delays_go_the_careful_way(tmp_path: Path) -> None:
    rows = list(open_trace(moon(tmp_path, mrow(session_id="s"), "", {"delay": 250, "session_id": "s", "input_length": 9, "output_length": 1,
                                                                       "extra": {"a": 1}})).rows())
    assert [(r.session, r.arrival_s, r.delay_s) for r in rows] == [("s", 0.0, None), ("s", None, 0.25)]


def test_TR_11_decimals_are_kept_to_100_ns_and_offsets_are_read(tmp_path: Path) -> None:
    rows = list(open_trace(file(tmp_path, "a.csv", AZURE + "2023-11-16 23:59:59.9999999,1,2\n2023-11-17 00:00:00.0000001,3,4\n")).rows())
    assert [row.arrival_s for row in rows] == [0.0, 2e-7]
    text = AZURE + "2024-05-10 00:00:00+00:00,1,2\n2024-05-10 02:00:00.009930+02:00,3,4\r\n2024-05-10 00:00:01,5,6\n"
    later = list(open_trace(file(tmp_path, "b.csv", text)).rows())
    assert [row.arrival_s for row in later] == [0.0, 0.00993, 1.0]
    fast, slow = (open_trace(DATA / "azure2023_code.csv.gz").table() for _ in range(2))
    assert fast.equals(slow)


def test_TR_11_the_fast_and_the_careful_way_agree(tmp_path: Path) -> None:
    text = gzip.decompress((DATA / "azure2023_code.csv.gz").read_bytes()).decode()
    head, *lines = text.splitlines(keepends=True)
    quoted = "".join(f'"{line[:27]}"{line[27:]}' for line in lines)
    assert open_trace(file(tmp_path, "q.csv", head + quoted)).table().equals(open_trace(DATA / "azure2023_code.csv.gz").table())
    raw = gzip.decompress((DATA / "mooncake_arxiv_first1000.jsonl.gz").read_bytes()).decode()
    extra = raw.replace("}", ', "extra": null}')
    assert open_trace(file(tmp_path, "m.jsonl", extra)).table().equals(open_trace(DATA / "mooncake_arxiv_first1000.jsonl.gz").table())


def test_TR_17_own_parquet_takes_plain_length_tables_and_refuses_strange_ones(tmp_path: Path) -> None:
    pq.write_table(pa.table({"arrival_s": [0.0, 1.5], "input_tokens": [3, 4], "output_tokens": [5, None]}), tmp_path / "a.parquet")
    trace = open_trace(tmp_path / "a.parquet")
    assert list(trace.rows()) == [TraceRow("0", 0.0, 3, 5), TraceRow("1", 1.5, 4, None)] and not trace.own_ids
    pq.write_table(pa.table({"input_tokens": [3], "colour": ["red"]}), tmp_path / "b.parquet")
    with pytest.raises(TraceFormatError, match="unknown columns colour"):
        open_trace(tmp_path / "b.parquet")
    newer = pa.table({"input_tokens": [3]}).replace_schema_metadata({"windtunnel.trace_version": "2"})
    pq.write_table(newer, tmp_path / "c.parquet")
    with pytest.raises(TraceFormatError, match="newer version"):
        open_trace(tmp_path / "c.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "d.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(TraceFormatError, match="damaged"):
        open_trace(tmp_path / "d.parquet")


@pytest.mark.parametrize(("column", "values", "code"), [
    ("input_tokens", [1, None], "row.missing"), ("input_tokens", [1, -1], "row.range"), ("input_tokens", [1.0, 2.0], "row.type"),
    ("arrival_s", [0.0, float("nan")], "row.time"), ("arrival_s", [0.0, -1.0], "row.time"), ("arrival_s", [0.0, None], "row.missing"),
    ("priority", ["batch", "urgent"], "row.range"), ("deadline_in_s", [1.0, -1.0], "row.time"), ("blocks", [[1], [None]], "row.type"),
    ("request_id", ["a", None], "row.missing"), ("tenant", [1, 2], "row.type"),
])
def test_TR_17_bad_rows_of_own_parquet(tmp_path: Path, column: str, values: list[object], code: str) -> None:
    columns = {"request_id": ["a", "b"], "arrival_s": [0.0, 1.0], "input_tokens": [3, 4], column: values}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    error = fault(tmp_path / "a.parquet")
    assert (error.field, error.code) == (column, code) and error.line == (1 if code == "row.type" and column != "blocks" else 2)


def test_TR_20_writers_say_what_they_drop(tmp_path: Path) -> None:
    trace = Trace.from_rows([TraceRow("x", 0.5, 600, 7, tenant="acme", deadline_in_s=3.0, blocks=(1, 2))], block_size=512)
    with pytest.warns(UserWarning, match="dropped: request_id, tenant, deadline_in_s"):
        trace.write(tmp_path / "a.jsonl")
    assert list(open_trace(tmp_path / "a.jsonl").rows()) == [TraceRow("0", 0.5, 600, 7, blocks=(1, 2))]
    with pytest.warns(UserWarning, match="blocks"):
        Trace.from_rows([TraceRow("x", 0.5, 600, 7, blocks=(1, 2))], block_size=16).write(tmp_path / "b.jsonl")
    with pytest.raises(ConfigValueError, match="suffix"):
        trace.write(tmp_path / "a.csv")


def test_TR_20_own_parquet_keeps_what_it_is_and_equal_traces_give_equal_bytes(tmp_path: Path) -> None:
    trace = open_trace(DATA / "mooncake_arxiv_first1000.jsonl.gz")
    for name in ("a.parquet", "b.parquet"):
        trace.write(tmp_path / name)
    again = open_trace(tmp_path / "a.parquet")
    assert (again.block_size, again.own_ids, again.format) == (512, False, "own") and again.table().equals(trace.table())
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_requests_of_a_trace_carry_truth_bound_blocks_and_turns() -> None:
    rows = [TraceRow("a", 10.0, 600, 7, tenant="acme", priority="batch", model="big", session="s", turn=2, deadline_in_s=4.0,
                     blocks=(1, 2)), TraceRow("b", 11.0, 5, None)]
    first, second = TraceSource(rows, model="small", tenant="other").stream() or ()
    assert isinstance(first, Request) and first.truth == Truth(7) and first.blocks == (1, 2)
    assert (first.id, first.tenant, first.model, first.priority, first.arrived_s, first.intended_s) == ("a", "acme", "big", 1, 0.0, 0.0)
    assert (first.input_tokens, first.max_tokens, first.deadline_s) == (600, 7, 4.0)
    assert first.turn is not None and (first.turn.session, first.turn.index, first.turn.final) == ("s", 2, None)
    assert (second.tenant, second.model, second.priority, second.turn) == ("other", "small", 0, None)
    assert second.truth is None and second.max_tokens is None and second.arrived_s == 1.0
    assert next(iter(TraceSource(rows, bound=None).stream() or ())).max_tokens is None


def test_LG_10_zero_is_the_first_arrival_or_an_offset_and_earlier_rows_are_counted() -> None:
    rows = [TraceRow(str(i), float(at), 1, 1) for i, at in enumerate((10, 12, 12, 15))]
    assert [r.arrived_s for r in TraceSource(rows).stream() or ()] == [0.0, 2.0, 2.0, 5.0]
    source = TraceSource(rows, zero=12.0)
    assert [(r.id, r.arrived_s) for r in source.stream() or ()] == [("1", 0.0), ("2", 0.0), ("3", 3.0)]
    assert source.dropped == 1 and source.done()
    assert [r.arrived_s for r in TraceSource(rows, load=FixedSchedule(0.0)).stream() or ()] == [10.0, 12.0, 12.0, 15.0]
    with pytest.raises(TraceEmptyError, match="before the schedule"):
        list(TraceSource(rows, zero=99.0).stream() or ())


def test_LG_11_a_rate_replaces_the_times_of_a_trace() -> None:
    rows = [TraceRow(str(i), 0.0, i + 1, 1) for i in range(5)]
    sent = list(TraceSource(rows, load=RequestRate(2.0, pattern="constant")).stream() or ())
    assert [(r.arrived_s, r.input_tokens) for r in sent] == [(0.5, 1), (1.0, 2), (1.5, 3), (2.0, 4), (2.5, 5)]
    ends = TraceSource(rows, load=RequestRate(series=((0.0, 1.0), (3.0, 0.0)), pattern="constant"))
    assert [r.arrived_s for r in ends.stream() or ()] == [1.0, 2.0, 3.0]
    poisson = TraceSource(rows, load=RequestRate(2.0), rng=3)
    assert [r.arrived_s for r in poisson.stream() or ()] == [r.arrived_s for r in poisson.stream() or ()]


def test_trace_source_refuses_what_it_cannot_play() -> None:
    later = [TraceRow("a", 0.0, 1, 1, session="s"), TraceRow("b", None, 1, 1, session="s", delay_s=2.0)]
    with pytest.raises(TraceFormatError, match="delay after an earlier turn"):
        list(TraceSource(later).stream() or ())
    with pytest.raises(TraceFormatError, match="occurs twice"):
        list(TraceSource([TraceRow("a", 0.0, 1, 1), TraceRow("a", 1.0, 1, 1)]).stream() or ())
    for bad in ({"priority": "urgent"}, {"priority": -1}, {"bound": "input"}, {"zero": float("nan")}):
        with pytest.raises(ConfigValueError):
            TraceSource([TraceRow("a", 0.0, 1, 1)], **bad)  # type: ignore[arg-type]


def test_prompts_become_content_only_when_asked_for() -> None:
    rows = [TraceRow("a", 0.0, 4, 1), TraceRow("b", 1.0, 4, 1, messages='[{"role": "user", "content": "hi"}]')]
    assert [r.content for r in TraceSource(rows).stream() or ()] == [None, None]
    made, own = (r.content for r in TraceSource(rows, prompts=Prompts("t")).stream() or ())
    assert len(made["messages"][0]["content"].split()) == 4 and own == {"messages": [{"role": "user", "content": "hi"}]}


def test_PF_9_mooncake_is_read_in_at_most_three_times_the_time_of_json_loads() -> None:
    lines = gzip.decompress((DATA / "mooncake_conversation.jsonl.gz").read_bytes()).splitlines()
    trace = open_trace(DATA / "mooncake_conversation.jsonl.gz")

    def best(work) -> float:  # type: ignore[no-untyped-def]
        spans = []
        for _ in range(3):
            start = time.process_time()
            work()
            spans.append(time.process_time() - start)
        return min(spans)

    assert best(lambda: list(trace.batches())) <= 3 * best(lambda: [json.loads(line) for line in lines])
