"""Stable 64-bit hashes of text: the same in every process and on every machine (Python's own `hash` is not)."""

from __future__ import annotations

from hashlib import blake2b


def h64(text: str) -> int:
    """Hash of the UTF-8 bytes of `text` in [0, 2**64): blake2b with an 8-byte digest, big-endian."""
    return int.from_bytes(blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")
