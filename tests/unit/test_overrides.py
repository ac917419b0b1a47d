"""Paths, values, and what an override may do to a document."""

from __future__ import annotations

from typing import Any

import pytest

from windtunnel.errors import ConfigError
from windtunnel.lab.overrides import apply, changes_of, merge, parse_override, split_path
from windtunnel.lab.yamlfile import Document, parse_yaml

DOC = parse_yaml("""
fleet: {pools: {chat: {tp: 1, replicas: 4}, "my.pool": {tp: 1}}}
source: {ops: [{window: {t0: 0}}]}
control: {queue: {kind: fair, weight: 3, bounded: {capacity: 9}}}
faults: [{at_s: 300}]
""", "s.yaml")


def changed(*texts: str, doc: Document = DOC) -> Any:
    return apply(doc, changes_of(texts), label="--set").data


@pytest.mark.parametrize(("path", "segments"), [
    ("a", ("a",)), ("a.b.0.c", ("a", "b", 0, "c")), ('fleet.pools."my.pool".tp', ("fleet", "pools", "my.pool", "tp")),
    ('a."0"', ("a", "0")), ("a.*.b", ("a", "*", "b")),
])
def test_CS_20_paths(path: str, segments: tuple[Any, ...]) -> None:
    assert split_path(path) == segments


@pytest.mark.parametrize("path", ["", " ", "a..b", "a.", ".a", 'a."b', 'a."b"c', 'a."".b'])
def test_CS_20_bad_paths(path: str) -> None:
    with pytest.raises(ConfigError):
        split_path(path)


@pytest.mark.parametrize(("text", "path", "value"), [
    ("a.b=6", "a.b", 6), ("a=1e2", "a", 100.0), ("a=", "a", None), ("a=null", "a", None), ("a=[]", "a", []),
    ("a={b: [1, x]}", "a", {"b": [1, "x"]}),
    ("a=b=c", "a", "b=c"), ('a."x=y".b=1', 'a."x=y".b', 1), (" a =no", "a", "no"),
])
def test_CS_20_values(text: str, path: str, value: Any) -> None:
    assert parse_override(text) == (path, value)


def test_CS_20_without_equals_sign() -> None:
    with pytest.raises(ConfigError, match="expected path=value"):
        parse_override("fleet.pools")


def test_CS_20_sets_keys_entries_and_every_entry() -> None:
    assert changed("fleet.pools.chat.replicas=6")["fleet"]["pools"]["chat"]["replicas"] == 6
    assert changed('fleet.pools."my.pool".tp=2')["fleet"]["pools"]["my.pool"]["tp"] == 2
    assert [p["tp"] for p in changed("fleet.pools.*.tp=2")["fleet"]["pools"].values()] == [2, 2]
    assert changed("faults.0.at_s=1e2")["faults"] == [{"at_s": 100.0}]
    assert changed("faults=[]")["faults"] == []
    assert changed("a.b.c=1")["a"] == {"b": {"c": 1}}


def test_CS_20_the_later_one_wins_and_the_document_stays() -> None:
    assert changed("seed=1", "fleet={}", "seed=2")["seed"] == 2
    assert DOC.data["fleet"]["pools"]["chat"]["replicas"] == 4
    assert "seed" not in DOC.data


@pytest.mark.parametrize(("text", "sentence"), [
    ("faults.3.at_s=1", "--set faults.3: the list has 1 entry (index 0)"),
    ("faults.x=1", '--set faults.x: expected a list index, got "x"'),
    ("fleet.pools.chat.tp.x=1", "--set fleet.pools.chat.tp.x: unknown key; what stands above it is a single value"),
    ("none.*.x=1", '--set none.*: "*" matches nothing'),
])
def test_CS_20_sentences(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as e:
        changed(text)
    assert str(e.value) == sentence


def test_CS_20_another_kind_drops_the_parameters_but_not_the_wrappers() -> None:
    assert changed("control.queue.kind=fifo")["control"]["queue"] == {"kind": "fifo", "bounded": {"capacity": 9}}
    assert changed("control.queue.kind=fair")["control"]["queue"]["weight"] == 3


def test_CS_20_an_absent_part_can_stand_for_defaults() -> None:
    parts = {("control", "limit"): {"kind": "aimd"}}
    got = apply(Document({}), {"control.limit.cooldown_s": 5}, seed=lambda path, _: parts.get(path))
    assert got.data == {"control": {"limit": {"kind": "aimd", "cooldown_s": 5}}}


def test_overridden_places_are_named_after_the_override() -> None:
    doc = apply(DOC, {"fleet.pools.chat.tp": 2, "new.deep.key": 1}, label="--set")
    assert doc.where(("fleet", "pools", "chat", "tp")) == "--set"
    assert doc.where(("new",)) == "--set"
    assert doc.where(("fleet", "pools", "chat", "replicas")) == "s.yaml:2"


def test_CS_6_merge_is_deep_lists_replace_null_deletes() -> None:
    base = {"a": {"x": 1, "y": [1, 2]}, "b": 1, "c": {"kind": "aimd", "cooldown_s": 1}}
    over = {"a": {"y": [3], "z": 4}, "b": None, "c": {"kind": "fixed", "limit": 3}, "d": {"e": None}}
    assert merge(base, over) == {"a": {"x": 1, "y": [3], "z": 4}, "c": {"kind": "fixed", "limit": 3}, "d": {"e": None}}
    assert base["a"]["y"] == [1, 2]
