"""The badge: in words, colour and shape, which world this is and what may leave it."""

from __future__ import annotations

from html import escape

from windtunnel.cockpit import palette


def badge(mode: str, note: str = "") -> str:
    """HTML of the badge of a mode (simulated, shadow, dry_run, armed, stopped)."""
    ground, ink, shape = palette.BADGES.get(mode, palette.BADGES["stopped"])
    words = mode.replace("_", " ").upper() + (f" · {note}" if note else "")
    return (f'<span role="status" style="display:inline-block;font:700 13px sans-serif;padding:4px 12px;border-radius:4px;'
            f'background:{ground};color:{ink}">{shape} {escape(words)}</span>')
