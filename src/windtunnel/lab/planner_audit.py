"""The planner's audit file: an export of what the planner noted during a run, one record a line. Not a second recorder.

Line 1 is a header: format, run, digest of the settings, wall-clock start. Lines have sorted keys, so runs of equal scenarios give equal
bytes after the start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from windtunnel.lab import codec
from windtunnel.lab.planner_log import AUDIT_VERSION, PlannerLog, planner_log

if TYPE_CHECKING:
    from windtunnel.lab.run import Run

HIDDEN = ("endpoint", "token", "secret", "password", "key", "cert", "auth", "listen", "tls", "url")


def write_audit(run: Run, path: str | Path, *, started_at: str | None = None) -> Path:
    """Write the audit of a run; started_at: wall-clock start for the header, None: the run's own. Raises as `planner_log`."""
    found = planner_log(run)
    out = Path(path)
    out.parent.mkdir(parents=True, exist_ok=True)
    header = {"v": AUDIT_VERSION, "kind": "header", "planner": found.kind, "run_id": run.id, "settings_sha256": settings_digest(found.settings),
              "started_at": run.meta.started_at if started_at is None else started_at}
    out.write_bytes(codec.canonical(header) + b"".join(lines(found)))
    return out


def lines(found: PlannerLog) -> list[bytes]:
    """The records as lines of JSON. What a record does not have (plugin, component) is left out."""
    made = []
    for e in found.entries:
        names = {name: value for name, value in (("plugin_id", e.plugin_id), ("component", e.component)) if value}
        made.append(codec.canonical({**e.data, **names, "v": AUDIT_VERSION, "seq": e.seq, "t": e.t, "tick": e.tick, "kind": e.kind}))
    return made


def settings_digest(settings: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the settings as sorted JSON; keys that may hold secrets or addresses are left out."""
    return hashlib.sha256(codec.canonical(_shown(settings))).hexdigest()


def _shown(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _shown(v) for k, v in value.items() if not any(k == word or k.endswith(f"_{word}") for word in HIDDEN)}
    return [_shown(v) for v in value] if isinstance(value, list | tuple) else value
