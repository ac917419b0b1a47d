"""Numbers of published systems: prefix reuse of a production trace, and token fairness."""

from __future__ import annotations

import gzip
import json

from windtunnel.datafiles import data_path
from windtunnel.lab.validation.check import Check, within
from windtunnel.sim.prefix import PrefixCache

PREFIX = "Prefix cache on a production trace (Mooncake)"
# capacity in blocks of 512 tokens: hit share by block, LRU touched first block first, and last block first
CONVERSATION: dict[int | None, tuple[float, float]] = {
    None: (0.3664, 0.3664), 50_000: (0.3546, 0.3546), 30_000: (0.3257, 0.3257), 10_000: (0.2112, 0.2116), 5859: (0.1355, 0.1361),
    1000: (0.0445, 0.0445)}


def run_prefix() -> list[Check]:
    """Hit shares of the conversation trace, to four digits."""
    with gzip.open(data_path("traces/mooncake_conversation.jsonl.gz"), "rt") as file:
        prompts = [json.loads(line)["hash_ids"] for line in file]
    blocks = sum(map(len, prompts))
    checks = []
    for capacity, expected in CONVERSATION.items():
        for touch, share in zip(("forward", "reverse"), expected):
            cache = PrefixCache(capacity, touch)  # type: ignore[arg-type]
            got = round(sum(map(cache.access, prompts)) / blocks, 4)
            checks.append(within(PREFIX, f"{capacity or 'unlimited'} blocks, {touch}", "hit share", share, got, 0.0, len(prompts),
                                 note="exact to 4 digits"))
    return checks
