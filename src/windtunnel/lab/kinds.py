"""Pydantic models made from the config dataclasses, so that a scenario's keys and a policy's fields are one list."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, create_model, model_validator
from pydantic_core import CoreSchema, PydanticCustomError

from windtunnel.errors import ConfigValueError, PlannerConfigError
from windtunnel.events import PRIORITIES
from windtunnel.lab import registry
from windtunnel.policy.param import Param


class Spec(BaseModel):
    """A part of a scenario: unknown keys are errors, values are finite, objects never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def refused(error: ConfigValueError | PlannerConfigError) -> PydanticCustomError:
    """What a config class refused, on its way through pydantic to the sentence with file and line."""
    if isinstance(error, PlannerConfigError):
        return planner_refused(error, own=True)
    text = error.message.removeprefix(f"{error.field}: ")
    names = {str(number): name for name, number in PRIORITIES.items()}
    parts = error.field.split(".")
    if len(parts) > 1 and parts[-2].endswith("_by_class"):
        parts[-1] = names.get(parts[-1], parts[-1])
    return PydanticCustomError("config", "{text}", {"text": text, "field": ".".join(parts)})


def planner_refused(error: PlannerConfigError, *, own: bool) -> PydanticCustomError:
    """The same for "planner.block.field: why". own: the block itself refused, its path is known; else the whole planner did."""
    path, colon, text = error.message.partition(": ")
    if not colon or not path.startswith("planner."):
        return PydanticCustomError("config", "{text}", {"text": error.message, "field": ""})
    return PydanticCustomError("config", "{text}", {"text": text, "field": path.rpartition(".")[2] if own else path.removeprefix("planner.")})


class DataclassSpec(Spec):
    """A part whose keys are the fields of a dataclass; `config()` makes that dataclass."""

    of: ClassVar[type[Any]]

    @model_validator(mode="after")
    def _accepted(self) -> DataclassSpec:
        try:
            self.config()
        except (ConfigValueError, PlannerConfigError) as e:
            raise refused(e) from None
        return self

    def config(self) -> Any:
        """The dataclass with these values."""
        names = [f.name for f in dataclasses.fields(self.of) if f.name in type(self).model_fields]
        return self.of(**{name: _plain(getattr(self, name)) for name in names})


def _plain(value: Any) -> Any:
    if isinstance(value, DataclassSpec):
        return value.config()
    if isinstance(value, Mapping) and value and set(value) <= set(PRIORITIES):
        return {PRIORITIES[k]: v for k, v in value.items()}
    return value


def spec_of(cls: type[Any], kind: str = "", section: str = "", skip: tuple[str, ...] = ()) -> type[Any]:
    """The model of a dataclass, or of a Spec that is its own. kind: adds `kind: Literal[kind]`; section: adds the section's wrapper blocks as
    optional keys; skip: fields that keep their defaults. One model per set of arguments, until `forget`.
    """
    key = (cls, kind, section, skip)
    if key not in _models:
        _models[key] = _own(cls, kind) if issubclass(cls, Spec) else _model(cls, kind, section, skip)
    return _models[key]


def forget() -> None:
    """Make every model anew when it is next asked for: wrappers or kinds have changed."""
    _models.clear()


_models: dict[tuple[type[Any], str, str, tuple[str, ...]], type[Any]] = {}


def _own(cls: type[Spec], kind: str) -> type[Spec]:
    fields: dict[str, Any] = {"kind": (Literal[kind], ...)}
    return create_model(f"{cls.__name__}Block", __base__=cls, __doc__=cls.__doc__, **fields)  # type: ignore[no-any-return]


def _model(cls: type[Any], kind: str, section: str, skip: tuple[str, ...]) -> type[DataclassSpec]:
    hints = typing.get_type_hints(cls, include_extras=True)
    fields: dict[str, Any] = {}
    if kind:
        fields["kind"] = (Literal[kind], ...)
    for f in dataclasses.fields(cls):
        if f.init and f.name not in skip:
            fields[f.name] = (_annotation(hints[f.name]), _field(f, hints[f.name]))
    for name, wrapper in registry.wrappers(section).items():
        fields[name] = (spec_of(wrapper) | None, None)
    title = f"{cls.__name__}{'Block' if section else 'Spec'}"
    model = create_model(title, __base__=DataclassSpec, __doc__=(cls.__doc__ or "").strip().split("\n")[0], **fields)
    model.of = cls
    return model


def _field(f: dataclasses.Field[Any], hint: Any) -> Any:
    param = next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Param)), Param())
    # The range is that of a slider, not of validity: an editor must not call a value outside it wrong.
    known = (("x-unit", param.unit), ("x-range", [param.lo, param.hi]), ("x-step", param.step))
    extra = {key: value for key, value in known if value not in ("", [None, None], None)}
    words: dict[str, Any] = {"title": param.label or None, "description": param.help or None, "json_schema_extra": extra or None}
    value = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
    if value is dataclasses.MISSING:
        return Field(..., **words)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        model, given = spec_of(type(value)), dataclasses.asdict(value)
        return Field(default_factory=lambda: model(**given), **words)
    return Field(default=_named(value) if isinstance(value, Mapping) else value, **words)


def _named(value: Mapping[Any, Any]) -> dict[Any, Any]:
    names = {v: k for k, v in PRIORITIES.items()}
    return {names.get(k, k) if isinstance(k, int) else k: v for k, v in value.items()}


def _annotation(hint: Any) -> Any:
    """The dataclass's type as the scenario takes it: nested dataclasses as mappings, classes of priority by name, choices closed."""
    if typing.get_origin(hint) is Annotated:
        inner, *metadata = typing.get_args(hint)
        choices = next((m.choices for m in metadata if isinstance(m, Param) and m.choices), ())
        return Literal[choices] if choices and inner is str else _annotation(inner)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return spec_of(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return Union[tuple(_annotation(a) for a in args)]  # noqa: UP007
    if isinstance(origin, type) and issubclass(origin, Mapping):
        key = Literal[tuple(PRIORITIES)] if args[0] is int else args[0]
        return dict[key, _annotation(args[1])]  # type: ignore[valid-type, misc]
    return hint


class Kinds:
    """Annotation of a field that holds one of a registry section's kinds: `Annotated[Any, Kinds("queue")]`.

    The union is made when the model is built, from what is registered by then.
    """

    def __init__(self, section: str) -> None:
        self.section = section

    def models(self) -> list[type[Any]]:
        return [spec_of(cls, kind, self.section) for kind, cls in registry.kinds(self.section).items()]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        models = self.models()
        if len(models) == 1:
            return handler.generate_schema(models[0])
        return handler.generate_schema(Annotated[Union[tuple(models)], Field(discriminator="kind")])  # noqa: UP007
