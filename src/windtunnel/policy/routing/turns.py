"""Where a request stands in its conversation."""

from __future__ import annotations

from typing import Literal

from windtunnel.events import fact


@fact
class TurnRef:
    """One turn of a session. `final` None: unknown (a live door cannot know). branch: how this session left its parent."""

    session: str
    index: int
    final: bool | None
    parent: str | None = None
    root: str | None = None
    depth: int = 0
    branch: Literal["fork", "spawn"] | None = None
    fork_children: tuple[str, ...] = ()
    subagent_type: str | None = None
