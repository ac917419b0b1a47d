"""Recursions that give every single wait of a queue, written without an event list: what the simulator must equal request by request."""

from __future__ import annotations

from bisect import insort

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def lindley(arrived_s: Floats, service_s: Floats) -> Floats:
    """Waits (s) of a single server in order of arrival: W' = max(0, W + S - A)."""
    waits = np.empty(len(arrived_s))
    wait, last, before = 0.0, float("-inf"), 0.0
    for i, (at, work) in enumerate(zip(arrived_s.tolist(), service_s.tolist())):
        wait = max(0.0, wait + before - (at - last))
        waits[i], last, before = wait, at, work
    return waits


def kiefer_wolfowitz(arrived_s: Floats, service_s: Floats, servers: int) -> Floats:
    """Waits (s) of `servers` servers in order of arrival: sorted times at which each gets free."""
    waits = np.empty(len(arrived_s))
    free = [float("-inf")] * servers
    for i, (at, work) in enumerate(zip(arrived_s.tolist(), service_s.tolist())):
        begins = max(at, free.pop(0))
        waits[i] = begins - at
        insort(free, begins + work)
    return waits


def processor_sharing(arrived_s: Floats, service_s: Floats) -> Floats:
    """Ends (s) of a shared single server: what is left of each request shrinks by elapsed / present between events. O(n · present)."""
    ends = np.empty(len(arrived_s))
    left: dict[int, float] = {}
    now = 0.0
    for i, (at, work) in enumerate(zip((*arrived_s.tolist(), float("inf")), (*service_s.tolist(), 0.0))):
        while left:
            first = min(left, key=left.__getitem__)
            due = now + left[first] * len(left)
            if due > at:
                break
            share = left.pop(first)
            for other in left:
                left[other] -= share
            ends[first] = now = due
        if left:
            share = (at - now) / len(left)
            for other in left:
                left[other] -= share
        now = at
        if i < len(ends):
            left[i] = work
    return ends
