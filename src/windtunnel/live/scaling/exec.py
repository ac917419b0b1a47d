"""Local engine processes from a command template. Only children that were started here are ever signalled."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from windtunnel.errors import ConfigValueError
from windtunnel.live.fleet import Endpoint

WORDS = ("{port}", "{index}", "{name}")
LOG_TAIL_BYTES = 4000


class ExecLauncher:
    """One process per replica, in a process group of its own.

    command: a template; `{port}` (a free one), `{index}` and `{name}` are filled in. url: the same for its address.
    kill_grace_s: from SIGTERM to SIGKILL. logs: folder for `<name>.log`. Raises ConfigValueError for a template without `{port}`.
    """

    def __init__(self, pool: str, command: str | Sequence[str], *, engine: str, url: str = "http://127.0.0.1:{port}", model: str = "",
                 role: str = "agg", slots: int | None = None, options: Mapping[str, Any] | None = None, kill_grace_s: float = 10.0,
                 logs: Path | None = None, env: Mapping[str, str] | None = None) -> None:
        self._command = shlex.split(command) if isinstance(command, str) else list(command)
        if not self._command or not any("{port}" in word for word in self._command):
            raise ConfigValueError(f"pools.{pool}.scaling.command", "expected a command with {port} in it")
        if "{port}" not in url:
            raise ConfigValueError(f"pools.{pool}.scaling.url", "expected an address with {port} in it")
        self._pool, self._engine, self._url, self._model, self._role, self._slots = pool, engine, url, model, role, slots
        self._options, self._kill_grace_s, self._env = dict(options or {}), kill_grace_s, dict(env or {})
        self._logs = logs
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def launch(self, name: str, ordinal: int) -> Endpoint:
        port = free_port()
        words = {"{port}": str(port), "{index}": str(ordinal), "{name}": name}
        out: Any = subprocess.DEVNULL
        if self._logs is not None:
            self._logs.mkdir(parents=True, exist_ok=True)
            out = (self._logs / f"{name}.log").open("wb")
        try:
            self._children[name] = subprocess.Popen([_filled(w, words) for w in self._command], stdin=subprocess.PIPE, stdout=out, stderr=out,
                                                    start_new_session=True, env={**os.environ, **self._env})
        finally:
            if self._logs is not None:
                out.close()
        url = _filled(self._url, words)
        return Endpoint(name, self._pool, self._engine, self._model, url, url, self._role, 1.0, self._slots, self._options)

    def alive(self, name: str) -> bool:
        child = self._children.get(name)
        return child is not None and child.poll() is None

    def log_tail(self, name: str) -> str:
        """The end of a replica's log; empty without a folder for logs."""
        path = None if self._logs is None else self._logs / f"{name}.log"
        return path.read_bytes()[-LOG_TAIL_BYTES:].decode("utf-8", "replace") if path is not None and path.exists() else ""

    async def end(self, name: str) -> None:
        """SIGTERM, then SIGKILL after the grace; returns when the child is gone."""
        child = self._children.pop(name, None)
        if child is None:
            return
        _signal(child, signal.SIGTERM)
        until = asyncio.get_running_loop().time() + self._kill_grace_s
        while child.poll() is None and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.05)
        if child.poll() is None:
            _signal(child, signal.SIGKILL)
            while child.poll() is None:
                await asyncio.sleep(0.05)
        if child.stdin is not None:
            child.stdin.close()


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _filled(text: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, number)  # its own group: started as a session leader
