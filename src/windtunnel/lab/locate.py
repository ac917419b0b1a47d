"""Where scenarios and data files are looked for, and how `extends` is followed."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from windtunnel.errors import ConfigError, ConfigFileError
from windtunnel.lab import overrides
from windtunnel.lab.sentences import close_hint
from windtunnel.lab.yamlfile import Document, parse_yaml, read_yaml

PACKAGE = Path(__file__).resolve().parent.parent
MAX_DEPTH = 5


def _packaged(folder: str) -> Path:
    """Folder of an installed package, or of the source tree that it is run from."""
    inside = PACKAGE / folder
    return inside if inside.is_dir() else PACKAGE.parent.parent / folder


def scenario_folders() -> tuple[Path, ...]:
    """Where bundled names are looked up, in order."""
    return Path("sims"), _packaged("sims")


def bundled() -> dict[str, Path]:
    """Name → file of every scenario in ./sims and in the package; the former wins."""
    found: dict[str, Path] = {}
    for folder in scenario_folders():
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def scenario_file(where: str | Path) -> Path:
    """An existing file, else a bundled name; ConfigFileError names the closest ones."""
    path = Path(where)
    if path.name != "scenario.yaml" and (path.parent / "manifest.json").is_file() and path.is_file():
        raise ConfigFileError(f"{path} is part of a saved run, not a scenario", hint=f"name the run, {path.parent}, or its scenario.yaml")
    if path.is_file():
        return path
    if path.is_dir():
        kept = (path / "manifest.json").is_file()
        what = "the directory of a saved run" if kept else "a directory"
        raise ConfigFileError(f"{path} is {what}, not a scenario", hint=f"{path / 'scenario.yaml'} is the run's scenario" if kept else "name a file")
    known = bundled()
    name = path.name.removesuffix(".yaml")
    if len(path.parts) == 1 and name in known:
        return known[name]
    hint = close_hint(name, list(known)) or f"looked in {', '.join(str(f) for f in scenario_folders())}"
    raise ConfigFileError(f'no scenario "{where}"', hint=hint)


def open_scenario(where: str | Path) -> tuple[Document, Path, str | None]:
    """(data with places, folder that relative paths are beside, variant named as `file@variant`)."""
    if isinstance(where, str) and "\n" in where:
        return parse_yaml(where), Path(), None
    variant = None
    if isinstance(where, str) and "@" in where and not Path(where).is_file():
        where, _, variant = where.rpartition("@")
    path = scenario_file(where)
    return _extended(path, ()), path.parent, variant


def _extended(path: Path, above: tuple[Path, ...]) -> Document:
    """The file's data over that of the files it extends."""
    doc = read_yaml(path)
    chain = (*above, path)
    base = doc.data.pop("extends", None) if isinstance(doc.data, dict) else None
    if base is None:
        return doc
    where = doc.where(("extends",))
    if not isinstance(base, str):
        raise ConfigError("extends: expected the name of a file", where=where)
    other = path.parent / base
    if other.resolve() in [p.resolve() for p in chain]:
        raise ConfigError(" → ".join(p.name for p in (*chain, other)) + ": a file extends itself", where=where)
    if len(chain) > MAX_DEPTH:
        raise ConfigError(f"extends: more than {MAX_DEPTH} files deep", where=where)
    below = _extended(other, chain)
    _check_nulls(doc, below.data)
    return Document(overrides.merge(below.data, doc.data), {**below.marks, **doc.marks})


def _check_nulls(doc: Document, base: Any) -> None:
    if not isinstance(base, dict):
        raise ConfigError("extends: the base is no mapping", where=doc.where(("extends",)))


def data_folders(base: Path) -> tuple[Path, ...]:
    """Where a relative data path may lie: beside the scenario and above it, $WINDTUNNEL_DATA, the packaged data."""
    named = os.environ.get("WINDTUNNEL_DATA")
    return tuple(p for p in (base, Path(named) if named else None, _packaged("data").parent, _packaged("data")) if p is not None)


def data_file(path: str, base: Path) -> Path:
    """The file that a scenario's path means; ConfigFileError lists the places that were tried."""
    if Path(path).is_absolute():
        tried = [Path(path)]
    else:
        tried = list(dict.fromkeys(folder / path for folder in data_folders(base)))
    for place in tried:
        if place.is_file():
            return place
    error = ConfigFileError(f'no file "{path}"', hint="looked for " + ", ".join(str(p) for p in tried))
    error.file = path
    raise error


def sha256(path: Path) -> str:
    """Content hash of a file, remembered while the file does not change."""
    stat = path.stat()
    return _sha256(str(path), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _sha256(path: str, _mtime_ns: int, _size: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
