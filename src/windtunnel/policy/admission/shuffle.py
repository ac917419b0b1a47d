"""Shuffle sharding: each flow gets a hand of a few queues, so that heavy flows rarely cover all of a light one's.

Source: "Shuffle sharding" (MacCarthaigh, 2014); the dealing is that of Kubernetes API priority and fairness.
"""

from __future__ import annotations

from hashlib import blake2b
from math import comb

from windtunnel.policy.param import check_number


def hand_of(key: str, queues: int = 64, size: int = 8) -> tuple[int, ...]:
    """`size` different queues out of `queues` for a key, equally likely and the same every time. O(size²).

    Raises ConfigValueError for a hand larger than the deck.
    """
    check_number("queues", queues, lo=1, whole=True)
    check_number("size", size, lo=1, hi=queues, whole=True)
    drawn = int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=32).digest(), "big")
    hand: list[int] = []
    for left in range(queues, queues - size, -1):
        drawn, card = divmod(drawn, left)
        for taken in sorted(hand):
            card += taken <= card  # the card-th of those that are still in the deck
        hand.append(card)
    return tuple(hand)


def chance_covered(heavy: int, queues: int = 64, size: int = 8) -> float:
    """Probability that `heavy` flows together hold every queue of a light flow's hand (by inclusion and exclusion)."""
    check_number("heavy", heavy, lo=0, whole=True)
    check_number("size", size, lo=1, hi=queues, whole=True)
    hands: int = comb(queues, size) ** heavy
    ways: int = sum((-1) ** j * comb(size, j) * comb(queues - j, size) ** heavy for j in range(size + 1))  # exact: terms all but cancel
    return ways / hands
