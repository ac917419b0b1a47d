"""What every benchmark's JSON says beside its numbers: versions, machine, load."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from windtunnel import compiled

PACKAGES = ("windtunnel", "simpy", "numpy", "pandas", "pyarrow")


def write(path: Path | None, speed: Mapping[str, Any], simulated: Mapping[str, Any]) -> None:
    """`speed` and `simulated` with versions, machine and the load average (1 min) as JSON; nothing without a path."""
    if path is None:
        return
    processor = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    told = {
        "speed": speed, "simulated": simulated, "form": "compiled" if compiled.in_use() else "plain Python",
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "machine": {"processor": processor[0] if processor else platform.machine(), "cores": os.cpu_count()},
        "load_average": os.getloadavg()[0],
    }
    path.write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
