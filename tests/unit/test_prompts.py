from __future__ import annotations

import subprocess
import sys

import pytest

from windtunnel.errors import ConfigValueError
from windtunnel.policy.routing.hashing import h64
from windtunnel.sources.traces.prompts import WORDS, Prompts


def test_RT_40_h64_is_fixed() -> None:
    assert h64("session-1") == 12558777036138866604 and h64("r0#0") == 17876365534358666919


def test_TR_21_equal_blocks_give_equal_tokens() -> None:
    prompts = Prompts("moon", block_size=16)
    one, other = prompts.token_ids("a", 40, (7, 8, 9)), prompts.token_ids("b", 60, (7, 8, 9))
    assert len(one) == 40 and len(other) == 60
    assert one[:40] == other[:40]  # a partial last block is the beginning of that block
    assert one != Prompts("other", block_size=16).token_ids("a", 40, (7, 8, 9))
    assert prompts.token_ids("a", 40, (7, 8, 1))[:32] == one[:32] and prompts.token_ids("a", 40, (7, 8, 1))[32:] != one[32:]


def test_TR_21_fresh_tails_are_the_requests_own() -> None:
    prompts = Prompts("moon", block_size=16)
    one, other = prompts.token_ids("a", 30, (7,)), prompts.token_ids("b", 30, (7,))
    assert one[:16] == other[:16] and one[16:] != other[16:]
    assert prompts.token_ids("a", 30) == prompts.token_ids("a", 30, ()) != prompts.token_ids("b", 30)


def test_TR_21_one_word_is_one_token() -> None:
    text = Prompts("moon").text("a", 1000, (1,))
    assert len(text.split(" ")) == 1000 and set(text.split()) <= set(WORDS)
    assert len(set(WORDS)) == len(WORDS) and all(word.isalpha() and word.islower() for word in WORDS)
    assert Prompts("moon").content("a", 3)["messages"][0]["role"] == "user" and Prompts("moon").text("a", 0) == ""


def test_TR_21_the_same_in_every_process() -> None:
    code = "from windtunnel.sources.traces.prompts import Prompts; print(Prompts('moon', 16).token_ids('a', 40, (7, 8)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "5"}).stdout
    assert out.strip() == str(Prompts("moon", 16).token_ids("a", 40, (7, 8)))


def test_bad_prompt_settings_are_named() -> None:
    for name, options in (("block_size", {"block_size": 0}), ("vocabulary", {"vocabulary": ()})):
        with pytest.raises(ConfigValueError) as caught:
            Prompts("moon", **options)  # type: ignore[arg-type]
        assert caught.value.field == name
