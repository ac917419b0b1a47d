"""What waiting costs does not grow with the number of those who wait."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "sims" / "bench"))

from admission import enqueue_and_cancel, expiry, one_grant


def test_PF_3_nothing_grows_with_the_number_of_waiters() -> None:
    """A scan of the line would cost 100 times more; the bars themselves are printed by the benchmark."""
    assert one_grant(4000, 1000) <= 25 * one_grant(16, 1000)
    assert enqueue_and_cancel(8000, 1000) <= 25 * enqueue_and_cancel(64, 1000)
    assert expiry(8000) <= 40 * expiry(250)
