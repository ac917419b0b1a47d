"""AIMD against closed forms: the sawtooth of the limit, and the throughput that a server with hard slots gives."""

from __future__ import annotations

import pytest

from windtunnel.lab.validation.oracles.limits import PAUSES, SAWS, sawtooth, throughput


@pytest.mark.parametrize(("capacity", "config", "peak", "trough", "mean", "successes"), SAWS)
def test_OR_2_sawtooth(capacity, config, peak, trough, mean, successes) -> None:  # type: ignore[no-untyped-def]
    assert sawtooth(capacity, config) == (peak, trough, mean, successes)


@pytest.mark.parametrize(("slots", "service_s", "cooldown_s", "expected", "fluid"), PAUSES)
def test_OR_3_throughput_with_cool_down(slots: int, service_s: float, cooldown_s: float, expected: float, fluid: float) -> None:
    got = throughput(slots, service_s, cooldown_s, 16_000 / expected)
    assert got == pytest.approx(expected, rel=0.02)
    assert got >= fluid


@pytest.mark.parametrize(("slots", "service_s", "cooldown_s", "expected", "fluid"), PAUSES)
def test_OR_3_the_fluid_model_of_the_same_sawtooth(slots: int, service_s: float, cooldown_s: float, expected: float, fluid: float) -> None:
    levels = range(int(0.75 * (slots + 1)), slots + 1)
    cycle_s = service_s * 25 * sum(1 / level for level in levels) + cooldown_s
    assert 25 * len(levels) / cycle_s == pytest.approx(fluid, abs=1e-4)
