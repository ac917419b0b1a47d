"""The stop that works from any terminal: a file `STOP` in the run's state directory.

`$XDG_STATE_HOME/windtunnel/<run>/` (default `~/.local/state`) holds `run.json` while the run lives. Creating `STOP` there ends it;
a `STOP` with the word `cut` in it also ends the streams in flight.
"""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path
from typing import Any

from windtunnel.errors import ConfigFileError, ConfigValueError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def state_home() -> Path:
    """Where runs keep their state: `$XDG_STATE_HOME/windtunnel`, made on demand by whoever writes there."""
    root = os.environ.get("XDG_STATE_HOME", "")
    return (Path(root) if root.startswith("/") else Path.home() / ".local" / "state") / "windtunnel"


def check_name(field: str, name: str) -> str:
    """The name, if it can be a folder's: letters, digits, `.`, `_`, `-`; raises ConfigValueError."""
    if not _NAME.fullmatch(name):
        raise ConfigValueError(field, f"expected letters, digits, '.', '_' or '-', got {name!r}")
    return name


def alive(holder: dict[str, Any]) -> bool:
    """Does the process that wrote {pid, host} still run? One on another host counts as alive: it cannot be asked."""
    if holder.get("host") != socket.gethostname():
        return bool(holder.get("host"))
    try:
        os.kill(int(holder["pid"]), 0)
    except PermissionError:
        return True
    except (KeyError, ValueError, TypeError, OSError):
        return False
    return True


def read_holder(path: Path) -> dict[str, Any]:
    """The JSON object in this file, or {} if there is none to be read."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def holder_text(**more: Any) -> str:
    """JSON that says which process holds a run: pid, host, and more."""
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), **more}, sort_keys=True) + "\n"


class StopFile:
    """One run's state directory. Raises ConfigValueError for a name in use, ConfigFileError if the directory cannot be made."""

    def __init__(self, run: str) -> None:
        self.run = check_name("name", run)
        self.dir = state_home() / run
        self.path = self.dir / "STOP"

    def open(self) -> None:
        """Announce the run; a `STOP` left by a run that is over is removed."""
        holder = read_holder(self.dir / "run.json")
        if holder and alive(holder):
            who = f"process {holder.get('pid')} on {holder.get('host')}"
            raise ConfigValueError("name", f"a run named {self.run!r} is already driven by {who}")
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)
            (self.dir / "run.json").write_text(holder_text(run=self.run), "utf-8")
        except OSError as error:
            raise ConfigFileError(f"cannot write the run's state: {error.strerror}", where=str(self.dir),
                                  hint="set XDG_STATE_HOME to a folder that can be written") from error

    def asked(self) -> str | None:
        """None, "stop" or "cut". Cheap; never raises."""
        try:
            return "cut" if b"cut" in self.path.read_bytes()[:16] else "stop"
        except FileNotFoundError:
            return None
        except OSError:
            return "stop"  # a STOP that is there but cannot be read is still a STOP

    def close(self) -> None:
        """The run is over: forget it. Never raises."""
        for path in (self.path, self.dir / "run.json"):
            try:
                path.unlink(missing_ok=True)
            except OSError:
                return
        try:
            self.dir.rmdir()
        except OSError:
            return


def running() -> list[dict[str, Any]]:
    """The live runs of this user: [{run, pid, host}], by name."""
    holders = [read_holder(p) for p in sorted(state_home().glob("*/run.json"))]
    return [h for h in holders if h and alive(h)]


def request_stop(run: str | None = None, *, cut: bool = False) -> list[str]:
    """Ask one run, or all of this user, to stop; returns the names asked. Raises ConfigValueError if there is no such run."""
    names = [str(h.get("run")) for h in running()]
    if run is not None:
        if check_name("run", run) not in names:
            raise ConfigValueError("run", f"no live run named {run!r}; running: {', '.join(names) or 'none'}")
        names = [run]
    for name in names:
        (state_home() / name / "STOP").write_text("cut\n" if cut else "", "utf-8")
    return names
