"""What token fairness promises, measured on a small batch server: the service gap of backlogged clients, and what counting requests does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from windtunnel.events import Request
from windtunnel.policy.queueing.fair import FairTaskQueue, Queue
from windtunnel.policy.queueing.fifo import FifoQueue
from windtunnel.policy.queueing.item import Group, QueueItem
from windtunnel.policy.queueing.vtc import VtcQueue

BATCH_TOKENS, W_OUT = 4000, 2.0


def service_gap(queue: Queue, *, weights: tuple[float, float] = (1.0, 1.0), seed: int = 0, steps: int = 6000) -> tuple[float, float]:
    """(largest, last) |W_f/w_f - W_g/w_g| of two clients that are always backlogged, one with long requests, on a batch of decode steps.

    Every step gives each running request one token; whoever fits into BATCH_TOKENS is admitted between steps.
    """
    rng, now, n = np.random.default_rng(seed), 0.0, 0
    clients = {"long": (200, 400, weights[0]), "short": (30, 20, weights[1])}
    served = dict.fromkeys(clients, 0.0)
    running: dict[str, list[int | str]] = {}
    resident, worst = 0, 0.0

    def offer(name: str) -> None:
        nonlocal n
        n += 1
        request = Request(f"{name}-{n}", name, "m", 0, now, clients[name][0])
        queue.offer([QueueItem(request.id, Group(name, clients[name][2]), arrived_at=now, request=request)], now)

    for name in (*clients, *clients):
        offer(name)
    for _ in range(steps):
        while (found := queue.select(lambda i, v: True, now)) is not None:
            name = found.item.group.key
            tokens_in, mean_out, _ = clients[name]
            need = tokens_in + mean_out
            if resident + need > BATCH_TOKENS:
                break
            queue.commit(found, now)
            offer(name)
            running[found.item.id] = [name, 0, max(1, int(rng.integers(mean_out // 2, mean_out))), need]
            resident += need
            served[name] += tokens_in
        for item_id, state in list(running.items()):
            state[1] += 1  # type: ignore[operator]
            served[state[0]] += W_OUT  # type: ignore[index]
            if hasattr(queue, "charge"):
                queue.charge(item_id, state[1], now)
            if state[1] >= state[2]:  # type: ignore[operator]
                del running[item_id]
                resident -= state[3]  # type: ignore[operator]
                if hasattr(queue, "settle"):
                    queue.settle(item_id, state[1], now)
        now += 0.03
        gap = abs(served["long"] / weights[0] - served["short"] / weights[1])
        worst = max(worst, gap)
    return worst, gap


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 1.0), (0.5, 1.5)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_VT_7_INV_10_the_gap_of_backlogged_clients_is_bounded(weights: tuple[float, float], seed: int) -> None:
    bound = 2 * max(200.0, W_OUT * BATCH_TOKENS) / min(weights)
    worst, _ = service_gap(VtcQueue(), weights=weights, seed=seed)
    assert worst <= bound


@pytest.mark.parametrize("make", [FifoQueue, FairTaskQueue])
def test_VT_7_counting_requests_is_not_fair_in_tokens(make: Callable[[], Queue]) -> None:
    bound = 2 * W_OUT * BATCH_TOKENS
    half, _ = service_gap(make(), steps=6000)
    whole, _ = service_gap(make(), steps=12000)
    assert half > 3 * bound and whole > 1.8 * half, "the gap grows for ever"
