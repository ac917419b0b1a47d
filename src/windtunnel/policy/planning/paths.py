"""Dot paths into a PipelineContext: `predictions.predicted_num_req`, `observations.workers.decode.ready`, `observations.fpm.prefill`.

They walk attributes and mapping keys; the level of `pools` and `engines` is left out. None or missing = not there; 0 and empty are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from windtunnel.policy.planning.checks import COMPONENT
from windtunnel.policy.planning.contract import FpmData, PipelineContext, WorkerState

SKIPPED = {WorkerState: "pools", FpmData: "engines"}
BLOCKS = ("observations.traffic", "observations.fpm", "observations.workers", "predictions", "proposal")
Path = tuple[str, ...]


def parse(path: str) -> Path:
    """The full steps of a path. Raises ValueError `unknown_path: ...` if nothing of that name can ever be there."""
    steps: list[str] = []
    kind: Any = PipelineContext
    for part in path.split("."):
        kind = _one(kind)
        skipped = SKIPPED.get(kind)
        if skipped is not None and part != skipped:
            steps.append(skipped)
            kind = _hint(kind, skipped)
        if is_dataclass(kind):
            if part not in {f.name for f in fields(kind)}:
                raise ValueError(f"unknown_path: {path}")
            kind = _hint(kind, part)
        elif get_origin(kind) is Mapping and part and (steps[-1] not in ("pools", "engines") or COMPONENT.fullmatch(part)):
            kind = get_args(kind)[1]
        else:
            raise ValueError(f"unknown_path: {path}")
        steps.append(part)
    return tuple(steps)


def _one(kind: Any) -> Any:
    """`X | None` is X."""
    if get_origin(kind) in (Union, UnionType):
        [kind] = [k for k in get_args(kind) if k is not type(None)]
    return kind


def _hint(kind: Any, name: str) -> Any:
    return _one(get_type_hints(kind)[name])


def there(root: Any, path: Path) -> bool:
    """Does the path lead to a value?"""
    value = root
    for step in path:
        value = value.get(step) if isinstance(value, Mapping) else getattr(value, step, None)
        if value is None:
            return False
    return True


def needs_block(path: str, block: str) -> bool:
    """Does a needed path touch a block: equal to it, inside it, or around it?"""
    return path == block or path.startswith(block + ".") or block.startswith(path + ".")


def blocks_of(needs: Iterable[str]) -> tuple[bool, ...]:
    """For each of BLOCKS: is it handed over? No needs means everything."""
    wanted = tuple(needs)
    return tuple(not wanted or any(needs_block(path, block) for path in wanted) for block in BLOCKS)
