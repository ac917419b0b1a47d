"""Everything that windtunnel raises on purpose; the name says whose fault it is.

```
WindtunnelError                       .message .hint .where                      exit code
├─ ConfigError                        the user's file, option or set-up           2
│  ├─ ConfigValueError ConfigUnknownKeyError ConfigFileError ConfigImportError ConfigMetricError
│  ├─ ConfigInfeasibleError ConfigNeedsError ConfigUnknownModelError ConfigTableMissError
│  ├─ ConfigSchedulingError ConfigPipelineError
│  ├─ PlannerConfigError
│  └─ ExtraMissingError               which extra to install
├─ TraceError: TraceFormatError TraceRowError TraceEmptyError                     3
├─ RunError: RunCorruptError RunVersionError RunReplayError(1) RunNotRecordedError SweepFailedError  3
├─ EngineError: EngineBusyError EngineStoppedError EngineUnavailableError          4
│  └─ ScalerError: ScalerRefused ScalerUnavailable
├─ PolicyError                        a policy broke its contract                  5
│  ├─ PolicyClockError PolicyStaleViewError PolicyDeniedError ModelStepTimeError
│  ├─ PlanContractError PluginRefusedError
│  └─ PluginCallError: PluginTimeoutError PluginConnectionError PluginUnknownMethodError PluginSerializationError PluginRaisedError
└─ ArmRefusedError                                                               6
```
Anything else that escapes is a bug (exit code 70).
"""

from __future__ import annotations

import traceback as _traceback


class WindtunnelError(Exception):
    """A mistake that can be named in one sentence.

    message: one sentence: where, what is wrong, what was got, what to write; hint: what to do next, or "";
    where: file, line or dotted path, or "".
    """

    exit_code = 70

    def __init__(self, message: str, *, hint: str = "", where: str = "") -> None:
        self.message, self.hint, self.where = message, hint, where
        super().__init__(message)

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}; {self.hint}" if self.hint else text

    def traceback(self) -> str:
        """The full traceback, for whoever wants more than the sentence."""
        return "".join(_traceback.format_exception(self))

    def _render_traceback_(self) -> list[str]:
        # IPython calls this hook: a failed cell shows the sentence, not the stack (the cell still fails).
        return [f"{type(self).__name__}: {self}"]


class ConfigError(WindtunnelError):
    """The user's file, option or set-up."""

    exit_code = 2


class ConfigValueError(ConfigError):
    """A field has a value it must not have."""

    def __init__(self, field: str, message: str, *, where: str = "", hint: str = "") -> None:
        self.field = field
        super().__init__(f"{field}: {message}" if field else message, where=where, hint=hint)


class ConfigUnknownKeyError(ConfigError):
    """A key that nothing reads; silently dropping it would change results."""

    def __init__(self, path: str, key: str, *, did_you_mean: str | None = None, known: tuple[str, ...] = (), where: str = "") -> None:
        self.path, self.key, self.did_you_mean = path, key, did_you_mean
        dotted = f"{path}.{key}" if path else key
        hint = f'did you mean "{did_you_mean}"?' if did_you_mean else (f"known keys: {', '.join(known)}" if known and len(known) <= 8 else "")
        super().__init__(f"{dotted}: unknown key", where=where, hint=hint)


class ConfigFileError(ConfigError):
    """A file that cannot be found or read. file: as it is named in a scenario, or ""."""

    file = ""


class ConfigImportError(ConfigError):
    """A policy class that must not or cannot be imported."""


class ConfigMetricError(ConfigError):
    """A metric expression that means nothing."""


class ConfigInfeasibleError(ConfigError):
    """What cannot run is refused before the run starts, with the arithmetic."""


class ConfigNeedsError(ConfigError):
    """A policy needs an observation that this world cannot give."""

    def __init__(self, need: str, policy: str, world: str, *, hint: str = "") -> None:
        self.need, self.policy, self.world = need, policy, world
        super().__init__(f'{policy} needs "{need}", which the {world} world does not give', hint=hint)


class ConfigUnknownModelError(ConfigError):
    """A model or GPU that is not in the catalogue."""

    def __init__(self, kind: str, name: str, close: list[str], *, where: str = "") -> None:
        options = " or ".join(f'"{c}"' for c in close)
        super().__init__(f'unknown {kind} "{name}"', where=where, hint=f"did you mean {options}?" if close else "")


class ConfigTableMissError(ConfigError):
    """A measured table has no entry for what was asked."""


class ConfigSchedulingError(ConfigError):
    """Scheduling metadata of a pipeline's column that mean nothing. code: invalid_kind, invalid_identity or invalid_weight."""

    def __init__(self, code: str, message: str, *, where: str = "", hint: str = "") -> None:
        self.code = code
        super().__init__(message, where=where, hint=hint)


class ConfigPipelineError(ConfigError):
    """A pipeline whose columns or row groups do not fit together: a cycle, an unknown column, a wrong size."""


class PlannerConfigError(ConfigError):
    """The planner's block."""


class ExtraMissingError(ConfigError):
    """A feature whose optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f"{what} needs the extra {extra!r}", hint=f'pip install "windtunnel[{extra}]"')


class TraceError(WindtunnelError):
    """A trace file."""

    exit_code = 3


class TraceFormatError(TraceError):
    """No reader recognises the file."""


class TraceRowError(TraceError):
    """One row of a trace; `line` counts from 1, the header included.

    `code` is one of row.json row.key row.type row.missing row.range row.time row.blocks row.both.
    """

    def __init__(self, path: str, line: int, field: str, code: str, message: str) -> None:
        self.path, self.line, self.field, self.code = path, line, field, code
        super().__init__(f"{field}: {message} [{code}]" if field else f"{message} [{code}]", where=f"{path}:{line}")


class TraceEmptyError(TraceError):
    """A trace without a single row."""


class RunError(WindtunnelError):
    """A saved run."""

    exit_code = 3


class RunCorruptError(RunError):
    """A file of a saved run is missing, altered or damaged."""


class RunVersionError(RunError):
    """Written by a newer windtunnel."""


class RunReplayError(RunError):
    """A replayed control decided differently: `seq` and `index` say where, `field` what, `recorded` and `replayed` the two sides."""

    exit_code = 1

    def __init__(self, message: str, *, seq: int, index: int, field: str, recorded: str, replayed: str) -> None:
        self.seq, self.index, self.field, self.recorded, self.replayed = seq, index, field, recorded, replayed
        super().__init__(message)


class RunNotRecordedError(RunError):
    """A table that this run's record level does not hold."""


class SweepFailedError(RunError):
    """Not one point of a sweep came to an end."""


class EngineError(WindtunnelError):
    """A real engine."""

    exit_code = 4


class EngineBusyError(EngineError):
    """The engine must be idle for this."""


class EngineStoppedError(EngineError):
    """The world was stopped; it takes nothing more."""


class EngineUnavailableError(EngineError):
    """Nothing that looks like an engine answers at this address."""


class ScalerError(EngineError):
    """A connector that changes the number of replicas."""


class ScalerRefused(ScalerError):
    """The orchestrator said no; nothing has changed."""


class ScalerUnavailable(ScalerError):
    """The orchestrator gave no answer: nobody knows what became of the plan."""


class PolicyError(WindtunnelError):
    """A policy broke its contract."""

    exit_code = 5


class PolicyClockError(PolicyError):
    """A policy was called with a `now` before the last one."""


class PolicyStaleViewError(PolicyError):
    """A queue view was used after the queue changed."""


class PolicyDeniedError(PolicyError):
    """Raised by helpers that wait, only; inside policies a denial is a value. denial: that value."""

    def __init__(self, message: str, *, denial: object = None) -> None:
        self.denial = denial
        super().__init__(message)


class ModelStepTimeError(PolicyError):
    """A step model gave a step time that is not finite and positive."""


class PlanContractError(PolicyError, ValueError):
    """A value that planner and plugins exchange is not what the contract says; names the dotted path."""


class PluginRefusedError(PolicyError):
    """A planner plugin may not register; the message is the refusal's word and why."""


class PluginCallError(PolicyError):
    """A call of a planner plugin gave no answer. `kind` is the word of it in records and metrics."""

    kind = "raised"


class PluginTimeoutError(PluginCallError):
    """No answer in time."""

    kind = "timeout"


class PluginConnectionError(PluginCallError):
    """The plugin cannot be reached, or went away."""

    kind = "connection"


class PluginUnknownMethodError(PluginCallError):
    """The plugin does not implement its stage."""

    kind = "unknown_method"


class PluginSerializationError(PluginCallError):
    """A message that cannot be read as what it should be."""

    kind = "serialization"


class PluginRaisedError(PluginCallError):
    """The plugin's own code raised."""


class ArmRefusedError(WindtunnelError):
    """The world was not armed: no effect will leave the process."""

    exit_code = 6
