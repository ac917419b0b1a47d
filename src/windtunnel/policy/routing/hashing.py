"""Stable 64-bit hashes: the same in every process and on every machine (Python's own `hash` is not)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from hashlib import blake2b

from windtunnel.errors import ConfigValueError
from windtunnel.policy.param import check_number

TOKEN_IDS = 1 << 32


def h64(text: str) -> int:
    """Hash of the UTF-8 bytes of `text` in [0, 2**64): blake2b with an 8-byte digest, big-endian."""
    return int.from_bytes(blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")


def block_hashes(tokens: Iterable[int], block_tokens: int = 16, salt: str | None = None) -> tuple[int, ...]:
    """One chained hash in [0, 2**64) per full block of token ids: equal hashes mean equal prefixes up to and with that block.

    A tail that fills no block has none. salt: of a tenant, an adapter or a marker; prompts of different salts share no block.
    Raises ConfigValueError for a block of no tokens and for ids outside [0, 2**32).
    """
    check_number("block_tokens", block_tokens, lo=1, whole=True)
    ids = list(tokens)
    full = len(ids) - len(ids) % block_tokens
    try:
        packed = struct.pack(f"<{full}I", *ids[:full])
    except struct.error:
        raise ConfigValueError("tokens", f"expected token ids from 0 to {TOKEN_IDS - 1}") from None
    before, out = (0 if salt is None else h64(salt)).to_bytes(8, "little"), []
    for at in range(0, 4 * full, 4 * block_tokens):
        before = blake2b(before + packed[at : at + 4 * block_tokens], digest_size=8).digest()
        out.append(int.from_bytes(before, "little"))
    return tuple(out)


def session_block(session: str, block: int) -> int:
    """The block id in [0, 2**64) of a block that is numbered within its session: equal numbers of two sessions are different blocks."""
    return h64(f"{session}:{block}")
