"""Keys of rows: what keeps sessions and trees whole when rows are chosen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from windtunnel.policy.routing.hashing import h64
from windtunnel.sources.traces.row import all_null, values_of


class Keys:
    """Keys of rows, batch by batch; remembers the roots of child sessions."""

    def __init__(self) -> None:
        self._roots: dict[str, str] = {}

    def of(self, batch: pa.RecordBatch) -> list[str]:
        """One key a row."""
        ids = values_of(batch, "request_id")
        if all_null(batch, "session"):
            return ids
        sessions, parents = values_of(batch, "session"), values_of(batch, "parent_session")
        return [self._root(id_, session, parent) for id_, session, parent in zip(ids, sessions, parents)]

    def _root(self, request_id: str, session: str | None, parent: str | None) -> str:
        if session is None:
            return request_id
        if parent is not None:
            self._roots[session] = self._roots.get(parent, parent)
        return self._roots.get(session, session)


class Verdicts:
    """Whether rows are kept when that hangs on their root; remembers the sessions that it has seen."""

    def __init__(self) -> None:
        self._keys, self._kept = Keys(), dict[str, bool]()

    def of(self, batch: pa.RecordBatch, inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """inside: for a root, whether it is kept. The first row of a tree is its root."""
        if all_null(batch, "session"):
            return inside
        sessions = values_of(batch, "session")
        return np.array([ok if session is None else self._kept.setdefault(key, ok)
                         for key, session, ok in zip(self._keys.of(batch), sessions, inside.tolist())], dtype=bool)


def points(salt: str, keys: Sequence[str]) -> NDArray[np.float64]:
    """A point in [0, 1) for each key."""
    return np.array([h64(f"{salt}:{key}") for key in keys], dtype=np.uint64) / 2.0**64
