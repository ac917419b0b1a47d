"""Shared by all tests: guards against policies that peek at what they must not read."""

from __future__ import annotations

import os

os.environ.setdefault("WINDTUNNEL_QUIET", "1")
