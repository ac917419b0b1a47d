"""The newest report of every engine rank, forgotten when it is old or its replica has left."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from windtunnel.policy.planning.contract import ForwardPass, FpmData


class FpmStore:
    """Reports of engine steps by component. max_age_s: an older report tells nothing about now."""

    def __init__(self, max_age_s: float) -> None:
        self.max_age_s = max_age_s
        self._newest: dict[str, dict[tuple[str, int], ForwardPass]] = {}

    def report(self, component: str, report: ForwardPass) -> None:
        """Late and repeated reports are ignored."""
        ranks = self._newest.setdefault(component, {})
        known = ranks.get((report.replica_id, report.rank))
        if known is None or (report.at_s, report.counter) > (known.at_s, known.counter):
            ranks[report.replica_id, report.rank] = report

    def data(self, live: Mapping[str, Collection[str]], now: float) -> FpmData | None:
        """Reports of live replicas (component -> ids that serve and do not drain); a pool without any is absent, none at all is None."""
        engines = {}
        for component, ranks in self._newest.items():
            alive = live.get(component, ())
            for key in [k for k, r in ranks.items() if k[0] not in alive or now - r.at_s > self.max_age_s]:
                del ranks[key]
            if ranks:
                engines[component] = {f"{replica}/{rank}": r for (replica, rank), r in sorted(ranks.items())}
        return FpmData(engines) if engines else None
