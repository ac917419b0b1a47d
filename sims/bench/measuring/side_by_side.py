"""Other simulators beside this one: an environment for each, their runs on one file of requests, and ratios only where both did the same work."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
ENVIRONMENTS = Path(tempfile.gettempdir()) / "windtunnel-peers"
TOTALS = ("requests", "input_tokens", "output_tokens")


@dataclass(frozen=True)
class Peer:
    """Another simulator. requirement: its pinned package; script: what runs it; most: our CPU over its CPU, at most."""

    name: str
    requirement: str
    script: str
    most: float


PEERS = (Peer("vidur 0.0.26", "vidur==0.0.26", "vidur_replay.py", 0.03), Peer("dynamo replay 1.4.2", "ai-dynamo==1.4.2", "dynamo_replay.py", 0.5))


class PeerUnavailable(Exception):
    """The other simulator cannot be installed or run here; the message says why."""


def interpreter(peer: Peer, folder: Path = ENVIRONMENTS) -> Path:
    """The Python of the peer's environment under `folder`, made on first use. An environment that was not finished is made anew."""
    home = folder / peer.requirement.replace("==", "-")
    python, finished = home / "bin" / "python", home / "installed"
    if not finished.exists():
        venv.create(home, clear=True, with_pip=True)
        done = subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", peer.requirement],
                              capture_output=True, text=True, timeout=1800, check=False)
        if done.returncode:
            raise PeerUnavailable(f"{peer.requirement} cannot be installed: {_last_line(done.stderr)}")
        finished.touch()
    return python


def fly(peer: Peer, python: Path, requests: Path, *more: Path) -> dict[str, Any]:
    """`speed` (cpu_s) and `simulated` (requests, tokens, makespan) of one run in a process of its own. more: files that its script takes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        done = subprocess.run([python, HERE / "peers" / peer.script, requests, out, *more], capture_output=True, text=True, timeout=900, check=False)
        if done.returncode:
            raise PeerUnavailable(f"{peer.name} failed: {_last_line(done.stderr)}")
        return dict(json.loads(out.read_text()))


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """What was not the same work, in words; empty if all totals are equal. A total that is not told is a difference."""
    return ", ".join(f"{name} {theirs.get(name)} (ours {ours.get(name)})" for name in TOTALS
                     if theirs.get(name) is None or theirs.get(name) != ours.get(name))


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"no message from {sys.executable}"
