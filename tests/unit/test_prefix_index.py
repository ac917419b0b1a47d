"""Which blocks each replica is thought to hold: runs from the first block, recency, bounds, forgetting."""

from __future__ import annotations

from windtunnel.policy.routing.prefix import PrefixIndex


def test_RT_42_match_is_the_longest_run_from_the_first_block() -> None:
    index = PrefixIndex()
    index.insert("a", (1, 2, 3, 4))
    index.insert("b", (1, 2))
    index.insert("c", (2, 3, 4))
    assert index.match((1, 2, 3, 9, 4)) == {"a": 3, "b": 2}
    assert index.match((2, 3)) == {"a": 2, "c": 2, "b": 1}
    assert index.match(()) == index.match((9, 1)) == PrefixIndex().match((1,)) == {}


def test_RT_42_match_does_not_touch_recency() -> None:
    index = PrefixIndex()
    index.insert("a", (1, 2, 3), 3)
    index.match((1, 2))
    index.insert("a", (4,), 3)
    assert index.held("a") == [2, 3, 4]


def test_RT_43_the_least_recent_goes_beyond_the_bound() -> None:
    index = PrefixIndex()
    index.insert("a", (1, 2, 3), 4)
    index.insert("a", (1, 2, 5), 4)
    assert index.held("a") == [3, 1, 2, 5]
    index.insert("a", (6, 7, 8, 9, 10), 4)
    assert index.held("a") == [7, 8, 9, 10] and set(index.holders) == {7, 8, 9, 10}
    index.insert("a", (11,), 0)
    assert index.held("a") == [] and index.holders == {}


def test_RT_43_forgetting_leaves_others_alone_and_frees_the_bit() -> None:
    index = PrefixIndex()
    for id in "abc":
        index.insert(id, (1, 2))
    index.forget("b")
    index.forget("b")
    index.forget("nobody")
    assert index.match((1, 2)) == {"a": 2, "c": 2} and index.held("b") == []
    index.insert("d", (1,))
    assert max(index.holders.values()) == 0b111 and index.match((1, 2)) == {"a": 2, "c": 2, "d": 1}
    index.remove("d", (1, 1, 7))
    index.remove("nobody", (1,))
    assert index.match((1,)) == {"a": 1, "c": 1}
