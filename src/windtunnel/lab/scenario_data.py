"""A scenario as plain data: in the order in which people write it, compared path by path, and hashed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from windtunnel.lab import locate

if TYPE_CHECKING:
    from pandas import DataFrame

NOT_IN_DIGEST = ("name", "question", "compare", "expect", "knobs", "record", "itl", "seed")


def kind_first(node: Any) -> Any:
    """The same data as people write it: a mapping's kind before its parameters."""
    if isinstance(node, dict):
        return {k: kind_first(node[k]) for k in sorted(node, key=lambda k: k != "kind")}
    return [kind_first(v) for v in node] if isinstance(node, list) else node


def differences(left: Any, right: Any) -> DataFrame:
    """What differs: columns path, left, right."""
    import pandas as pd

    one, other = dict(_flat(left)), dict(_flat(right))
    missing = object()
    paths = [p for p in dict.fromkeys([*one, *other]) if one.get(p, missing) != other.get(p, missing)]
    return pd.DataFrame([(p, one.get(p), other.get(p)) for p in paths], columns=["path", "left", "right"])


def digest(resolved: Mapping[str, Any], base: Path) -> str:
    """SHA-256 of what determines the result: without names, texts and the seed, files by content. base: folder of relative paths."""
    data = {k: v for k, v in resolved.items() if k not in NOT_IN_DIGEST}
    text = json.dumps(_hashed(data, base), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _hashed(node: Any, base: Path) -> Any:
    """The same data with each `path` (`file` of a law) replaced by the hash of the file it names; a plugin's kwargs are its own affair."""
    if isinstance(node, Mapping):
        return {k: {"sha256": locate.sha256(locate.data_file(v, base))} if k in ("path", "file") and isinstance(v, str)
                else v if k == "kwargs" else _hashed(v, base) for k, v in node.items()}
    return [_hashed(v, base) for v in node] if isinstance(node, list) else node


def _flat(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, (dict, list)) and node:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node
