"""Which engine servers this user started: one small file each, and how to tell and end their processes."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from windtunnel.live.stopfile import state_home

TERM_S = 5.0  # from asking a process to end to killing it


def folder() -> Path:
    """`$XDG_STATE_HOME/windtunnel/engines`."""
    return state_home() / "engines"


def state_file(port: int) -> Path:
    """What is known of the server at this port."""
    return folder() / f"{port}.json"


def forget(port: int) -> None:
    """Remove its state and its log."""
    state_file(port).unlink(missing_ok=True)
    state_file(port).with_suffix(".log").unlink(missing_ok=True)


def read_state(path: Path) -> dict[str, Any] | None:
    """None if the file cannot be read or its process is gone: a number used again by another process is not it."""
    try:
        state = json.loads(path.read_text("utf-8"))
        return state if state["started"] == started_at(state["pid"]) is not None else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def started_at(pid: int) -> str | None:
    """What tells this process from a later one with its number, or None if it is gone (a zombie is gone)."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else rest[18]


def end_process(pid: int) -> None:
    """Ask, then insist; returns when the process is gone."""
    known = started_at(pid)
    for word, patience_s in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, 1.0)):
        try:
            os.kill(pid, word)
        except ProcessLookupError:
            return
        until = time.monotonic() + patience_s
        while time.monotonic() < until:
            if started_at(pid) != known:
                return
            time.sleep(0.02)
