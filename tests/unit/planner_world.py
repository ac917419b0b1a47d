"""For tests: a planner whose plugin says what it is told to, and a fleet that answers its plans."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from windtunnel.effects import Ask, Drain, Note, ScaleTo, WakeAt
from windtunnel.events import Arrived, ReplicaBooting, ReplicaGone, ReplicaReady, Request, ScaleAnswered, Woke
from windtunnel.policy.planning.contract import Accept, ComponentTarget, Override, OverrideType, Stage, StageResponse
from windtunnel.policy.planning.plugin import Attached, Registration
from windtunnel.policy.planning.settings import PlannerSettings
from windtunnel.policy.planning.settings_blocks import LoadSettings, PoolSettings, SchedulingSettings
from windtunnel.policy.planning.shell import PipelinePlanner

ACCEPT = StageResponse(Accept())
KINDS = {"=": OverrideType.SET, ">": OverrideType.AT_LEAST, "<": OverrideType.AT_MOST}


def says(text: str) -> StageResponse:
    """ "agg=5 agg>2"."""
    targets = []
    for word in text.split():
        [sign] = [c for c in word if c in KINDS]
        name, n = word.split(sign)
        targets.append(ComponentTarget(name, int(n), KINDS[sign]))
    return StageResponse(Override(tuple(targets)))


class Says:
    """Says the same until told otherwise."""

    def __init__(self, response: Any = ACCEPT) -> None:
        self.response, self.requests = response, []

    def propose(self, request: Any) -> Any:
        self.requests.append(request)
        if isinstance(self.response, Exception):
            raise self.response
        return self.response

    constrain = propose


def base(**changes: Any) -> PlannerSettings:
    made = PlannerSettings(mode="agg", pools={"agg": PoolSettings()}, load=LoadSettings(enabled=False), other_proposers=True,
                           scheduling=SchedulingSettings(scale_interval_s=5.0))
    return replace(made, **changes)


class World:
    """A fleet that answers every plan at once; boots take boot_s, None: never end. stepping by `run(until)`."""

    def __init__(self, plugin: Any, ready: int = 3, *, settings: PlannerSettings | None = None, boot_s: float | None = 10.0,
                 stage: Stage = Stage.PROPOSE, wants: frozenset[str] = frozenset({"planner"}), status: str = "accepted", **reg: Any) -> None:
        self.settings = settings or base()
        self.planner = PipelinePlanner(self.settings, [Attached(Registration("a", stage, **reg), plugin)], wants=wants)
        self.boot_s, self.status, self.now, self.made = boot_s, status, 0.0, 0
        self.names = {pool: [] for pool in self.planner.pools}
        self.boots: list[tuple[float, str, str]] = []
        self.plans: list[tuple[float, dict[str, int], str]] = []
        self.inbox: list[Any] = []
        self.asks: list[Ask] = []
        self.notes: list[Note] = []
        self.wakes: dict[str, float] = {}
        self.drains: list[Drain] = []
        self.take(self.planner.start(0.0))
        for pool in self.names:
            for _ in range(ready):
                self.made += 1
                self.names[pool].append(f"r{self.made}")
                self.tell(ReplicaReady(f"r{self.made}", pool))

    def tell(self, event: Any) -> None:
        """As a driver: what happens while effects are carried out waits its turn."""
        self.inbox.append(event)
        if len(self.inbox) == 1:
            while self.inbox:
                self.take(self.planner.handle(self.inbox[0], self.now))
                self.inbox.pop(0)

    def take(self, effects: Any) -> None:
        for effect in effects:
            match effect:
                case WakeAt():
                    self.wakes[effect.key] = effect.at
                case ScaleTo():
                    self.plans.append((self.now, dict(effect.targets), effect.reason))
                    self.scale(effect)
                case Drain():
                    self.drains.append(effect)
                    self.names[self.pool_of(effect.replica)].remove(effect.replica)
                    self.tell(ReplicaGone(effect.replica, effect.reason))
                case Ask():
                    self.asks.append(effect)
                case Note():
                    self.notes.append(effect)

    def pool_of(self, replica: str) -> str:
        return next(pool for pool, names in self.names.items() if replica in names)

    def scale(self, effect: ScaleTo) -> None:
        if self.status == "accepted":
            for pool, n in effect.targets:
                while len(self.names[pool]) < n:
                    self.made += 1
                    self.names[pool].append(f"r{self.made}")
                    self.boots.append((self.now + (self.boot_s or 1e9), f"r{self.made}", pool))
                    self.tell(ReplicaBooting(f"r{self.made}", pool))
        if self.status:
            self.tell(ScaleAnswered(effect.plan_id, self.status))

    def run(self, until: float) -> None:
        while True:
            times = [(at, 1, key) for key, at in self.wakes.items()] + [(at, 0, name) for at, name, _ in self.boots]
            at, kind, name = min(times)
            if at > until:
                self.now = until
                return
            self.now = at
            if kind:
                del self.wakes[name]
                self.tell(Woke(name))
            else:
                [(boot)] = [b for b in self.boots if b[1] == name]
                self.boots.remove(boot)
                if name in self.names[boot[2]]:
                    self.tell(ReplicaReady(name, boot[2], boot_s=self.boot_s))

    def arrive(self) -> None:
        self.made += 1
        self.tell(Arrived(Request(f"q{self.made}", "t", "m", 0, self.now)))

    def kinds(self) -> list[str]:
        return [n.kind for n in self.notes]

    @property
    def row(self) -> dict[str, Any]:
        return self.planner.view()["components"]["agg"]
