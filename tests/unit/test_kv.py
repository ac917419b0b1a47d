"""KV blocks in closed form."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from windtunnel.sim.kv import Blocks


def decoding(computed: list[int], *, size: int = 16, total: int | None = None, D: int = 0) -> Blocks:
    kv = Blocks(size, total)
    for tokens in computed:
        kv.join(tokens - D)
    return kv


def test_SK_2_worked() -> None:
    kv = decoding([15, 16, 33])
    assert kv.used(0) == 1 + 1 + 3
    assert [kv.growth(0, k) for k in range(1, 19)] == [1] + [2] * 14 + [3, 4, 5]


def test_SK_2_worked_last_affordable_step() -> None:
    assert decoding([15, 16, 33], total=5 + 2).affordable(0, 100) == 15
    assert decoding([15, 16, 33], total=5).affordable(0, 100) == 0
    assert decoding([15, 16, 33], total=None).affordable(0, 100) == 100


@given(computed=st.lists(st.integers(1, 90), min_size=1, max_size=9), size=st.sampled_from([1, 3, 16]), D=st.integers(0, 50),
       k=st.integers(0, 70), spare=st.integers(0, 12), other=st.integers(0, 5))
def test_SK_2_closed_form_equals_a_recount(computed: list[int], size: int, D: int, k: int, spare: int, other: int) -> None:
    def held(steps: int) -> int:
        return other + sum(-(-(c + steps) // size) for c in computed)

    kv = decoding(computed, size=size, total=held(0) + spare, D=D)
    kv.fixed = other
    assert kv.used(D + k) == held(k)
    assert kv.growth(D, k) == held(k) - held(0)
    assert kv.affordable(D, k) == max(j for j in range(k + 1) if held(j) <= held(0) + spare)
    assert kv.fits(D + k) == (held(k) <= held(0) + spare)
    assert not kv.surely_fits(D + k) or kv.fits(D + k)


def test_SK_1_leaving_undoes_joining() -> None:
    kv = decoding([15, 16, 33])
    for base in (16, 15, 33):
        kv.leave(base)
    assert (kv.n, kv.base_sum, kv.used(7), sum(kv.bins)) == (0, 0, 0, 0)
