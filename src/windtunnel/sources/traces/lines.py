"""Reading text formats: lines in chunks, compression by suffix, a fast way for clean chunks and a careful one that names the culprit."""

from __future__ import annotations

import gzip
import io
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa

from windtunnel.errors import TraceFormatError, TraceRowError
from windtunnel.sources.traces.row import BATCH_ROWS, INT32_MAX, TraceRow, batch_from_rows

OnError = Literal["raise", "skip", "collect"]
MAX_KEPT = 1000
DIGITS = re.compile(r"[+-]?[0-9]{1,20}")
NEARLY = "nearly, but "  # opens a refusal of what was meant to be the format


class RowFault(Exception):
    """What is wrong with one row; `code` is one of those of TraceRowError."""

    def __init__(self, field: str, code: str, message: str) -> None:
        self.field, self.code, self.message = field, code, message
        super().__init__(message)


class Faults:
    """What one pass over a trace found: bad rows by code (raised, skipped or collected) and prompts longer than their blocks.

    errors: the collected errors, the first 1000; bad: skipped rows by code; rows: good rows; fresh_tails: see the Mooncake format.
    """

    def __init__(self, path: str, on_error: OnError = "raise") -> None:
        self.path, self.on_error = path, on_error
        self.begin()

    def begin(self) -> None:
        """A new pass starts."""
        self.bad: Counter[str] = Counter()
        self.errors: list[TraceRowError] = []
        self.rows = self.fresh_tails = 0

    def add(self, line: int, fault: RowFault) -> None:
        """Raise the fault, or count it."""
        error = TraceRowError(self.path, line, fault.field, fault.code, fault.message)
        if self.on_error == "raise":
            raise error
        self.bad[fault.code] += 1
        if len(self.errors) < MAX_KEPT:
            self.errors.append(error)

    def finish(self) -> None:
        """The pass is over: a trace of which most rows had to be skipped is refused."""
        bad = self.bad.total()
        if self.on_error == "skip" and bad > self.rows:
            raise TraceFormatError(f"{bad} of {bad + self.rows} rows cannot be read", where=self.path, hint=f"the first: {self.errors[0]}")


class LineReader(Protocol):
    """A text format. header: the first line, if the format has one."""

    header: bytes | None

    def bulk(self, lines: Sequence[bytes], first: int) -> pa.RecordBatch | None:
        """A clean chunk as one batch; None if anything is unusual in it. first: line number of the chunk's first line."""

    def row(self, text: str, line: int) -> TraceRow:
        """One line; raises RowFault."""


def read(path: Path, reader: LineReader, faults: Faults) -> Iterator[pa.RecordBatch]:
    """Batches of at most 8192 rows; memory does not grow with the file."""
    for first, lines in _chunks(path, reader.header, faults):
        batch = reader.bulk(lines, first)
        if batch is None:
            batch = _careful(reader, lines, first, faults)
        faults.rows += batch.num_rows
        if batch.num_rows:
            yield batch


def open_bytes(path: Path) -> io.BufferedIOBase:
    """The decompressed bytes of a file (.gz and .zst by suffix)."""
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
    return path.open("rb")


def _careful(reader: LineReader, lines: Sequence[bytes], first: int, faults: Faults) -> pa.RecordBatch:
    rows = []
    for line, raw in enumerate(lines, first):
        if not raw.strip():
            continue
        try:
            rows.append(reader.row(raw.decode("utf-8"), line))
        except UnicodeDecodeError:
            faults.add(line, RowFault("", "row.type", "the line is not UTF-8"))
        except RowFault as fault:
            faults.add(line, fault)
    return batch_from_rows(rows)


def _chunks(path: Path, header: bytes | None, faults: Faults) -> Iterator[tuple[int, list[bytes]]]:
    first = line = 1 if header is None else 2
    chunk: list[bytes] = []
    with open_bytes(path) as stream:
        try:
            if header is not None:
                stream.readline()
            for raw in stream:
                chunk.append(raw)
                line += 1
                if len(chunk) == BATCH_ROWS:
                    yield first, chunk
                    first, chunk = line, []
        except (EOFError, OSError, zlib.error) as error:
            if chunk:
                yield first, chunk
            faults.add(line, RowFault("", "row.missing", f"the file breaks off or is damaged from here on ({error})"))
            return
    if chunk:
        yield first, chunk


def not_header(first: bytes, names: Sequence[str]) -> str | None:
    """Why a first line is not the heading of these columns, or None. What is nearly it is told as what is missing or too much."""
    text = first.decode("utf-8", "replace").rstrip("\r\n")
    got = [word.strip().strip('"') for word in text.removeprefix("\ufeff").replace(";", ",").replace("\t", ",").split(",")]
    if text == ",".join(names):
        return None
    missing, more = [n for n in names if n not in got], [g for g in got if g not in names]
    if len(missing) == len(names):
        return f"the first line is not {','.join(names)}"
    if missing:
        return f"{NEARLY}the first line has no {' and no '.join(missing)}"
    if more:
        return f"{NEARLY}the first line has columns too many: {', '.join(more)}"
    return f"{NEARLY}the first line must read exactly {','.join(names)}, with commas and no byte order mark"


def whole(field: str, value: Any, *, lo: int = 0) -> int:
    """`value` as an int in [lo, 2**31); raises RowFault."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise RowFault(field, "row.type", f"expected an int >= {lo}, got {_shown(value)}")
    if not lo <= value <= INT32_MAX:
        raise RowFault(field, "row.range", f"expected an int from {lo} to {INT32_MAX}, got {value}")
    return value


def seconds(field: str, value: Any, scale: float = 1.0) -> float:
    """`value` / scale as finite seconds >= 0; raises RowFault."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RowFault(field, "row.type", f"expected a number >= 0, got {_shown(value)}")
    if not math.isfinite(value) or value < 0:
        raise RowFault(field, "row.time", f"expected a finite time >= 0, got {value!r}")
    return value / scale


def whole_text(field: str, text: str) -> int:
    """Digits of a CSV field as an int >= 0; raises RowFault."""
    if not DIGITS.fullmatch(text):
        raise RowFault(field, "row.type" if text else "row.missing", f"expected an int >= 0, got {_shown(text)}")
    return whole(field, int(text))


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."
