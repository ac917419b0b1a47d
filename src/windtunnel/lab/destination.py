"""Where results go, looked at before anything is simulated: an hour of work must not end at a misspelt directory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from windtunnel.errors import ConfigFileError


def check_file(path: str | Path) -> None:
    """Could this file be written, with the folders above it made? Leaves nothing behind. Raises ConfigFileError."""
    out = Path(path)
    if out.is_dir():
        raise ConfigFileError(f"{out} is a directory", hint="name a file")
    if out.exists():
        with _refused(out), out.open("ab"):
            return
    _check_room(out)


def check_run(directory: str | Path, *, overwrite: bool) -> None:
    """Could a run be saved here? Refuses to replace what is not a run, or a run without `overwrite`. Raises ConfigFileError."""
    out = Path(directory)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not (out / "manifest.json").is_file():
            raise ConfigFileError(f"{out} exists and is not a saved run; it is left as it is", hint="choose another directory")
        if not overwrite:
            raise ConfigFileError(f"{out} holds a run", hint="choose another directory; --overwrite (overwrite=True) replaces it")
    _check_room(out)


def _check_room(out: Path) -> None:
    """A file can be made in the nearest folder that exists: asking for permissions says too little (root, read-only disks)."""
    folder = next(p for p in (out.absolute().parent, *out.absolute().parents) if p.exists() or p.is_symlink())
    if not folder.is_dir():
        raise ConfigFileError(f"{out} cannot be written: {folder} is no directory")
    with _refused(out), tempfile.TemporaryFile(dir=folder):
        pass


@contextmanager
def _refused(out: Path) -> Iterator[None]:
    """An OSError as one sentence that names what was to be written."""
    try:
        yield
    except OSError as error:
        raise ConfigFileError(f"{out} cannot be written: {error.strerror or error}", hint="name another file or directory") from None
