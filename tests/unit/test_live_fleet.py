"""The fleet file: what it may hold and what is said when it is wrong."""

from __future__ import annotations

import pytest

from windtunnel.errors import ConfigError, ConfigFileError
from windtunnel.live.fleet import LiveFleet

GOOD = """
name: prod-chat
pools:
  chat:
    engine: llamacpp
    model: tiny
    urls: ["http://127.0.0.1:8090/", "env:CHAT_URL"]
    slots: 8
    usd_per_hour: 2.5
    options: {api_key: "file:key.txt", retries: 2}
  spare: {engine: mock, replicas: 2}
"""


@pytest.fixture
def write(tmp_path):
    def _write(text: str):
        path = tmp_path / "fleet.yaml"
        path.write_text(text, "utf-8")
        return path
    return _write


def test_a_good_file(write, tmp_path, monkeypatch):
    monkeypatch.setenv("CHAT_URL", "https://secret.example:8443/base")
    (tmp_path / "key.txt").write_text("s3cret\n")
    fleet = LiveFleet.load(write(GOOD))
    ends = fleet.endpoints()
    assert [(e.name, e.pool, e.engine, e.url, e.slots) for e in ends] == [
        ("chat-0", "chat", "llamacpp", "http://127.0.0.1:8090", 8), ("chat-1", "chat", "llamacpp", "https://secret.example:8443/base", 8),
        ("spare-0", "spare", "mock", "mock://spare-0", None), ("spare-1", "spare", "mock", "mock://spare-1", None),
    ]
    assert dict(ends[0].options) == {"api_key": "s3cret", "retries": 2}
    assert ends[1].shown == "env:CHAT_URL"
    assert fleet.prices() == {"chat": 2.5, "spare": None}
    assert [(p.name, p.replicas, p.slots) for p in fleet.pool_facts()] == [("chat", 2, 8), ("spare", 2, None)]


def test_secrets_are_never_shown(write, tmp_path, monkeypatch):
    monkeypatch.setenv("CHAT_URL", "https://secret.example:8443/base")
    (tmp_path / "key.txt").write_text("s3cret\n")
    fleet = LiveFleet.load(write(GOOD))
    text = repr(fleet) + repr(fleet.endpoints()) + fleet.model_dump_json()
    assert "secret.example" not in text and "s3cret" not in text


def test_one_url_may_stand_alone(write):
    fleet = LiveFleet.load(write("name: a\npools: {chat: {engine: openai, urls: 'http://h:1'}}"))
    assert [e.url for e in fleet.endpoints()] == ["http://h:1"]


@pytest.mark.parametrize(("text", "words"), [
    ("[1, 2]", "expected a mapping with name and pools, got list"),
    ("pools: {chat: {engine: mock}}", "name: is missing"),
    ("name: a", "pools: is missing"),
    ("name: a\npools: {}", "pools"),
    ("name: a b\npools: {chat: {engine: mock}}", "name: expected letters"),
    ("name: a\npools: {'x y': {engine: mock}}", "pools: expected letters"),
    ("name: a\npools: {chat: {engine: llama}}", "pools.chat.engine: expected 'llamacpp', 'openai', 'vllm' or 'mock', got 'llama'"),
    ("name: a\npools: {chat: {engine: mock, slot: 3}}", 'pools.chat.slot: unknown key; did you mean "slots"?'),
    ("name: a\nfleet: 3\npools: {chat: {engine: mock}}", "fleet: unknown key"),
    ("name: a\npools: {chat: {engine: mock, slots: 0}}", "pools.chat.slots: expected greater than or equal to 1, got 0"),
    ("name: a\npools: {chat: {engine: openai}}", "pools.chat.urls: expected at least one address"),
    ("name: a\npools: {chat: {engine: openai, urls: [localhost]}}", "pools.chat.urls.0: expected an address such as http://"),
    ("name: a\npools: {chat: {engine: openai, urls: ['http://h:x']}}", "pools.chat.urls.0: expected an address"),
    ("name: a\npools: {chat: {engine: openai, urls: ['http://h:1?a=b']}}", "pools.chat.urls.0: expected an address without"),
    ("name: a\npools: {chat: {engine: openai, urls: ['env:NO_SUCH_VAR']}}", "pools.chat.urls.0: the environment variable 'NO_SUCH_VAR'"),
    ("name: a\npools: {chat: {engine: openai, urls: ['file:no.txt']}}", "pools.chat.urls.0: cannot read the file 'no.txt'"),
    ("name: a\npools: {chat: {engine: openai, urls: ['http://h:1'], replicas: 2}}", "pools.chat.replicas: only a mock pool"),
    ("name: a\npools: {a: {engine: openai, urls: ['http://h:1']}, b: {engine: openai, urls: ['http://h:1/']}}",
     "pools.b.urls.0: the same address as pools.a.urls.0"),
])
def test_what_is_wrong_is_one_sentence_with_the_file_and_the_path(write, text, words):
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        LiveFleet.load(path)
    assert words in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(write, tmp_path):
    with pytest.raises(ConfigFileError, match="No such file"):
        LiveFleet.load(tmp_path / "none.yaml")
    with pytest.raises(ConfigFileError, match="not YAML"):
        LiveFleet.load(write("name: [a"))
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: \xff")
    with pytest.raises(ConfigFileError, match="not UTF-8"):
        LiveFleet.load(path)
