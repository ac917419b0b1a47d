"""README's table of policies names every kind that a scenario knows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from windtunnel.lab import registry

TABLE = (Path(__file__).parents[2] / "README.md").read_text("utf-8").split("## Policies by name")[1].split("\n## ")[0]
WORDS = {"queue": "queue", "admission.limit": "limit", "admission.gates": "gate", "routing": "routing", "planner": "planner"}


@pytest.mark.parametrize(("word", "kind"), [(WORDS[s], k) for s in WORDS for k in registry.kinds(s)])
def test_every_kind_is_in_the_table(word: str, kind: str) -> None:
    rows = [line for line in TABLE.splitlines() if line.startswith(f"| {word} ")]
    assert any(f"`{kind}`" in row.split("|")[1] for row in rows), f"README does not say what {word} `{kind}` is for"


@pytest.mark.parametrize("kind", list(registry.wrappers("queue")))
def test_every_wrapper_is_in_the_table(kind: str) -> None:
    assert re.search(rf"^\| `{kind}` \(around a queue\)", TABLE, re.M)
