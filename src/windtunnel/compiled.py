"""The compiled form of the modules on the path of every event, where `windtunnel compile` has made one.

The sources are plain Python and stay the truth: an extension module is only loaded while every source that it was made from is unchanged,
all of them or none. So an edited checkout is never out of step with what runs; it is only slower until it is compiled again. Both forms
give equal logs and tables. `WINDTUNNEL_PURE=1` leaves the compiled form alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = Path(__file__).parent
HOME = PACKAGE / "_compiled"
BOOK = HOME / "sources.json"
GROUP = "windtunnel__mypyc"  # what the compiled modules share
SUFFIX: str = sysconfig.get_config_var("EXT_SUFFIX") or ".so"
ROOTS = ("policy", "sources", "sim", "compiled.py", "events.py", "effects.py", "errors.py", "lab/recorder.py", "lab/originals.py")
MODULES = (
    "sim.kv", "sim.jump", "sim.attempt", "sim.tokens", "sim.prefix", "sim.stretched", "sim.engine", "sim.lora", "sim.pipeline_group", "sim.job",
    "sim.arriving", "sim.dispatching", "sim.engine_news", "sim.wakes",
    *(f"sim.batching.{name}" for name in (
        "conserved", "egress", "fittings", "handover", "intake", "members", "prefill_first", "priority_line", "progress", "reports", "room", "runs",
        "sarathi", "static", "timing", "vllm")),
    *(f"policy.{name}" for name in (
        "book", "control", "endings", "expiry", "flow", "open_request", "preemption", "quarantine", "timers",
        "admission.completion_rate",
        "admission.request", "admission.endpoints", "admission.waiting", "routing.fleet", "routing.replica", "routing.roll")),
    "lab.originals", "lab.recorder",
)


def sources() -> dict[str, Path]:
    """What the compiled form depends on, by path inside the package."""
    found = [p for root in ROOTS for p in ([PACKAGE / root] if root.endswith(".py") else sorted((PACKAGE / root).rglob("*.py")))]
    return {p.relative_to(PACKAGE).as_posix(): p for p in found}


def stamp(path: Path) -> list[Any]:
    """Size, time of change and SHA-256 of a source."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()]


def _unchanged(path: Path, then: Sequence[Any]) -> bool:
    try:
        stat = path.stat()
        return stat.st_size == then[0] and (stat.st_mtime_ns == then[1] or stamp(path)[2] == then[2])
    except OSError:
        return False


def why_not() -> str | None:
    """Why plain Python runs here; None: the compiled form does."""
    if os.environ.get("WINDTUNNEL_PURE"):
        return "WINDTUNNEL_PURE is set"
    try:
        book = json.loads(BOOK.read_text())
    except (OSError, ValueError):
        return "not compiled; `windtunnel compile` makes simulations about twice as fast"
    if book.get("suffix") != SUFFIX:
        return f"compiled for another Python ({book.get('suffix')})"
    then, now = book.get("sources", {}), sources()
    if then.keys() != now.keys() or not all(_unchanged(now[name], then[name]) for name in now):
        return "sources changed since; run `windtunnel compile` again"
    return None


class Finder:
    """Finds the compiled form of the modules that have one."""

    def __init__(self) -> None:
        self.files = {name: HOME / f"{name}{SUFFIX}" for name in (*(f"windtunnel.{m}" for m in MODULES), GROUP)}

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        file = self.files.get(name)
        return None if file is None else spec_from_file_location(name, file, loader=ExtensionFileLoader(name, str(file)))


def install() -> None:
    """Let imports find the compiled form, if it is there and true. Called when the package is imported."""
    if BOOK.exists() and why_not() is None:
        sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]


def in_use() -> bool:
    """Does the compiled form run in this process?"""
    return any(isinstance(finder, Finder) for finder in sys.meta_path)
