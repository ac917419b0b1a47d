"""The knots of a step table from a CSV file: columns batch and seconds, and kv_mean where time was measured by context too."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

from windtunnel.errors import ConfigFileError

KEYS = ("batch", "kv_mean")
COLUMNS = (*KEYS, "seconds")
HEADER = "the first line is: batch,seconds or: batch,kv_mean,seconds"
Knot = tuple[int | float, ...]


def read_steps(path: Path) -> tuple[Knot, ...]:
    """(batch, seconds) each, or (batch, kv_mean, seconds) each, ascending whatever the order in the file. Columns may stand in any order.

    Raises ConfigFileError that names file, line and column.
    """
    found: dict[Knot, tuple[int, float]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for line, knot in _knots(csv.reader(file, strict=True), path):
                *key, seconds = knot
                before = found.setdefault(tuple(key), (line, seconds))
                if before[0] != line:
                    raise ConfigFileError(f"column batch: {_named(tuple(key))} stands in line {before[0]} already", where=f"{path}:{line}",
                                          hint="keep one of the two, such as the median of what was measured")
    except OSError as error:
        raise ConfigFileError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise ConfigFileError("not a text file in UTF-8", where=str(path), hint=HEADER) from error
    if not found:
        raise ConfigFileError("no step in it", where=str(path), hint=f"{HEADER}; then one measured step a line")
    return tuple((*key, found[key][1]) for key in sorted(found))


def _knots(rows: Iterator[list[str]], path: Path) -> Iterator[tuple[int, Knot]]:
    """(line, key and seconds) of every line behind the header."""
    columns: list[str] = []
    line = 0
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise ConfigFileError(f"not a line of a CSV file: {error}", where=f"{path}:{rows.line_num}") from error  # type: ignore[attr-defined]
        if row is None:
            return
        line = rows.line_num  # type: ignore[attr-defined]
        where = f"{path}:{line}"
        if not any(cell.strip() for cell in row):
            continue
        if not columns:
            columns = _header([name.strip().lower() for name in row], where)
            continue
        if len(row) != len(columns):
            raise ConfigFileError(f"{len(row)} values for the {len(columns)} columns {', '.join(columns)}", where=where)
        cells = dict(zip(columns, row))
        key: Knot = (_whole(cells["batch"], where),)
        if "kv_mean" in cells:
            key = (*key, _number("kv_mean", cells["kv_mean"], where, least=True))
        yield line, (*key, _number("seconds", cells["seconds"], where))


def _header(columns: list[str], where: str) -> list[str]:
    for name in columns:
        if name not in COLUMNS:
            hint = "write seconds, in a column of that name" if name.startswith(("ms", "us", "time", "latency", "itl", "step")) else HEADER
            raise ConfigFileError(f'unknown column "{name}"', where=where, hint=hint)
        if columns.count(name) > 1:
            raise ConfigFileError(f"column {name} stands there twice", where=where, hint=HEADER)
    for name in ("batch", "seconds"):
        if name not in columns:
            raise ConfigFileError(f"no column {name}", where=where, hint=HEADER)
    return columns


def _whole(text: str, where: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise ConfigFileError(f'column batch: expected a count of sequences >= 1, got "{text.strip()}"', where=where)
    return value


def _number(name: str, text: str, where: str, *, least: bool = False) -> float:
    """A finite number above 0; least: or 0 itself."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and (value > 0.0 or (least and value == 0.0))):
        wanted = "tokens >= 0" if least else "seconds > 0"
        raise ConfigFileError(f'column {name}: expected {wanted}, got "{text.strip()}"', where=where)
    return value


def _named(key: Knot) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in zip(KEYS, key))
