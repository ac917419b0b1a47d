"""Arming: a typed phrase, caps, a checklist, and a lock so that one fleet is never driven by two worlds at once."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from windtunnel.errors import ArmRefusedError
from windtunnel.live.gate import Caps
from windtunnel.live.stopfile import holder_text, read_holder, state_home


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the preflight checklist. text: a sentence; for a red one, what is wrong."""

    name: str
    ok: bool
    text: str


def phrase_for(fleet: str, *, scaling: bool = False) -> str:
    """What has to be typed: `ARM <fleet>`, with scaling `ARM <fleet> SCALING`."""
    return f"ARM {fleet} SCALING" if scaling else f"ARM {fleet}"


def check_consent(fleet: str, phrase: str | None, caps: Caps | None, *, scaling: bool = False) -> Caps:
    """The caps, if the phrase is exact and they bound what is asked for; raises ArmRefusedError."""
    expected = phrase_for(fleet, scaling=scaling)
    if phrase != expected:
        got = "no phrase" if phrase is None else f"{phrase[:80]!r}"
        raise ArmRefusedError(f'arming needs the phrase "{expected}", got {got}')
    if caps is None:
        raise ArmRefusedError("arming needs caps", hint="caps=Caps(max_in_flight=8)")
    if scaling and caps.max_replicas is None:
        raise ArmRefusedError("arming with scaling needs the cap max_replicas", hint="caps=Caps(max_in_flight=8, max_replicas=4)")
    return caps


def dry_run_check(dry_s: float, min_dry_run_s: float, errors: int, last: Exception | None) -> Check:
    """Has the run gone dry for long enough, without an error of the control?"""
    text = f"dry run of {dry_s:.0f} s without an error of the control"
    if errors:
        text = f"the control raised {errors} times in dry run, last: {last}"
    elif dry_s < min_dry_run_s:
        text = f"dry run of {dry_s:.0f} s is too short; {min_dry_run_s:g} s are asked for"
    return Check("dry run", not errors and dry_s >= min_dry_run_s, text)


def refuse_if_red(checks: Sequence[Check]) -> None:
    """Raise ArmRefusedError with the sentence of every red line."""
    red = [c.text for c in checks if not c.ok]
    if red:
        raise ArmRefusedError("not armed: " + "; ".join(red))


class FleetLock:
    """One armed world per fleet on this machine. The lock dies with its process, so a dead holder never blocks."""

    def __init__(self, fleet: str, run: str) -> None:
        self.path: Path = state_home() / "fleets" / f"{fleet}.lock"
        self._fleet, self._run = fleet, run
        self._fd: int | None = None
        self.note = ""  # who was taken over, if anyone

    @property
    def held(self) -> bool:
        return self._fd is not None

    def take(self) -> None:
        """Raises ArmRefusedError naming the holder. Taking twice is fine."""
        if self._fd is not None:
            return
        before = read_holder(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ArmRefusedError(f"cannot write the fleet's lock {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            who = f"run {before.get('run')!r} (process {before.get('pid')} on {before.get('host')})" if before else "another world"
            raise ArmRefusedError(f'the fleet "{self._fleet}" is already armed by {who}') from None
        if before:
            self.note = f"took over from run {before.get('run')!r} (process {before.get('pid')}), which is dead"
        os.ftruncate(fd, 0)
        os.write(fd, holder_text(run=self._run).encode())
        self._fd = fd

    def release(self) -> None:
        """Never raises."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        try:
            os.ftruncate(fd, 0)  # emptied, not removed: a lock file that is replaced can be held twice
        finally:
            os.close(fd)
