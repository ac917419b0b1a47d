"""Where something stands that a message speaks of: the file and line, or the option, of a dotted path."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from windtunnel.errors import ConfigError, ConfigFileError
from windtunnel.lab.yamlfile import Document, PathKey, dotted


def place(doc: Document, path: PathKey) -> tuple[str, str]:
    """(what stands before the path, what stands before the sentence): "--set " before a path, "file:line" before a sentence."""
    mark = doc.where(path)
    return ("", mark) if ":" in mark or not mark else (f"{mark} ", "")


@contextlib.contextmanager
def placed(doc: Document) -> Iterator[None]:
    """A ConfigError that begins with a dotted path of the document, and has no place yet, gets its file and line."""
    try:
        yield
    except ConfigError as error:
        path = path_of(error.message.partition(": ")[0], doc.data)
        if isinstance(error, ConfigFileError) and error.file and (holder := next(_holders(doc.data, error.file, ()), ())):
            error.message = f"{dotted(holder)}: {error.message.removeprefix(f'{dotted(path)}: ' if path else '')}"
            path = holder
        if path and not error.where:
            label, error.where = place(doc, path)
            error.message = label + error.message
        raise


def _holders(node: Any, text: str, path: PathKey) -> Iterator[PathKey]:
    """Where in the data this text stands."""
    if node == text:
        yield path
    for key, value in node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ():
        yield from _holders(value, text, (*path, key))


def path_of(text: str, data: Any) -> PathKey:
    """The keys of a dotted path as far as the data has them; in a list of plugins also by id. () if it has none."""
    out: list[str | int] = []
    for word in text.split("."):
        if isinstance(data, list):
            ids = [entry.get("plugin_id") if isinstance(entry, Mapping) else None for entry in data]
            index = int(word) if word.isdecimal() else ids.index(word) if word in ids else len(data)
            if index >= len(data):
                break
            out.append(index)
            data = data[index]
        elif isinstance(data, Mapping) and word in data:
            out.append(word)
            data = data[word]
        else:
            break
    return tuple(out)
