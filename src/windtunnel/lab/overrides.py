"""`path=value` overrides: one grammar for --set, `Scenario.with_`, `compare`, and knobs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from windtunnel.errors import ConfigError, ConfigValueError
from windtunnel.lab.registry import wrappers
from windtunnel.lab.yamlfile import Document, PathKey, dotted, parse_yaml

Seed = Callable[[PathKey, Any], Mapping[str, Any] | None]


def split_path(path: str) -> PathKey:
    """Segments of a dotted path: keys, list indices (ints), "*"; `fleet.pools."my.pool".tp` quotes a key with dots."""
    out: list[str | int] = []
    rest = path.strip()
    if not rest:
        raise ConfigError("an override needs a path", hint="write path=value, e.g. fleet.pools.chat.replicas=6")
    while True:
        if rest.startswith('"'):
            end = rest.find('"', 1)
            if end < 0:
                raise ConfigError(f"{path}: a quote is not closed")
            key: str | int = rest[1:end]
            rest = rest[end + 1:]
        else:
            word, dot, tail = rest.partition(".")
            key = int(word) if word.isdecimal() else word
            rest = dot + tail
        if key == "":
            raise ConfigError(f"{path}: an empty segment in the path")
        out.append(key)
        if not rest:
            return tuple(out)
        if not rest.startswith(".") or rest == ".":
            raise ConfigError(f"{path}: expected a dot after {dotted((key,))}")
        rest = rest[1:]


def parse_override(text: str) -> tuple[str, Any]:
    """"a.b=1e2" → ("a.b", 100.0). The value is one YAML scalar or flow collection."""
    quoted = False
    for i, c in enumerate(text):
        if c == '"':
            quoted = not quoted
        elif c == "=" and not quoted:
            value = text[i + 1:]
            doc = parse_yaml(value, f"--set {text[:i].strip()}")
            return text[:i].strip(), doc.data
    raise ConfigError(f"--set {text}: expected path=value", hint="e.g. --set fleet.pools.chat.replicas=6")


def apply(doc: Document, changes: Mapping[str, Any], *, label: str = "", seed: Seed | None = None) -> Document:
    """A new document with every change made, in order; nothing is validated here but the shape of the path.

    label: what errors call the source of a change ("--set", "variant six"); seed(path, data) may give the mapping that an absent
    part stands for (a preset's queue), so that one of its fields can be overridden.
    """
    out = Document(copy.deepcopy(doc.data), dict(doc.marks))
    for path, value in changes.items():
        # Fixed before the first change of this path: a "*" never visits what it created itself.
        for place in list(_places(out, out.data, split_path(path), (), label, seed)):
            _set(out, place, copy.deepcopy(value), label)
    return out


def _places(doc: Document, node: Any, rest: PathKey, done: PathKey, label: str, seed: Seed | None) -> Iterator[PathKey]:
    """Concrete paths that `rest` means below `node`, creating absent mappings on the way."""
    name = f"{label} {dotted((*done, rest[0]))}".strip()
    for key in _keys(node, rest[0], name):
        path = (*done, key)
        if len(rest) == 1:
            yield path
            continue
        if isinstance(node, dict) and node.get(key) is None:
            given = seed(path, doc.data) if seed else None
            node[key] = copy.deepcopy(dict(given)) if given is not None else {}
            doc.marks[path] = label or "override"
        yield from _places(doc, node[key], rest[1:], path, label, seed)


def _keys(node: Any, key: str | int, name: str) -> list[str | int]:
    if isinstance(node, list):
        if key == "*":
            found: list[str | int] = list(range(len(node)))
        elif isinstance(key, int):
            if key >= len(node):
                entries = "1 entry (index 0)" if len(node) == 1 else f"{len(node)} entries" + (f" (0 to {len(node) - 1})" if node else "")
                raise ConfigError(f"{name}: the list has {entries}")
            found = [key]
        else:
            raise ConfigError(f'{name}: expected a list index, got "{key}"')
    elif isinstance(node, dict):
        found = list(node) if key == "*" else [str(key)]
    else:
        raise ConfigError(f"{name}: unknown key", hint="what stands above it is a single value")
    if not found:
        raise ConfigError(f'{name}: "*" matches nothing')
    return found


def _set(doc: Document, path: PathKey, value: Any, label: str) -> None:
    parent = doc.data
    for key in path[:-1]:
        parent = parent[key]
    last = path[-1]
    if last == "kind" and isinstance(parent, dict) and parent.get("kind", value) != value:
        # The old kind's parameters mean nothing to the new one; wrappers (a bound around the queue) go on around either.
        kept = {k: v for k, v in parent.items() if k in wrappers(dotted(path[1:-1]))}
        parent.clear()
        parent.update(kept)
    parent[last] = value
    for known in [m for m in doc.marks if m[: len(path)] == path]:
        del doc.marks[known]
    doc.marks[path] = label or "override"


def merge(base: Any, over: Any) -> Any:
    """`extends`: mappings merge deeply, lists and scalars replace, null deletes an optional key."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return copy.deepcopy(over)
    if "kind" in over and over["kind"] != base.get("kind", over["kind"]):
        return copy.deepcopy(over)
    out = {k: merge(v, over[k]) if k in over else copy.deepcopy(v) for k, v in base.items() if over.get(k, v) is not None}
    return out | {k: copy.deepcopy(v) for k, v in over.items() if k not in base and v is not None}


def changes_of(texts: Iterable[str]) -> dict[str, Any]:
    """Several "path=value" texts, left to right; the later of two equal paths wins."""
    out: dict[str, Any] = {}
    for text in texts:
        path, value = parse_override(text)
        out.pop(path, None)
        out[path] = value
    return out


def check_paths(paths: Mapping[str, Any], where: str) -> None:
    """Raise ConfigValueError for a path that is not one (used for `compare` and `knobs` when the file is read)."""
    for path in paths:
        try:
            split_path(path)
        except ConfigError as e:
            raise ConfigValueError(where, e.message) from None
