"""The command line: every command is one call of the public API. stdout holds the result only; the rest goes to stderr.

Exit codes: 0 fine, 1 a check failed, 2 usage or configuration, 3 trace or run data, 4 engine, 5 policy, 6 arming refused, 70 a bug,
130 interrupted, 143 terminated. `--json` prints one document {"windtunnel_json": 1, "command", "ok", "result" or "error", "warnings"}.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cyclopts import App, CycloptsError, Parameter

from windtunnel.errors import WindtunnelError

BUG, INTERRUPTED, TERMINATED = 70, 130, 143
COMMON = "Every command takes `--json` (one JSON document on stdout) and `--quiet` (no progress)."


@dataclass(slots=True)
class Answer:
    """What a command gives back: plain data for --json, text for people, and the exit code."""

    result: Mapping[str, Any]
    text: str = ""
    code: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class Options:
    """Switches that every command takes."""

    json: bool = False
    quiet: bool = False
    said: list[str] = field(default_factory=list)

    @property
    def progress(self) -> bool:
        """Progress lines are for a person at a terminal."""
        silenced = any(os.environ.get(word) for word in ("CI", "PYTEST_CURRENT_TEST", "WINDTUNNEL_QUIET"))
        return not (self.json or self.quiet or silenced or os.environ.get("TERM") == "dumb") and sys.stderr.isatty()


options = Options()


def version() -> str:
    """"windtunnel 0.1.0, code 3f9c21ab": the digest covers the sources that decide what a simulation gives."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        number = installed("windtunnel")
    except PackageNotFoundError:
        number = "unknown"
    from windtunnel import compiled

    form = "compiled" if compiled.in_use() else "plain Python"
    return f"windtunnel {number}, code {code_digest()[:8]}, {form}"


def code_digest() -> str:
    """SHA-256 over the sources of policy, sources and sim (hex)."""
    from windtunnel.lab.digest import code_digest as digest

    return digest()


app = App(name="windtunnel", help="Simulate fleets of LLM inference engines, and drive real ones with the same control.", version=version,
          help_epilogue=COMMON, help_format="markdown", default_parameter=Parameter(negative=()), result_action="return_value")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `windtunnel` command; exits with the command's code."""
    sys.exit(run_cli(list(sys.argv[1:] if argv is None else argv)))


def run_cli(tokens: list[str]) -> int:
    """Run one command line and return its exit code."""
    _register()
    options.json, options.quiet, options.said = "--json" in tokens, "--quiet" in tokens, []
    tokens = [t for t in tokens if t not in ("--json", "--quiet")]
    command = _name(tokens)
    try:
        with _warnings():
            answer = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        if isinstance(answer, Answer):
            _print_answer(command, answer)
            return answer.code
        return 0
    except CycloptsError as error:
        known = "" if str(error).startswith("Unknown command") else command
        return _fail(command, "UsageError", _one_line(str(error)), f"see {' '.join(['windtunnel', known]).strip()} --help", "", 2)
    except WindtunnelError as error:
        return _fail(command, type(error).__name__, error.message, error.hint, error.where, error.exit_code)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read us has seen enough
            return 0
        if error.filename is None:
            return _bug(command, error)
        return _fail(command, "ConfigFileError", error.strerror or str(error), "name another file or directory", str(error.filename), 2)
    except KeyboardInterrupt:
        return _fail(command, "Interrupted", "interrupted", "", "", INTERRUPTED)
    except Exception as error:
        return _bug(command, error)


def _bug(command: str, error: Exception) -> int:
    traceback.print_exception(error, file=sys.stderr)
    text = f"this is a bug in windtunnel: {type(error).__name__}: {error}"
    return _fail(command, type(error).__name__, text, "please report it with the traceback above", "", BUG)


def _register() -> None:
    """The commands live by topic; importing the topics registers them, and each imports what it needs only when it runs."""
    from windtunnel import cli_calibrate, cli_live, cli_planner, cli_run, cli_sweep, cli_tools

    del cli_calibrate, cli_live, cli_planner, cli_run, cli_sweep, cli_tools


def _name(tokens: Sequence[str]) -> str:
    words: list[str] = []
    for token in tokens[:2]:
        if token.startswith("-") or (words and words[0] not in ("scenario", "trace", "engine", "planner")):
            break
        words.append(token)
    return " ".join(words)


@contextlib.contextmanager
def _warnings() -> Iterator[None]:
    """Python warnings of our own code become lines on stderr and entries of the JSON document."""
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        options.said.append(str(message))
        print(f"warning: {message}", file=sys.stderr)

    warnings.showwarning = show  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.showwarning = shown


def _print_answer(command: str, answer: Answer) -> None:
    if options.json:
        said = [*options.said, *answer.warnings]
        print(document({"command": command, "ok": answer.code == 0, "result": answer.result, "warnings": said}))
    elif answer.text:
        print(answer.text)
    sys.stdout.flush()


def _fail(command: str, kind: str, message: str, hint: str, where: str, code: int) -> int:
    if options.json:
        error = {"type": kind, "message": message, "hint": hint, "where": where}
        print(document({"command": command, "ok": False, "error": error, "result": None, "warnings": options.said}), flush=True)
    else:
        text = f"{where}: {message}" if where else message
        print(f"windtunnel: {text}" + (f"; {hint}" if hint else ""), file=sys.stderr)
    return code


def document(data: Mapping[str, Any]) -> str:
    """One JSON document: sorted keys, no NaN (null), infinity as "inf"."""
    return json.dumps(plain({"windtunnel_json": 1, **data}), sort_keys=True, ensure_ascii=False, indent=2, allow_nan=False)


def plain(value: Any) -> Any:
    """JSON-ready data from mappings, sequences, NumPy and pandas scalars."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()
    if isinstance(value, float):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf") if math.isinf(value) else value
    return value if value is None or isinstance(value, (str, int, bool)) else (None if str(value) == "<NA>" else str(value))


def _one_line(text: str) -> str:
    return " ".join(text.split()).removesuffix(".")


def say(text: str) -> None:
    """A line for a person, on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":  # as `python -m windtunnel.cli`: the commands register at the module of that name, not at this copy
    from windtunnel.cli import main as command

    command()
