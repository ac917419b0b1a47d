"""The manifest of a saved run: what made it, with which code, and the hashes by which its files are checked."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from windtunnel.errors import RunCorruptError, RunVersionError
from windtunnel.lab.digest import code_digest

SCHEMA = 1
_PACKAGES = ("numpy", "pandas", "pyarrow", "simpy", "pydantic", "plotly")
_ROOT = Path(__file__).resolve().parents[1]


@cache
def version() -> str:
    """The installed version of windtunnel."""
    try:
        return metadata.version("windtunnel")
    except metadata.PackageNotFoundError:
        return "0"


@cache
def _code() -> dict[str, Any]:
    return {"version": version(), "git_commit": _git("rev-parse", "HEAD"), "git_dirty": _dirty(), "digest": code_digest()}


def _git(*words: str) -> str | None:
    if not (_ROOT.parents[1] / ".git").exists():
        return None  # an installed package inside somebody else's repository
    try:
        out = subprocess.run(["git", "-C", str(_ROOT), *words], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip()


def _dirty() -> bool | None:
    status = _git("status", "--porcelain")
    return None if status is None else bool(status)


@cache
def _versions() -> dict[str, str | None]:
    out: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            out[name] = None
    return out


def manifest_of(run: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The manifest's object: `run` holds the run's own fields, `files` name → {rows, bytes, sha256, content_sha256}."""
    return {
        "schema": SCHEMA, **run, "created_at": datetime.now(UTC).isoformat(timespec="seconds"), "code": dict(_code()),
        "versions": dict(_versions()), "platform": platform.platform(), "files": {name: dict(files[name]) for name in sorted(files)},
    }


def read(directory: Path) -> dict[str, Any]:
    """The manifest of a saved run. Raises RunCorruptError if there is none, RunVersionError if it is newer than this code."""
    path = directory / "manifest.json"
    if not directory.is_dir():
        raise RunCorruptError("there is no such directory", where=str(directory), hint="a run is saved when it has ended or was interrupted")
    if not path.is_file():
        raise RunCorruptError("manifest.json is missing", where=str(directory), hint="is this the directory of a saved run?")
    try:
        found = json.loads(path.read_bytes())
        schema, by = int(found["schema"]), found["code"]["version"]
    except (ValueError, KeyError, TypeError):
        raise RunCorruptError("manifest.json is damaged", where=str(directory)) from None
    if schema > SCHEMA:
        raise RunVersionError(f"written by windtunnel {by} (schema {schema}); this is {version()} (schema {SCHEMA})", where=str(directory))
    return dict(found)


def check_files(directory: Path, files: Mapping[str, Mapping[str, Any]], *, verify: bool) -> None:
    """Every file of the manifest is there and, if `verify`, unaltered; else RunCorruptError naming it."""
    for name, facts in files.items():
        path = directory / name
        if not path.is_file():
            raise RunCorruptError(f"{name} is missing", where=str(directory))
        if verify and file_sha256(path) != facts["sha256"]:
            raise RunCorruptError(f"{name} was altered", where=str(directory), hint="verify=False reads it all the same")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_sha256(table: pa.Table) -> str:
    """Hash of column names, types and values, independent of chunks, dictionaries and the Parquet writer."""
    digest = hashlib.sha256()
    for name in table.column_names:
        column = table.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(pa.string())
        digest.update(f"{name}:{column.type}:{len(column)}\0".encode())
        _update(digest, column.combine_chunks())
    return digest.hexdigest()


def _update(digest: Any, array: pa.Array | pa.ChunkedArray) -> None:
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
    digest.update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).tobytes())
    if pa.types.is_string(array.type):
        digest.update(pc.binary_length(array).fill_null(-1).to_numpy().astype("<i4").tobytes())
        digest.update(_characters(array.fill_null("")))
    elif pa.types.is_boolean(array.type):
        digest.update(array.fill_null(False).to_numpy(zero_copy_only=False).tobytes())
    elif pa.types.is_floating(array.type):
        values = array.fill_null(0.0).to_numpy().astype("<f8")
        digest.update((values + 0.0).tobytes())  # -0.0 and 0.0 are one number
    elif pa.types.is_integer(array.type):
        digest.update(array.fill_null(0).to_numpy().astype("<i8").tobytes())
    else:
        digest.update(json.dumps(array.to_pylist(), sort_keys=True, default=str).encode())


def _characters(array: pa.StringArray) -> bytes:
    if not len(array):
        return b""
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, dtype="<i4", count=len(array) + 1 + array.offset)
    return bytes(memoryview(data)[ends[array.offset]:ends[-1]]) if data is not None else b""
