"""Distributions as a scenario writes them: a number, or {kind: lognormal, mean: 600, cv: 1.2}."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union

from pydantic import Field, create_model, model_validator

from windtunnel.errors import ConfigValueError
from windtunnel.lab import locate
from windtunnel.lab.kinds import Spec, refused
from windtunnel.sources.dist import KINDS, Dist, dist_of


class LawSpec(Spec):
    """One kind of distribution; its keys are those of `sources.dist.KINDS`."""

    from_file: ClassVar[bool] = False

    @model_validator(mode="after")
    def _accepted(self) -> LawSpec:
        data = self.model_dump(exclude_none=True)
        if self.from_file and ("file" in data) == ("values" in data):
            raise ValueError("expected either values or file, and not both")
        if "file" not in data:
            try:
                dist_of(data, "")
            except ConfigValueError as e:
                raise refused(e) from None
        return self


def _law(kind: str) -> type[LawSpec]:
    cls, names = KINDS[kind]
    hints = typing.get_type_hints(cls)
    required = set(cls.__match_args__) - {k for k in cls.__dataclass_fields__ if cls.__dataclass_fields__[k].default is None}
    fields: dict[str, Any] = {"kind": (Literal[kind], ...)}
    either = len(set(names.values())) < len(names)
    for key, attribute in names.items():
        if either:
            fields[key] = ((str if key == "file" else hints[attribute]) | None, None)
        else:
            fields[key] = (hints[attribute], ... if attribute in required else None)
    model = create_model(f"{cls.__name__}Law", __base__=LawSpec, __doc__=cls.__doc__, **fields)
    model.from_file = either
    return model


LAWS = tuple(_law(kind) for kind in KINDS)
DistSpec = float | Annotated[Union[LAWS], Field(discriminator="kind")]  # type: ignore[valid-type]  # noqa: UP007


def build_dist(spec: Any, base: Path, field: str) -> Dist:
    """The law; a relative `file` is looked for as every data file is."""
    if not isinstance(spec, LawSpec):
        return dist_of(float(spec), field)
    data = spec.model_dump(exclude_none=True)
    if "file" in data:
        data["file"] = str(locate.data_file(data["file"], base))
    return dist_of(data, field)
