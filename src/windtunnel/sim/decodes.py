"""Who decoded in which steps: with the steps' times, the exact gap before every token of every request."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from windtunnel.sim.attempt import Attempt
from windtunnel.sim.fleet import SimFleet
from windtunnel.sim.specdecode import steps_for
from windtunnel.sim.tokens import Pieces

Row = tuple[str, str, float, "float | None", int, int]  # request id, replica, t_s, first_s, step0, steps


class Decodes:
    """Stretches of decoding, one row each: a request got tokens in the steps step0 + 1 … step0 + steps of a replica, after one at t_s (run s).

    first_s: when the first of these tokens came, where that is not the end of step0 + 1. Attempts that run when the flight ends are left out.
    """

    def __init__(self, fleet: SimFleet) -> None:
        self.rows: list[Row] = []
        self._fleet = fleet
        fleet.on_dropped = self.dropped

    def options(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        """Engine callbacks of a replica, around those that are there."""
        def noting(tell: Callable[[Attempt], None]) -> Callable[[Attempt], None]:
            def ended(a: Attempt) -> None:
                self._note(name, a)
                tell(a)

            return ended

        return {**options, "pieces": True, "on_finish": noting(options["on_finish"]), "on_cancelled": noting(options["on_cancelled"])}

    def dropped(self, name: str, lost: Iterable[Attempt]) -> None:
        """A replica is gone with these on it; what they had got they had got."""
        for a in lost:
            self._note(name, a)

    def _note(self, name: str, a: Attempt) -> None:
        part = self._fleet.replicas[name].engine.part_of(a)
        if part is not None and part.pieces is not None and a.segments:
            self.rows.extend((a.id, part.name, *row) for row in stretches(a, part.pieces))

    def steps(self) -> Iterable[tuple[str, dict[str, Any]]]:
        """(replica, columns of the `steps` table) of every replica that stepped; of pipelines one per group of requests."""
        for name, p in [(part.name, part.pieces) for r in self._fleet.replicas.values() for part in r.engine.parts()]:
            if p is not None and len(p):
                ends = [t0 + (k * A + B * (k * (k - 1) * 0.5)) if k else t0 + A for t0, A, B, k in zip(p.t0, p.A, p.B, p.k)]
                yield name, {"t_s": p.t0, "end_s": ends, "step0": p.D0, "steps": p.k, "a_s": p.A, "b_s": p.B, "decode_seqs": p.b}


def stretches(a: Attempt, pieces: Pieces) -> list[tuple[float, float | None, int, int]]:
    """(t_s, first_s, step0, steps) of an attempt that has ended on this engine."""
    segments = a.segments or ()
    cuts = pieces.cuts.pop((a.id, a.dispatch), {})
    out: list[tuple[float, float | None, int, int]] = []
    lost_at: float | None = None
    for i, (n, D, at) in enumerate(segments):
        if lost_at is not None and at > lost_at:  # its prompt was computed again, and yielded this token
            out.append((lost_at, at, D, 1))
        lost_at = None
        if i in cuts:
            until, lost_at = cuts[i]
            steps = until - D
        elif i + 1 < len(segments):
            steps = segments[i + 1][1] - D
        else:
            steps = a.generated - n if pieces.g == 1.0 else steps_for(a.generated - n, pieces.g)
        if steps > 0:
            out.append((at, None, D, steps))
    return out
