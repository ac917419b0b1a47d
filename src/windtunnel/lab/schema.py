"""The scenario's JSON schema, and what it says about one place of a scenario: its keys, what is expected there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from windtunnel.lab.yamlfile import PathKey

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Node = Mapping[str, Any]
TYPES = {"integer": "an int", "number": "a number", "boolean": "true or false", "string": "text", "array": "a list", "object": "a mapping"}


def schema_text(model: Any) -> str:
    """The schema as committed in sims/scenario.schema.json: two spaces, keys in order of the model, a line feed at the end."""
    schema = {"$schema": DIALECT, **model.model_json_schema(mode="validation")}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def node_at(schema: Node, path: PathKey, data: Any) -> Node | None:
    """The schema node that describes `path` in `data` (`data` chooses between kinds); None if nothing describes it."""
    node: Node | None = _pick(schema, schema, data)
    for key in path:
        if node is None:
            return None
        data = data[key] if _holds(data, key) else None
        if isinstance(key, int):
            node = node.get("items")
        else:
            more = node.get("additionalProperties")
            node = node.get("properties", {}).get(key) or (more if isinstance(more, Mapping) else None)
        node = _pick(schema, node, data) if node is not None else None
    return node


def _holds(data: Any, key: str | int) -> bool:
    return (isinstance(data, Mapping) and key in data) or (isinstance(data, list) and isinstance(key, int) and key < len(data))


def _pick(schema: Node, node: Node, data: Any) -> Node | None:
    """Follow references and choose the branch of a union that `data` means: by kind, else by JSON type, else the first. Key `kinds` of what
    comes back: the kinds there were to choose from."""
    while "$ref" in node:
        node = {**schema["$defs"][node["$ref"].rsplit("/", 1)[1]], **{k: v for k, v in node.items() if k != "$ref"}}
    branches = node.get("oneOf") or node.get("anyOf")
    if not branches:
        return node
    words = {k: v for k, v in node.items() if k not in ("oneOf", "anyOf", "discriminator")}
    found = [b for b in (_pick(schema, b, data) for b in branches) if b is not None and b.get("type") != "null"]
    kinds = {const: b for b in found if (const := b.get("properties", {}).get("kind", {}).get("const")) is not None}
    words = {**words, "kinds": tuple(kinds)}
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if isinstance(kind, str) and kind in kinds:
        return {**words, **kinds[kind]}
    for branch in found:
        if branch.get("type") == _type(data):
            return {**words, **branch}
    return {**words, **found[0]} if found else node


def _type(data: Any) -> str:
    for kind, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array"), (Mapping, "object")):
        if isinstance(data, kind):
            return name
    return "null"


def keys_of(node: Node | None) -> tuple[str, ...]:
    """Keys that a mapping at this place may have; empty where any name is one (pools, tenants)."""
    return tuple((node or {}).get("properties", {}))


def expected(node: Node | None) -> str:
    """What this place wants, as words: "an int >= 0", "one of "fcfs", "priority"", "a mapping"."""
    if node is None:
        return "something else"
    if "const" in node:
        return json.dumps(node["const"])
    if "enum" in node:
        return "one of " + ", ".join(json.dumps(v) for v in node["enum"])
    words = TYPES.get(str(node.get("type")), "a mapping" if "properties" in node else "something else")
    signs = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
    bounds = [f"{sign} {_number(node[key])}" for key, sign in signs if key in node]
    if node.get("minProperties") or node.get("minItems"):
        bounds.append(f"with at least {node.get('minProperties') or node.get('minItems')}")
    if "pattern" in node:
        bounds.append(f"matching {node['pattern']}")
    return words + (" " + " and ".join(bounds) if bounds else "")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
