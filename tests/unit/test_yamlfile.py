"""The YAML that scenarios may use: core scalars, lines for errors, and what is refused."""

from __future__ import annotations

import json
from math import inf, isnan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windtunnel.errors import ConfigError, ConfigFileError
from windtunnel.lab.yamlfile import MAX_BYTES, dotted, dump_yaml, parse_yaml, read_yaml


@pytest.mark.parametrize(("text", "value"), [
    ("no", "no"), ("on", "on"), ("yes", "yes"), ("True", "True"), ("true", True), ("false", False), ("1e3", 1000.0), ("10:30", "10:30"),
    ("-3", -3), ("+4", 4), ("0x10", 16), ("0o17", 15), ("010", 10), (".5", 0.5), ("5.", 5.0), ("1_000", "1_000"), ("", None), ("~", None),
    ("null", None), ("'1'", "1"), ('"true"', "true"), (".inf", inf), ("-.Inf", -inf), ("+.INF", inf), (".infinity", ".infinity"), ("inf", "inf"),
    ("nan", "nan"), ("'.inf'", ".inf"),
    ("2026-11-01", "2026-11-01"), ("=", "="),
])
def test_CS_10_core_scalars(text: str, value: Any) -> None:
    got = parse_yaml(f"a: {text}").data["a"]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("text", [".nan", ".NaN", ".NAN"])
def test_CS_10_no_number_is_a_number_too(text: str) -> None:
    got = parse_yaml(f"a: {text}").data["a"]
    assert isinstance(got, float) and isnan(got)
    assert dump_yaml({"a": got}) == "{a: .nan}\n"


def test_CS_10_keys_stay_text() -> None:
    assert parse_yaml("no: 1\n5: 2\ntrue: 3").data == {"no": 1, "5": 2, "true": 3}


def test_CS_10_every_node_keeps_file_and_line() -> None:
    doc = parse_yaml("a:\n  b: 1\n  c:\n    - x\n    - {d: 2}\n", "f.yaml")
    assert doc.where(("a", "b")) == "f.yaml:2"
    assert doc.where(("a", "c", 1, "d")) == "f.yaml:5"
    assert doc.where(("a", "c", 1, "unwritten", "deep")) == "f.yaml:5"


@pytest.mark.parametrize(("text", "words"), [
    ("a: 1\nb:\n  c: 1\n  c: 2", "f.yaml:4: b.c: written twice (first at f.yaml:3)"),
    ("a: !!int 3", "tags such as"),
    ("a: !mine x", "tags such as !mine"),
    ("a: &x {b: 1}\nc: {<<: *x}", 'use "extends"'),
    ("a: &x [*x]", "an anchor that holds itself"),
    ("? [1, 2]\n: 3", "a key must be a word"),
    ("a: [1", "not YAML"),
    ("a: 1\n\tb: 2", "f.yaml:2: not YAML"),
    ("a: " + "[" * 5000, "nested too deeply"),
    ("a: 1\n---\nb: 2", "not YAML"),
])
def test_CS_10_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as e:
        parse_yaml(text, "f.yaml")
    assert words in str(e.value)
    assert e.value.where.startswith("f.yaml")


def test_CS_10_a_hundred_uses_of_anchors_are_fine() -> None:
    used = "a: &x {b: 1}\nc: [" + ", ".join(["*x"] * 100) + "]"
    assert parse_yaml(used).data["c"][99] == {"b": 1}
    with pytest.raises(ConfigFileError, match="more than 100 uses"):
        parse_yaml(used[:-1] + ", *x]")


def test_CS_10_an_alias_bomb_ends_early() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(ConfigFileError, match="more than 100 uses"):
        parse_yaml("\n".join(lines))
    with pytest.raises(ConfigFileError, match="more than 300000 values"):
        parse_yaml("\n".join(lines[:9]))


def test_CS_10_size_encoding_and_missing_files(tmp_path: Path) -> None:
    big = tmp_path / "big.yaml"
    big.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigFileError, match="at most 1 MiB"):
        read_yaml(big)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    with pytest.raises(ConfigFileError, match="not UTF-8"):
        read_yaml(tmp_path / "latin.yaml")
    with pytest.raises(ConfigFileError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")


def test_CS_10_json_is_accepted(tmp_path: Path) -> None:
    data = {"a": [1, 2.5, "x\ty", None, True], "b": {"c": "no: [", "d": "é"}}
    path = tmp_path / "s.json"
    path.write_text(json.dumps(data, indent="\t"), "utf-8")
    assert read_yaml(path).data == data


TRICKY = [".inf", "-.INF", ".nan", "no", "1e3", "10:30", "0o7", "~", "true", "# x", ": y", "- z", "&a", "*a", "!t", "<<", "=", "2026-11-01", " x ",
          "1_0"]
numbers = st.integers(-2**63, 2**63) | st.floats(allow_nan=False)
leaves = st.none() | st.booleans() | numbers | st.text(max_size=12) | st.sampled_from(TRICKY)
keys = st.text(max_size=6).filter(lambda k: k != "<<")
plain = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8)


@settings(max_examples=150, deadline=None)
@given(plain)
def test_what_is_written_reads_back_the_same(data: Any) -> None:
    got = parse_yaml(dump_yaml({"root": data})).data["root"]
    assert got == data
    assert json.dumps(got) == json.dumps(data)


def test_dotted_quotes_keys_with_dots() -> None:
    assert dotted(("fleet", "pools", "my.pool", 0)) == 'fleet.pools."my.pool".0'
