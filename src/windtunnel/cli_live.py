"""Commands that touch real engines: drive, engine up|down, stop."""

from __future__ import annotations

