"""The rollout against a fleet that boots, drains and loses replicas in any order: the GPU ceiling holds at every instant."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from windtunnel.effects import Drain, ScaleTo
from windtunnel.policy.planning.pool_states import Pool, PoolFrame
from windtunnel.policy.planning.rollout import Rollout

MAX_GPUS, DRAIN_S = 8, 120.0
GPUS = {"prefill": 2, "decode": 1}


class World(RuleBasedStateMachine):
    """Does what it is told, late: replicas are (pool, state, in_flight, kill_at)."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.made = 0.0, 0
        self.replicas: dict[str, list] = {}
        self.pools = {name: Pool(PoolFrame(name, f"pool-{name}", gpus=gpus)) for name, gpus in GPUS.items()}
        self.rollout = Rollout(self.pools, max_gpus=MAX_GPUS, drain_timeout_s=DRAIN_S)
        self.rollout.in_flight = lambda r: self.replicas[r][2]
        self.owed: list[ScaleTo] = []
        self.last: dict[str, int] = {}

    @initialize(prefill=st.integers(0, 2), decode=st.integers(0, 4))
    def begin(self, prefill, decode):
        for name, n in (("prefill", prefill), ("decode", decode)):
            for _ in range(n):
                self.boot(name)
            for r in [r for r, v in self.replicas.items() if v[0] == name]:
                self.replicas[r][1] = "ready"
                self.pools[name].serves(r, None, self.now)

    def boot(self, name):
        self.made += 1
        replica = f"{name}-{self.made}"
        self.replicas[replica] = [name, "starting", 0, None]
        self.pools[name].booting(replica, self.now)

    def gone(self, replica):
        name, state, in_flight, kill_at = self.replicas.pop(replica)
        if in_flight and state == "draining":
            assert kill_at is not None and self.now >= kill_at - 1e-9
        self.pools[name].gone(replica)
        self.carry(self.rollout.step(self.now))

    def carry(self, effects):
        """Effects are carried out in order; a ScaleTo is answered and fulfilled later."""
        for effect in effects:
            if isinstance(effect, Drain):
                entry = self.replicas.get(effect.replica)
                if entry is None:
                    continue
                if effect.undo:
                    assert entry[1] == "draining"
                    entry[1], entry[3] = "ready", None
                    self.pools[entry[0]].serves(effect.replica, None, self.now)
                elif entry[1] == "starting":
                    entry[1] = "draining"
                    self.gone(effect.replica)
                else:
                    assert effect.deadline_at == self.now + DRAIN_S
                    entry[1], entry[3] = "draining", effect.deadline_at
            else:
                for pool, _ in effect.targets:
                    assert all(pool not in dict(o.targets) for o in self.owed), "two ScaleTo wait for one pool"
                self.owed.append(effect)

    @rule(dt=st.sampled_from([1.0, 30.0, 120.0]))
    def wait(self, dt):
        self.now += dt
        for replica in [r for r, v in self.replicas.items() if v[1] == "draining" and (not v[2] or self.now >= v[3])]:
            self.gone(replica)

    @rule(prefill=st.one_of(st.none(), st.integers(0, 4)), decode=st.one_of(st.none(), st.integers(0, 8)))
    def plan(self, prefill, decode):
        wanted = {"prefill": prefill, "decode": decode}
        full = {c: self.pools[c].baseline or 0 if n is None else n for c, n in wanted.items()}
        if sum(full[c] * GPUS[c] for c in full) > MAX_GPUS:
            return  # the boundary lets no such plan through
        changed = {c: n for c, n in wanted.items() if n is not None and n != self.pools[c].baseline}
        if not changed:
            return
        self.carry(self.rollout.submit(changed, "d", "r", self.now))
        self.last.update(changed)

    @precondition(lambda self: self.owed)
    @rule(data=st.data())
    def answer(self, data):
        plan = self.owed.pop(data.draw(st.integers(0, len(self.owed) - 1)))
        self.rollout.answered(plan.plan_id)
        for pool, n in plan.targets:
            name = pool.removeprefix("pool-")
            have = [r for r, v in self.replicas.items() if v[0] == name and v[1] != "draining"]
            for _ in range(n - len(have)):
                self.boot(name)
            assert len(have) <= n or self.rollout.plan, "victims are chosen before the order"
        self.carry(self.rollout.step(self.now))

    @precondition(lambda self: any(v[1] == "starting" for v in self.replicas.values()))
    @rule(data=st.data())
    def ready(self, data):
        replica = data.draw(st.sampled_from(sorted(r for r, v in self.replicas.items() if v[1] == "starting")))
        self.replicas[replica][1] = "ready"
        self.pools[self.replicas[replica][0]].serves(replica, 10.0, self.now)
        self.carry(self.rollout.step(self.now))

    @precondition(lambda self: any(v[1] == "ready" for v in self.replicas.values()))
    @rule(data=st.data(), n=st.integers(0, 3))
    def work(self, data, n):
        replica = data.draw(st.sampled_from(sorted(r for r, v in self.replicas.items() if v[1] == "ready")))
        self.replicas[replica][2] = n

    @precondition(lambda self: self.replicas)
    @rule(data=st.data())
    def crash(self, data):
        replica = data.draw(st.sampled_from(sorted(self.replicas)))
        entry = self.replicas[replica]
        entry[2] = 0
        if not self.owed:  # a world that answers late may boot for a plan made before the crash
            self.gone(replica)

    @invariant()
    def ceiling(self):
        used = sum(GPUS[v[0]] for v in self.replicas.values())
        assert used <= MAX_GPUS, f"{used} GPUs"

    @invariant()
    def same_books(self):
        for name, pool in self.pools.items():
            assert set(pool.ready) | set(pool.starting) | set(pool.draining) == {r for r, v in self.replicas.items() if v[0] == name}

    @precondition(lambda self: not self.owed and not self.rollout.plan)
    @rule()
    def again(self):
        assert self.rollout.step(self.now) == []

    def teardown(self):
        for _ in range(60):  # left alone, every plan is reached
            while self.owed:
                plan = self.owed.pop(0)
                self.rollout.answered(plan.plan_id)
                for pool, n in plan.targets:
                    name = pool.removeprefix("pool-")
                    for _ in range(n - sum(v[0] == name and v[1] != "draining" for v in self.replicas.values())):
                        self.boot(name)
                self.carry(self.rollout.step(self.now))
            self.wait(120.0)
            for replica in [r for r, v in self.replicas.items() if v[1] == "starting"]:
                self.replicas[replica][1] = "ready"
                self.pools[self.replicas[replica][0]].serves(replica, 1.0, self.now)
                self.carry(self.rollout.step(self.now))
        assert not self.rollout.plan
        for name, pool in self.pools.items():
            if pool.expected is not None:
                assert len(pool.ready) == pool.expected, name


class TestPLT8Rollout(World.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
