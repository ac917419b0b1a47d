"""Opening a trace: the format is told or found out, rows are read when they are asked for."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd
import pyarrow as pa

from windtunnel.errors import ConfigFileError, ConfigValueError, TraceEmptyError, TraceFormatError, TraceRowError
from windtunnel.sources.traces import agentic, azure, lengths_csv, mooncake, own
from windtunnel.sources.traces.lines import NEARLY, Faults, OnError, open_bytes
from windtunnel.sources.traces.row import BATCH_ROWS, SCHEMA, TraceRow, batch_from_rows, rows_of

if TYPE_CHECKING:
    from windtunnel.sources.traces.card import Card

HEADINGS = {"azure": azure.NAMES, "lengths": lengths_csv.NAMES}
Batches = Callable[[], Iterator[pa.RecordBatch]]


class Operation(Protocol):
    """Makes a trace out of a trace. salt: text that all its random choices depend on."""

    def __call__(self, trace: Trace, salt: str) -> Trace: ...


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace that can be read again and again. name: for messages; make: one pass over its batches; block_size: tokens of a block.

    own_ids: the rows' request ids are the file's own, not their numbers. faults: what the last complete pass skipped.
    """

    name: str
    make: Batches = field(repr=False)
    block_size: int | None = None
    block_scope: str = "global"
    own_ids: bool = False
    format: str = "rows"
    faults: Faults | None = field(default=None, repr=False, compare=False)
    source: str = ""
    licence: str = ""
    time_zero: str = ""

    @classmethod
    def from_rows(cls, rows: Iterable[TraceRow], *, name: str = "rows", block_size: int | None = None, own_ids: bool = True) -> Trace:
        """A trace of rows in memory."""
        kept = list(rows)
        return cls(name, lambda: (batch_from_rows(kept[i : i + BATCH_ROWS]) for i in range(0, len(kept), BATCH_ROWS)), block_size,
                   own_ids=own_ids)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Arrow record batches of at most 8192 rows in file order; TraceEmptyError if there is none, TraceRowError for a bad row."""
        empty = True
        for batch in self.make():
            if batch.num_rows:
                empty = False
                yield batch
        if empty:
            raise TraceEmptyError("not a single row", where=self.name)

    def rows(self) -> Iterator[TraceRow]:
        """The rows one by one."""
        for batch in self.batches():
            yield from rows_of(batch)

    def table(self) -> pa.Table:
        """The whole trace in memory."""
        return pa.Table.from_batches(list(self.batches()), SCHEMA)

    def frame(self) -> pd.DataFrame:
        """The whole trace as a data frame, unknown as missing values."""
        frame: pd.DataFrame = self.table().to_pandas(types_mapper={pa.int32(): pd.Int32Dtype()}.get)
        return frame

    def apply(self, *operations: Operation, seed: int = 0) -> Trace:
        """The trace that the operations make, one after the other; nothing is read yet."""
        trace = self
        for i, operation in enumerate(operations):
            trace = operation(trace, f"{seed}:{i}")
        return trace

    def with_batches(self, make: Batches, **changes: Any) -> Trace:
        """This trace with other batches."""
        return replace(self, make=make, **changes)

    def card(self) -> Card:
        """Statistics of the trace: one pass."""
        from windtunnel.sources.traces.card import card

        return card(self)

    def write(self, path: str | Path) -> None:
        """Write as Mooncake JSONL (.jsonl) or the own Parquet format (.parquet), by suffix."""
        path = Path(path)
        writers = {".jsonl": mooncake.write, ".parquet": own.write}
        if path.suffix not in writers:
            raise ConfigValueError("path", f"expected the suffix .jsonl or .parquet, got {path.name!r}")
        writers[path.suffix](self, path)


@dataclass(frozen=True, slots=True)
class Format:
    """A file format. refuses(path, first line) says why a file is not of it."""

    refuses: Callable[[Path, bytes], str | None]
    batches: Callable[[Path, Faults], Iterator[pa.RecordBatch]]
    about: Callable[[Path], dict[str, Any]]


FORMATS: Mapping[str, Format] = {
    "mooncake": Format(mooncake.refuses, mooncake.batches, lambda path: {"block_size": mooncake.BLOCK_TOKENS}),
    "azure": Format(azure.refuses, azure.batches, lambda path: {}),
    "lengths": Format(lengths_csv.refuses, lengths_csv.batches, lambda path: {}),
    "own": Format(own.refuses, own.batches, own.about),
    "agentic": Format(agentic.refuses, agentic.batches, lambda path: {"block_size": agentic.BLOCK_TOKENS}),
}


def open_trace(path: str | Path, format: str = "auto", on_error: OnError = "raise") -> Trace:
    """The trace in a file (.gz and .zst by suffix); rows are read when asked for.

    format: mooncake, azure, lengths (`arrival_s,input_tokens,output_tokens`), own (Parquet), agentic (Parquet of sessions) or auto, which
    looks at suffix and first line. on_error: raise TraceRowError, skip bad rows (at most half of them), or collect the errors in `faults.errors`.
    Raises ConfigFileError if there is no such file, TraceFormatError if no format fits, TraceEmptyError for an empty file.
    """
    path = Path(path)
    if on_error not in ("raise", "skip", "collect"):
        raise ConfigValueError("on_error", f"expected raise, skip or collect, got {on_error!r}")
    if format != "auto" and format not in FORMATS:
        raise ConfigValueError("format", f"expected auto or one of {', '.join(FORMATS)}; got {format!r}")
    name = _format_of(path, _first_line(path), format)
    found, faults = FORMATS[name], Faults(str(path), on_error)

    def make() -> Iterator[pa.RecordBatch]:
        faults.begin()
        yield from found.batches(path, faults)
        faults.finish()

    return Trace(str(path), make, format=name, faults=faults, **found.about(path))


def _format_of(path: Path, first: bytes, wanted: str) -> str:
    reasons = {name: known.refuses(path, first) for name, known in FORMATS.items() if wanted in ("auto", name)}
    if wanted != "auto" and wanted == "mooncake":
        return wanted  # a bad first row is that row's fault, once the format is told
    fitting = [name for name, reason in reasons.items() if reason is None]
    if len(fitting) == 1:
        return fitting[0]
    near = {name: reason.removeprefix(NEARLY) for name, reason in reasons.items() if reason is not None and reason.startswith(NEARLY)}
    if near and not fitting:
        name, reason = next(iter(near.items()))
        raise TraceFormatError(f"{reason}; the format {name} begins with {','.join(HEADINGS[name])}", where=str(path))
    found = "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) if not fitting else f"could be {' or '.join(fitting)}"
    raise TraceFormatError(f"unknown trace format ({found})" if wanted == "auto" else f"not of the format {found}", where=str(path))


def _first_line(path: Path) -> bytes:
    try:
        with open_bytes(path) as stream:
            first: bytes = stream.readline(1 << 20)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TraceRowError(str(path), 1, "", "row.missing", f"the file breaks off or is damaged from here on ({error})") from None
    except OSError as error:
        raise ConfigFileError(f"cannot read the trace ({error.strerror or error})", where=str(path)) from None
    if not first:
        raise TraceEmptyError("the file is empty", where=str(path))
    return first
