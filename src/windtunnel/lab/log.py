"""`log.jsonl`: a header, every event and effect as one JSON line each, an end line with the SHA-256 of all bytes before it.

`LogWriter` keeps the lines in memory (a simulated run) or appends them to a file from its own thread (a live one: batches of 0.25 s or
64 KiB, fsync each second and at the end, a new segment at 256 MiB). `LogReader` streams them back and repairs a torn tail.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from windtunnel.lab import codec
from windtunnel.lab.digest import code_digest
from windtunnel.lab.logread import LogReader, Step, segments_of

if TYPE_CHECKING:
    from windtunnel.lab.run_meta import RunMeta

VERSION = 1
FLUSH_S, FLUSH_BYTES, FSYNC_S, ROTATE_BYTES = 0.25, 64 << 10, 1.0, 256 << 20
__all__ = ["LogReader", "LogWriter", "Step", "header_of", "segments_of"]


def header_of(meta: RunMeta, control: Any) -> dict[str, Any]:
    """The header of a run's log: what a fresh control is built from. No secrets, no addresses."""
    return {
        "windtunnel_log": VERSION, "run_id": meta.run_id, "world": meta.world, "mode": meta.mode, "started_at": meta.started_at,
        "clock_zero": 0.0, "seed": meta.seed, "replication": meta.replication, "level": meta.record,
        "control": codec.plain(meta.control_spec), "control_class": f"{type(control).__module__}.{type(control).__qualname__}",
        "needs": sorted(control.needs), "scenario_digest": meta.scenario_digest, "code_digest": code_digest(),
        "first_seq": 1, "continues": False,
    }


class LogWriter:
    """Appends lines; one owner thread calls `step`, `error` and `close`.

    path: None keeps everything in memory. threaded: write from a thread of its own (live). `failure` is what the disk said, or None;
    `behind_s` how long the oldest unwritten line has been waiting: a live world stops when either is bad.
    """

    def __init__(self, header: Mapping[str, Any], path: Path | str | None = None, *, threaded: bool = False,
                 rotate_bytes: int = ROTATE_BYTES) -> None:
        self.header, self.path, self.rotate_bytes = dict(header), Path(path) if path is not None else None, rotate_bytes
        self.events = self.effects = self.seq = 0
        self.failure: OSError | None = None
        self.paths: list[Path] = []
        self._pending: list[bytes] = []
        self._kept: list[bytes] = []
        self._oldest: float | None = None
        self._lock, self._wake, self._closing = threading.Lock(), threading.Event(), False
        self._file: Any = None
        self._pending_bytes = 0
        self._counts = (0, 0)
        self._open_segment(self.header)
        self._thread: threading.Thread | None = None
        if threaded and self.path is not None:
            self._thread = threading.Thread(target=self._write_loop, name="windtunnel-log", daemon=True)
            self._thread.start()

    def step(self, seq: int, now: float, event: Any, effects: Sequence[Any], verdicts: Sequence[str | None] | None = None) -> None:
        """One handled event and its effects; verdicts: per effect None (applied) or the reason for which it was held back."""
        lines = [codec.canonical(codec.event_object(seq, now, event))]
        for i, effect in enumerate(effects):
            lines.append(codec.canonical(codec.effect_object(seq, i, effect, verdicts[i] if verdicts is not None else None)))
        self.events, self.effects, self.seq = self.events + 1, self.effects + len(effects), seq
        self._append(lines)

    def error(self, seq: int, now: float, event: Any, error: BaseException) -> None:
        """An event on which `handle` raised, and what it raised."""
        cause = error.__cause__ or error
        self.events, self.seq = self.events + 1, seq
        raised = {"c": seq, "x": type(cause).__name__, "m": str(cause)}
        self._append([codec.canonical(codec.event_object(seq, now, event)), codec.canonical(raised)])

    @property
    def behind_s(self) -> float:
        oldest = self._oldest
        return 0.0 if oldest is None else time.monotonic() - oldest

    def close(self) -> None:
        """Write what is pending and the end line, fsync. Idempotent."""
        if self._closing:
            return
        self._closing = True
        if self._thread is not None:
            self._wake.set()
            self._thread.join()
        self._drain()
        self._end_segment()
        self._sync()
        if self._file is not None:
            self._file.close()

    def data(self) -> bytes:
        """Everything written so far (memory only)."""
        return b"".join(self._kept)

    # -- inside -------------------------------------------------------------------------------------------------------------------

    def _append(self, lines: list[bytes]) -> None:
        size = sum(map(len, lines))
        with self._lock:
            self._pending.append(b"".join(lines))
            self._pending_bytes += size
            if self._oldest is None:
                self._oldest = time.monotonic()
        if self._pending_bytes >= FLUSH_BYTES:
            if self._thread is None:
                self._drain()
            else:
                self._wake.set()

    def _drain(self) -> None:
        """Whole lines only: a batch is what `_append` put there."""
        with self._lock:
            steps, self._pending, self._pending_bytes = self._pending, [], 0
        try:
            for i, step in enumerate(steps):
                if self._written + len(step) > self.rotate_bytes and self._written > self._head and self._file is not None:
                    self._rotate(int(codec.json.loads(step.split(b"\n", 1)[0])["s"]))
                self._put(step)
                steps[i] = b""
            if self._file is not None:
                self._file.flush()
            self._oldest = None if not self._pending else self._oldest
        except OSError as e:
            self.failure = e
            with self._lock:
                self._pending[:0] = [s for s in steps if s]

    def _put(self, data: bytes) -> None:
        self._hash.update(data)
        self._written += len(data)
        if self._file is None:
            self._kept.append(data)
        else:
            self._file.write(data)

    def _open_segment(self, header: Mapping[str, Any]) -> None:
        self._hash, self._written = hashlib.sha256(), 0
        if self.path is not None:
            n = len(self.paths)
            path = self.path if n == 0 else self.path.with_name(f"{self.path.stem}-{n:05d}{self.path.suffix}")
            self._file = path.open("wb")
            self.paths.append(path)
        self._put(codec.canonical(header))
        self._head = self._written

    def _rotate(self, first_seq: int) -> None:
        self._end_segment(first_seq - 1)
        self._sync()
        self._file.close()
        self._open_segment({**self.header, "first_seq": first_seq, "continues": True})

    def _end_segment(self, seq: int | None = None) -> None:
        end = self.seq if seq is None else seq
        try:
            self._put(codec.canonical({"end": end, "events": self.events, "effects": self.effects, "sha256": self._hash.hexdigest()}))
        except OSError as e:
            self.failure = e

    def _sync(self) -> None:
        if self._file is None:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as e:
            self.failure = e

    def _write_loop(self) -> None:
        synced = time.monotonic()
        while not self._closing:
            self._wake.wait(FLUSH_S)
            self._wake.clear()
            self._drain()
            if time.monotonic() - synced >= FSYNC_S:
                self._sync()
                synced = time.monotonic()
