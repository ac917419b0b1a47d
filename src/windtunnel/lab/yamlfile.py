"""YAML as scenarios use it: plain data with the 1.2 core scalars, and the line of every node for error messages.

No tags, no merge keys, no `yes`/`no` booleans: a tenant called `no` stays a string, `10:30` stays a string, `1e3` is a float.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from windtunnel.errors import ConfigFileError, ConfigValueError

PathKey = tuple[str | int, ...]
MAX_BYTES = 1 << 20
MAX_ALIASES = 100
MAX_NODES = 300_000
_INT = re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")  # a number, which its field then refuses as one
_WORDS: Mapping[str, Any] = {"": None, "~": None, "null": None, "Null": None, "NULL": None, "true": True, "false": False}


@dataclass(slots=True)
class Document:
    """Plain data and, per path, where it was written ("file:line")."""

    data: Any
    marks: dict[PathKey, str] = field(default_factory=dict)

    def where(self, path: PathKey) -> str:
        """Place of the node at `path`, or of its nearest written ancestor; "" if nothing is known."""
        for n in range(len(path), -1, -1):
            if path[:n] in self.marks:
                return self.marks[path[:n]]
        return ""


def read_yaml(path: Path) -> Document:
    """Read a file of at most 1 MiB; ConfigFileError if it cannot be read, ConfigValueError for what it may not hold."""
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise ConfigFileError(f"cannot read the file: {e.strerror or e}", where=str(path)) from None
    if len(raw) > MAX_BYTES:
        raise ConfigFileError(f"expected at most 1 MiB, got {len(raw)} bytes", where=str(path))
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise ConfigFileError(f"not UTF-8 (byte {e.start})", where=str(path)) from None
    if path.suffix == ".json":  # tabs may indent JSON, but not YAML; a JSON string holds no line break, so this cannot touch one
        text = re.sub(r"(?m)^[ \t]+", lambda m: " " * len(m.group()), text)
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str = "<text>") -> Document:
    """Parse one YAML (or JSON) document; `name` stands in error messages."""
    try:
        if "*" in text and sum(isinstance(e, yaml.AliasEvent) for e in yaml.parse(text, Loader=yaml.BaseLoader)) > MAX_ALIASES:
            raise ConfigFileError(f"more than {MAX_ALIASES} uses of anchors", where=name)
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        if node is None:
            return Document(None, {(): f"{name}:1"})
        reader = _Reader(name)
        return Document(reader.plain(node, ()), reader.marks)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigFileError(f"not YAML: {e.problem or e.context}", where=where) from None
    except yaml.YAMLError as e:
        raise ConfigFileError(f"not YAML: {e}", where=name) from None
    except RecursionError:
        raise ConfigFileError("nested too deeply, or an anchor that holds itself", where=name) from None


def scalar(text: str) -> Any:
    """A plain scalar by the 1.2 core schema: null, true/false, int, float, else the text itself."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text, 10 if text.lstrip("+-")[:2] not in ("0x", "0o") else 0)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return float(text) if _FLOAT.fullmatch(text) else text


class _Reader:
    """Turns composed nodes into plain data, remembering lines and refusing what scenarios may not use."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.marks: dict[PathKey, str] = {}
        self._nodes = 0

    def plain(self, node: yaml.Node, path: PathKey) -> Any:
        where = f"{self.name}:{node.start_mark.line + 1}"
        self.marks.setdefault(path, where)
        self._nodes += 1
        if self._nodes > MAX_NODES:  # few anchors in anchors can stand for billions of nodes
            raise ConfigFileError(f"more than {MAX_NODES} values", where=where)
        if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.rsplit(":", 1)[1] not in ("str", "map", "seq"):
            raise ConfigValueError(dotted(path), f"tags such as {node.tag} are not allowed; write the plain value", where=where)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(n, (*path, i)) for i, n in enumerate(node.value)]
        return scalar(node.value) if isinstance(node, yaml.ScalarNode) and node.style is None else node.value

    def _mapping(self, node: yaml.MappingNode, path: PathKey) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            where = f"{self.name}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigValueError(dotted(path), "a key must be a word, not a list or mapping", where=where)
            key = key_node.value
            here = (*path, key)
            if key == "<<" and key_node.style is None:
                raise ConfigValueError(dotted(path), 'merge keys ("<<") are not allowed; use "extends"', where=where)
            if key in out:
                raise ConfigValueError(dotted(here), f"written twice (first at {self.marks[here]})", where=where)
            self.marks[here] = where
            out[key] = self.plain(value_node, here)
        return out


def dotted(path: PathKey) -> str:
    """The path as people write it: fleet.pools.chat.replicas; a segment with a dot is quoted."""
    return ".".join(f'"{p}"' if isinstance(p, str) and ("." in p or not p) else str(p) for p in path)


class _Dumper(yaml.SafeDumper):
    """Mappings in the given order; floats so that they come back as floats; words that would read as something else quoted."""


def _float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    text = repr(value)
    if not math.isfinite(value):
        text = ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")  # YAML 1.1, which the dumper thinks in, knows no float without a dot
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _str(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    # The dumper's own rules are YAML 1.1: quote whatever either reading would not give back as this very string.
    plain_is_safe = isinstance(scalar(value), str) and value.isprintable()
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain_is_safe else '"')


_Dumper.add_representer(float, _float)
_Dumper.add_representer(str, _str)


def dump_yaml(data: Any) -> str:
    """Plain data as YAML that `parse_yaml` gives back unchanged."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None))
