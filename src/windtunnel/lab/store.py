"""The directory of a saved run: written beside its place and renamed, so that it is there as a whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from windtunnel.lab import manifest
from windtunnel.lab.codec import plain
from windtunnel.lab.destination import check_run
from windtunnel.lab.logread import segments_of

if TYPE_CHECKING:
    from windtunnel.lab.run import Run


def begin(target: Path, *, overwrite: bool) -> Path:
    """A temporary directory beside `target`. Refuses to replace what is not a run, or a run without `overwrite`."""
    check_run(target, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))


def commit(made: Path, target: Path) -> None:
    """Put the finished directory in its place; what was there goes only after the new one is complete."""
    made.chmod(0o755)
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        os.rename(target, old / "run")
        os.rename(made, target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(made, target)


def write(run: Run, directory: Path) -> None:
    """All files of a run, the manifest last."""
    files: dict[str, dict[str, Any]] = {}
    for name in run.tables.names:
        table = run.tables.arrow(name)
        path = directory / f"{name}.parquet"
        pq.write_table(table, path, compression="zstd")
        files[path.name] = {**_facts(path), "rows": len(table), "content_sha256": manifest.content_sha256(table)}
    _write_text(directory / "summary.json", _json(run.summary().to_dict()))
    files["summary.json"] = _facts(directory / "summary.json")
    if run.scenario_text:
        _write_text(directory / "scenario.yaml", run.scenario_text)
        files["scenario.yaml"] = _facts(directory / "scenario.yaml")
    for path in _write_log(run, directory):
        files[path.name] = _facts(path)
    found = {"run_id": run.id, "scenario_name": run.meta.name, **_meta(run), "end_s": run.tables.end_s, "meta": _meta(run)}
    _write_text(directory / "manifest.json", _json(manifest.manifest_of(found, files)))


def read(directory: Path, *, verify: bool) -> dict[str, Any]:
    """The manifest of a directory whose files are all there and, if `verify`, unaltered."""
    found = manifest.read(directory)
    manifest.check_files(directory, found["files"], verify=verify)
    return found


def _meta(run: Run) -> dict[str, Any]:
    return {f.name: plain(getattr(run.meta, f.name)) for f in dataclasses.fields(run.meta)}


def _write_log(run: Run, directory: Path) -> list[Path]:
    """The log: bytes of a simulated run, the segments of a live or loaded one."""
    log = run.tables.log
    if log is None:
        return []
    if isinstance(log, bytes):
        path = directory / "log.jsonl"
        path.write_bytes(log)
        return [path]
    out = []
    segments = segments_of(log)
    for segment in segments:
        path = directory / segment.name.replace(segments[0].stem, "log", 1)
        shutil.copyfile(segment, path)
        out.append(path)
    return out


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": manifest.file_sha256(path)}


def _json(data: Any) -> str:
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
