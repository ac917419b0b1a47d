"""The compiled form decides and times as plain Python does, to the last bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from windtunnel import compiled

FLIGHTS = {
    "tenant-flood": ["duration_s=20"], "disaggregated": ["duration_s=30"], "retry-storm": ["duration_s=60"], "planner-step": ["duration_s=200"],
    "peer-chat-10k": ["duration_s=60", "fleet.pools.chat.engine.num_blocks=1500"], "spot-loss": ["duration_s=150"],
    "mooncake-conversation": ["duration_s=90"], "data-pipeline": [],
}
CODE = """
import hashlib, json, sys
from windtunnel import Scenario, compiled
out = {"form": compiled.in_use()}
for name, overrides in json.loads(sys.argv[1]).items():
    run = Scenario.load(name, overrides=overrides).run(record="full")
    tables = b"".join(getattr(run, table).to_csv().encode() for table in ("requests", "decisions", "series", "replicas"))
    out[name] = [len(run.requests), hashlib.sha256(tables).hexdigest()]
print(json.dumps(out))
"""


def fly(**env: str) -> dict[str, object]:
    clean = {k: v for k, v in os.environ.items() if k not in ("WINDTUNNEL_PURE", "WINDTUNNEL_FROZEN")}
    done = subprocess.run([sys.executable, "-c", CODE, json.dumps(FLIGHTS)], capture_output=True, text=True, env={**clean, **env})
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_both_forms_give_the_same_tables() -> None:
    reason = compiled.why_not() if not os.environ.get("WINDTUNNEL_PURE") else None
    if reason is not None:
        assert not os.environ.get("REQUIRE_COMPILED"), reason
        pytest.skip(reason)
    fast, plain = fly(), fly(WINDTUNNEL_PURE="1")
    assert (fast.pop("form"), plain.pop("form")) == (True, False)
    assert fast == plain
    assert all(rows[0] > 50 for rows in fast.values())  # type: ignore[index]
