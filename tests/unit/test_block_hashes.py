"""Hashes of prompt blocks: fixed numbers, chained, apart by salt and by session."""

from __future__ import annotations

import subprocess
import sys

import pytest

from windtunnel.errors import ConfigValueError
from windtunnel.policy.routing.hashing import block_hashes, h64, session_block


def test_RT_40_worked() -> None:
    assert block_hashes(range(1, 10), 4) == (658132497017838498, 7641984106258271874)
    assert block_hashes([1, 2, 3, 4, 9, 9, 9, 9], 4) == (658132497017838498, 17869378239503043976)
    assert block_hashes([5, 6, 7, 8], 4) == (5011213382142934365,)


def test_RT_40_only_full_blocks_have_a_hash() -> None:
    assert block_hashes([]) == block_hashes(range(15)) == ()
    assert len(block_hashes(range(16))) == len(block_hashes(range(31))) == 1
    assert block_hashes(range(100), 1)[:40] == block_hashes(range(40), 1)


def test_RT_40_a_salt_keeps_prompts_apart() -> None:
    ids = list(range(64))
    plain, acme, flood = block_hashes(ids), block_hashes(ids, salt="acme"), block_hashes(ids, salt="flood·ü")
    assert not set(plain) & set(acme) and not set(acme) & set(flood)
    assert block_hashes(ids, salt="acme") == acme


def test_RT_40_a_block_depends_on_all_before_it() -> None:
    one, other = block_hashes([1] * 32, 16), block_hashes([2] + [1] * 31, 16)
    assert one[1] != other[1] and one[0] != one[1]


@pytest.mark.parametrize(("tokens", "size", "named"), [([1], 0, "block_tokens"), ([1], 1.5, "block_tokens"), ([-1], 1, "tokens"),
                                                       ([2**32], 1, "tokens"), ([1.5], 1, "tokens"), ([float("nan")], 1, "tokens")])
def test_RT_40_what_is_no_token_is_refused(tokens: list[int], size: int, named: str) -> None:
    with pytest.raises(ConfigValueError, match=named):
        block_hashes(tokens, size)


def test_RT_41_ids_of_a_session_are_made_global() -> None:
    assert session_block("trace_0291", 7) == h64("trace_0291:7")
    assert session_block("a", 7) != session_block("b", 7)
    assert session_block("ü", 2**70) == h64(f"ü:{2**70}")


def test_RT_40_the_same_in_every_process() -> None:
    code = "from windtunnel.policy.routing.hashing import block_hashes; print(block_hashes(range(32), 16, salt='s'))"
    said = {subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}, check=True,
                           capture_output=True, text=True).stdout for seed in ("1", "2")}
    assert said == {f"{block_hashes(range(32), 16, salt='s')}\n"}
