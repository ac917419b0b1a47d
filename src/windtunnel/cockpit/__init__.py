"""The cockpit: figures, reports and widgets over runs. `Cockpit` needs the extra `lab` only for a place to be shown in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from windtunnel.cockpit.board import Cockpit
    from windtunnel.cockpit.live_panel import LivePanel

__all__ = ["Cockpit", "LivePanel"]
_HOMES = {"Cockpit": "board", "LivePanel": "live_panel"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'windtunnel.cockpit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"windtunnel.cockpit.{_HOMES[name]}"), name)
