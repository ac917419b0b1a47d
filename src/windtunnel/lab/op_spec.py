"""Operations on traces as a scenario writes them: {window: {t0: 0, t1: 600}}, {rate_scale: 9.0}, {assign_tenants: {a: 0.7, b: 0.3}}."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, create_model, model_serializer, model_validator

from windtunnel.errors import ConfigValueError
from windtunnel.lab import locate
from windtunnel.lab.kinds import DataclassSpec, Spec, refused, spec_of
from windtunnel.sources.traces.choose import Splice
from windtunnel.sources.traces.open import Operation, open_trace
from windtunnel.sources.traces.ops import BARE, OPERATIONS


class SpliceSpec(Spec):
    """The trace before `at` (s), then another file's rows."""

    path: str
    at: float
    format: Literal["auto", "mooncake", "azure", "lengths", "own", "agentic"] = "auto"


class OneOp(Spec):
    """One operation: a mapping with one key, its name."""

    @model_validator(mode="after")
    def _one(self) -> OneOp:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected one operation, as in {{window: {{t0: 0, t1: 600}}}}; got {len(given)}")
        try:
            self.operation(None)
        except ConfigValueError as e:
            raise refused(e) from None
        return self

    @model_serializer(mode="wrap")
    def _only_the_one(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in handler(self).items() if v is not None}

    def operation(self, base: Path | None) -> Operation | None:
        """The operation; base: folder that a file's path is beside (None: without opening files)."""
        name, given = next((n, v) for n in type(self).model_fields if (v := getattr(self, n)) is not None)
        if isinstance(given, SpliceSpec):
            return None if base is None else Splice(open_trace(locate.data_file(given.path, base), given.format), given.at)
        made: Operation = given.config() if isinstance(given, DataclassSpec) else OPERATIONS[name](given)
        return made


def _field(name: str, cls: type[Any]) -> Any:
    if name == "splice":
        return SpliceSpec | None
    full = spec_of(cls)
    first = dataclasses.fields(cls)[0]
    annotation = full.model_fields[first.name].annotation
    if name in BARE:
        return annotation | None  # type: ignore[operator]
    return full | annotation | None  # type: ignore[operator]


_FIELDS: dict[str, Any] = {name: (_field(name, cls), None) for name, cls in OPERATIONS.items()}
OpSpec: Any = create_model("OpSpec", __base__=OneOp, __doc__=OneOp.__doc__, **_FIELDS)
