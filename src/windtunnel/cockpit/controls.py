"""Knobs: what a scenario lets one turn, with range, unit and help from the policies' own declarations."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import ipywidgets as w

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import Param

if TYPE_CHECKING:
    from windtunnel.lab.scenario import Scenario


@dataclasses.dataclass(frozen=True, slots=True)
class Knob:
    """One path of a scenario with its value and how to show it."""

    path: str
    value: Any
    param: Param


def knobs_of(scenario: Scenario, wanted: tuple[Any, ...] | None = None) -> list[Knob]:
    """The knobs of `wanted` (paths), else of the scenario's own list; paths that this scenario does not have are left out there."""
    given = wanted if wanted is not None else scenario.knobs
    found = []
    for one in given:
        path, own = (one, {}) if isinstance(one, str) else (one.path, one.model_dump(exclude_defaults=True, exclude={"path"}))
        try:
            value = value_at(scenario.resolved(), path)
        except (KeyError, IndexError, TypeError):
            if wanted is None:
                continue
            raise ConfigValueError("knobs", f'the scenario has no "{path}"') from None
        found.append(Knob(path, value, dataclasses.replace(_declared(scenario, path), **own)))
    return found


def value_at(data: Any, path: str) -> Any:
    """The value at a dotted path of plain data."""
    for part in path.split("."):
        data = data[int(part)] if isinstance(data, list) else data[part]
    return data


def _declared(scenario: Scenario, path: str) -> Param:
    """The Param of the config field behind a path, or a plain one named after its last part."""
    from windtunnel.lab import registry

    parent, _, name = path.rpartition(".")
    data = value_at(scenario.resolved(), parent) if parent else {}
    kind = data.get("kind") if isinstance(data, dict) else None
    cls = registry.kinds(parent.removeprefix("control.")).get(kind) if kind and parent.startswith("control.") else None
    if cls is not None:
        hint = get_type_hints(cls, include_extras=True).get(name)
        if get_origin(hint) is Annotated:
            for note in get_args(hint)[1:]:
                if isinstance(note, Param):
                    return note
    return Param(label=name.replace("_", " "))


def slider(knob: Knob) -> w.Widget:
    """A labelled control for the knob: dropdown, checkbox, or a slider with an exact box."""
    p, value = knob.param, knob.value
    label = p.label or knob.path.rpartition(".")[2].replace("_", " ")
    name = f"{label}, {p.unit}" if p.unit else label
    style = {"description_width": "150px"}
    layout = w.Layout(width="420px")
    common = {"description": name, "style": style, "layout": layout, "tooltip": p.help or knob.path, "continuous_update": True}
    if p.choices:
        return w.Dropdown(options=p.choices, value=value, **{k: v for k, v in common.items() if k != "continuous_update"})
    if isinstance(value, bool):
        return w.Checkbox(value=value, description=name, style=style, layout=layout, tooltip=p.help)
    lo, hi = p.lo if p.lo is not None else 0, p.hi if p.hi is not None else max(1, (value or 1) * 4)
    lo, hi = min(lo, value), max(hi, value)
    if isinstance(value, int):
        return w.IntSlider(value=value, min=int(lo), max=int(hi), step=int(p.step or 1), **common)
    return w.FloatSlider(value=value, min=lo, max=hi, step=p.step or (hi - lo) / 100, readout_format=".3g", **common)
