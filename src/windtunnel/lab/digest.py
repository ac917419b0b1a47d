"""The digest of the code that decides what a simulation gives. Imports nothing heavy: the command line prints it with its version."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@cache
def code_digest() -> str:
    """SHA-256 (hex) over the sources of `policy`, `sources` and `sim`, in sorted order."""
    digest = hashlib.sha256()
    for path in sorted((p for part in ("policy", "sources", "sim") for p in (ROOT / part).rglob("*.py")), key=lambda p: p.as_posix()):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
