"""The same batching, step times and request files as a public simulator (Vidur 0.0.26) give its numbers."""

from __future__ import annotations

import pytest

from windtunnel.lab.validation.vidur import EXPECTED, Run, run_vidur
from windtunnel.sim.stepmodels.model import Batch
from windtunnel.sim.stepmodels.vidur import VidurRoofline


@pytest.mark.parametrize("run", list(EXPECTED))
def test_SQ_20_as_the_public_simulator(run: Run) -> None:
    checks = run_vidur(run)
    assert len(checks) == 15
    assert [c for c in checks if not c.passed] == []


@pytest.mark.parametrize(("batch", "seconds"), [
    (Batch(0, 0, [(512, 0)], 512, 1, 1), 0.013869351), (Batch(1, 1023, [], 1, 1, 1), 0.005923571),
    (Batch(8, 8 * 1023, [], 8, 8, 8), 0.006320605), (Batch(32, 32 * 1023, [], 32, 32, 32), 0.007717871),
    (Batch(64, 64 * 1023, [], 64, 64, 64), 0.009580894)])
def test_SM_22_check_values(batch: Batch, seconds: float) -> None:
    assert VidurRoofline().seconds(batch) == pytest.approx(seconds, abs=5e-10)
