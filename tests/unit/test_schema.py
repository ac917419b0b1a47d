"""The committed JSON schema, and what is read off it."""

from __future__ import annotations

import json

from windtunnel.lab.locate import scenario_folders
from windtunnel.lab.scenario import Scenario, schema
from windtunnel.lab.schema import DIALECT, expected, keys_of, node_at, schema_text


def test_CS_11_the_committed_schema_is_this_codes() -> None:
    committed = next(f / "scenario.schema.json" for f in reversed(scenario_folders()) if (f / "scenario.schema.json").is_file())
    assert committed.read_text("utf-8") == schema_text(Scenario), "run: windtunnel schema > sims/scenario.schema.json"


def test_CS_11_units_ranges_defaults_and_closed_objects() -> None:
    text = schema_text(Scenario)
    made = json.loads(text)
    assert made["$schema"] == DIALECT
    limit = node_at(made, ("control", "admission", "limit"), {"control": {"admission": {"limit": {"kind": "aimd"}}}})
    assert limit is not None
    cooldown = limit["properties"]["cooldown_s"]
    assert (cooldown["default"], cooldown["x-unit"], cooldown["x-range"]) == (2.0, "s", [0.05, 10])
    assert "minimum" not in cooldown, "a slider's range is not validity"
    assert all(d.get("additionalProperties") is False for d in [made, *made["$defs"].values()] if "properties" in d)


def test_node_at_follows_kinds_lists_and_open_mappings() -> None:
    data = {"fleet": {"pools": {"a.b": {"profile": {"kind": "affine"}}}}, "source": {"kind": "mix", "sources": [{"kind": "trace"}]},
            "control": {"queue": {"kind": "fifo", "bounded": {}}}}
    assert "c3" in keys_of(node_at(schema(), ("fleet", "pools", "a.b", "profile"), data))
    assert "ops" in keys_of(node_at(schema(), ("source", "sources", 0), data))
    assert "capacity" in keys_of(node_at(schema(), ("control", "queue", "bounded"), data))
    assert node_at(schema(), ("fleet", "nope", "deep"), data) is None
    assert keys_of(node_at(schema(), ("fleet", "pools"), data)) == ()


def test_expected_in_words() -> None:
    assert expected(node_at(schema(), ("seed",), {})) == "an int >= 0 and < 9223372036854775808"
    assert expected(node_at(schema(), ("duration_s",), {"duration_s": 5})) == "a number > 0"
    assert expected(node_at(schema(), ("record",), {})) == 'one of "requests", "decisions", "full"'
    assert expected(node_at(schema(), ("windtunnel",), {})) == "1"
    assert expected(None) == "something else"
