"""Validation errors as sentences: where, what is wrong, what was got, what to write."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from windtunnel.errors import ConfigError, ConfigUnknownKeyError, ConfigValueError
from windtunnel.lab.places import path_of, place
from windtunnel.lab.schema import Node, expected, keys_of, node_at
from windtunnel.lab.yamlfile import Document, PathKey, dotted

SHOWN = 20
DEEP = ("config", "union_tag_invalid", "union_tag_not_found")  # they speak of what is inside the place that they name
CLOSE = 0.8  # a word less like another one than this may rather be the right word in the wrong place
UNITS: Mapping[str, tuple[str, float]] = {
    "s": ("seconds", 1.0), "ms": ("milliseconds", 1e-3), "min": ("minutes", 60.0), "h": ("hours", 3600.0), "tokens": ("tokens", 1.0),
    "bytes": ("bytes", 1.0), "rps": ("requests per second", 1.0), "usd": ("US dollars", 1.0),
}
_TIMES = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_WITH_UNIT = re.compile(r"\s*([-+]?[0-9.]+(?:e[-+]?[0-9]+)?)\s*(ms|us|s|sec|min|m|h|d)\s*", re.IGNORECASE)


class ScenarioErrors(ConfigError):
    """Several mistakes of one file, the first 20 as sentences. errors: all that were found."""

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        self.errors = tuple(errors)
        lines = [f"  {e}" for e in errors[:SHOWN]]
        if len(errors) > SHOWN:
            lines.append(f"  and {len(errors) - SHOWN} more")
        super().__init__(f"{len(errors)} errors\n" + "\n".join(lines))


def one_or_all(errors: Sequence[ConfigError]) -> ConfigError:
    """The error itself if there is one, else all of them as one."""
    return errors[0] if len(errors) == 1 else ScenarioErrors(errors)


def explain(error: ValidationError, doc: Document, schema: Node) -> list[ConfigError]:
    """One ConfigError per finding, in the order of the file."""
    items: list[tuple[PathKey, dict[str, Any]]] = [
        (real_path(i["loc"], doc.data, i["type"]), dict(i)) for i in error.errors(include_url=False)]
    deeper = {path[:n] for path, item in items for n in range(len(path) + (item["type"] in DEEP))}
    numbers = {path for path, item in items if item["type"] == "finite_number"}
    found: dict[tuple[str, str], ConfigError] = {}
    for path, item in items:
        if path in numbers and item["type"] != "finite_number":
            continue
        # "a number or a distribution": when one branch was entered, the other one's mismatch of type says nothing.
        if path in deeper and item["type"].endswith("_type"):
            continue
        sentence = _sentence(item, path, doc, schema)
        found.setdefault((sentence.where, sentence.message), sentence)
    return sorted(found.values(), key=lambda e: _line(e.where))


def _line(where: str) -> int:
    tail = where.rsplit(":", 1)[-1]
    return int(tail) if tail.isdecimal() else 0


def _sentence(item: dict[str, Any], path: PathKey, doc: Document, schema: Node) -> ConfigError:
    kind, context = item["type"], item.get("ctx", {})
    if kind == "config":
        return _refused(context, path, doc)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        path = (*path, "kind")
    label, where = place(doc, path)
    name = label + dotted(path)
    if kind == "extra_forbidden" or item["loc"][-1:] == ("[key]",):
        known = keys_of(node_at(schema, path[:-1], doc.data)) or tuple(re.findall(r"'([^']+)'", str(context.get("expected", ""))))
        error = _unknown(label, path, item["input"], known, where)
        if error.did_you_mean is None or difflib.SequenceMatcher(None, str(path[-1]), error.did_you_mean).ratio() < CLOSE:
            error.hint = _meant_place(path, doc.data, schema, known) or error.hint
        return error
    if kind == "missing":
        node = node_at(schema, path, doc.data)
        hint = f"write {path[-1]}: {_json(node['const'])}" if node and "const" in node else ""
        return ConfigValueError(name, f"missing; expected {expected(node)}", where=where, hint=hint)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _kind_error(name, item, context, where, (node_at(schema, path[:-1], doc.data) or {}).get("kinds", ()))
    if kind == "value_error":
        text = str(context.get("error", item["msg"]))
        if not path and (inside := path_of(text.partition(": ")[0], doc.data)):  # of the whole scenario, about one place in it
            label, where = place(doc, inside)
            return ConfigValueError("", label + text, where=where)
        return ConfigValueError(name.strip(), text, where=where)
    if kind == "finite_number":
        return ConfigValueError(name, f"expected a finite number, got {item['input']!r}", where=where)
    got = item["input"]
    return ConfigValueError(name, f"expected {expected(node_at(schema, path, doc.data))}, got {_json(got)}", where=where,
                            hint=_unit_value_hint(path, got) or _kind_hint(path, got, doc.data, schema))


def _kind_hint(path: PathKey, got: Any, data: Any, schema: Node) -> str:
    """For `queue: fair` where `queue: {kind: fair}` is meant."""
    meant: Any = {"kind": got}
    for n in range(len(path) - 1, -1, -1):
        above = data
        for key in path[:n]:
            above = above[key]
        meant = {**above, path[n]: meant} if isinstance(above, Mapping) else meant
    node = node_at(schema, path, meant) if isinstance(got, str) and not any(isinstance(key, int) for key in path) else None
    known = (node or {}).get("properties", {}).get("kind", {}).get("const")
    return f"write {{kind: {got}}}" if known == got else ""


def _refused(context: Mapping[str, Any], path: PathKey, doc: Document) -> ConfigError:
    """What a config class itself refused, with the field that it named."""
    parts = [part for part in context.get("field", "").split(".") if part]
    if path and parts and parts[0] == path[-1]:
        parts = parts[1:]  # the class named itself
    at = (*path, *parts)
    label, where = place(doc, at)
    return ConfigValueError(label + dotted(at), context["text"], where=where, hint=_role_hint(at, doc.data))


def real_path(loc: Sequence[str | int], data: Any, kind: str) -> PathKey:
    """The location without the union tags that stand in it beside keys of the data. Only an absent or unknown key may end it unheld."""
    out: list[str | int] = []
    for i, key in enumerate(loc):
        held = (isinstance(data, Mapping) and key in data) or (isinstance(data, list) and isinstance(key, int) and key < len(data))
        if held:
            data = data[key]
        elif kind != "missing" or i < len(loc) - 1:
            continue
        out.append(key)
    return tuple(out)


def _kind_error(name: str, item: dict[str, Any], context: Mapping[str, Any], where: str, kinds: Sequence[str]) -> ConfigError:
    if item["type"] == "union_tag_not_found":
        return ConfigValueError(name, "missing", where=where, hint=f"one of {', '.join(kinds)}" if kinds else "")
    known = re.findall(r"'([^']+)'", str(context.get("expected_tags", "")))
    return ConfigValueError(name, f'unknown kind "{context.get("tag")}"', where=where, hint=close_hint(str(context.get("tag")), known, 20))


def _meant_place(path: PathKey, data: Any, schema: Node, known: Sequence[str]) -> str:
    """For a key that stands in the wrong mapping: where it belongs, one step further in or somewhere above; "" if nowhere."""
    *above, key = path
    if key == "kind":
        return ""
    inside = [(*above, k) for k in known]
    outside = [tuple(above[:n]) for n in range(len(above) - 1, -1, -1)]
    for home in (*inside, *outside):
        if key in keys_of(node_at(schema, home, data)):
            return f"it belongs to {dotted(home)}" if home else "it belongs to the top of the file"
    return ""


def _role_hint(path: PathKey, data: Any) -> str:
    """A planner's pools are named by role; one of the fleet's is the component of a role."""
    if path[:-1] != ("control", "planner", "pools"):
        return ""
    fleet = data.get("fleet")
    pools = fleet.get("pools") if isinstance(fleet, Mapping) else None
    pool = pools.get(path[-1]) if isinstance(pools, Mapping) else None
    return f"write {pool.get('role', 'agg')}: {{component: {path[-1]}, …}}" if isinstance(pool, Mapping) else ""


def _unknown(label: str, path: PathKey, value: Any, known: tuple[str, ...], where: str) -> ConfigUnknownKeyError:
    key = str(path[-1])
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    parent = dotted(path[:-1])
    error = ConfigUnknownKeyError(label + parent, key, did_you_mean=close[0] if close else None, known=known, where=where)
    if label and not parent:
        error.message = f"{label}{key}: unknown key"
    hint = _unit_key_hint(key, value, known)
    if hint:
        error.hint = hint
    return error


def _unit_key_hint(key: str, value: Any, known: tuple[str, ...]) -> str:
    """For `duration` or `duration_ms` where `duration_s` is meant: what to write, converted."""
    stem, _, suffix = key.rpartition("_")
    stems = [key] if suffix not in UNITS or not stem else [stem, key]
    for k in known:
        base, _, unit = k.rpartition("_")
        if unit in UNITS and base in stems:
            factor = UNITS[suffix][1] if base == stem and suffix in UNITS else 1.0
            return f"write {k}{_converted(value, factor / UNITS[unit][1])} ({UNITS[unit][0]})"
    return ""


def _converted(value: Any, factor: float) -> str:
    if isinstance(value, str):
        seconds = in_seconds(value)
        return f": {seconds:g}" if seconds is not None else ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f": {value * factor:g}"
    return ""


def in_seconds(text: str) -> float | None:
    """"10m" → 600.0; None if the text is no time with a unit."""
    match = _WITH_UNIT.fullmatch(text)
    try:
        return float(match[1]) * _TIMES[match[2].lower()] if match else None
    except ValueError:
        return None


def _unit_value_hint(path: PathKey, got: Any) -> str:
    key = str(path[-1]) if path else ""
    if isinstance(got, str) and key.endswith(("_s", "_ms")):
        seconds = in_seconds(got)
        if seconds is not None:
            value, unit = (seconds, "seconds") if key.endswith("_s") and not key.endswith("_ms") else (seconds * 1e3, "milliseconds")
            return f"write {key}: {value:g} ({unit})"
    return ""


def close_hint(word: str, known: Sequence[str], most: int = 8) -> str:
    """did you mean "a" or "b"?, else the list if it has at most so many."""
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(f'"{c}"' for c in close) + "?"
    return f"known: {', '.join(known)}" if 0 < len(known) <= most else ""


def _json(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    if isinstance(value, float) and not math.isfinite(value):
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
