"""What planning costs: a tick with plugins in this process, over gRPC, in memory, in bytes, and as a share of a simulated run.

    python sims/bench/planner.py [--quick] [--json FILE]

A tick in process is set beside an empty generator loop of the same shape, measured in turn with it: five yields, twelve method calls, no
planner. gRPC ticks ask a plugin in a process of its own, four stages one after another, over a unix socket and over loopback TCP.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from windtunnel.events import Arrived, StepReported, Woke
from windtunnel.policy.planning.calls import Answers
from windtunnel.policy.planning.contract import (
    Accept,
    ComponentTarget,
    ForwardPass,
    FpmData,
    ObservationData,
    Override,
    OverrideType,
    PipelineContext,
    PoolState,
    PredictionData,
    PredictResponse,
    Stage,
    StageRequest,
    StageResponse,
    StepLoad,
    TrafficMetrics,
    WorkerState,
)
from windtunnel.policy.planning.pipeline import Pipeline, run_inline
from windtunnel.policy.planning.plugin import Attached, Registration
from windtunnel.policy.planning.roster import Roster, RosterSettings
from windtunnel.policy.planning.settings import PlannerSettings
from windtunnel.policy.planning.settings_blocks import LoadSettings, PoolSettings
from windtunnel.policy.planning.shell import PipelinePlanner

SCALE_S = 5.0
COUNTS = {Stage.PREDICT: 2, Stage.PROPOSE: 5, Stage.RECONCILE: 2, Stage.CONSTRAIN: 3}
BASELINE = {"prefill": 3, "decode": 5}
BAR_US, BAR_P99_US, BAR_GRPC_MS, BAR_GRPC_P99_MS, BAR_BYTES, BAR_SHARE = 100.0, 400.0, 5.0, 25.0, 256 * 1024, 0.01
BAR_GROWTH = 0.01  # memory blocks a tick
RATIO_PIPELINE, RATIO_PLANNER, RATIO_GRPC = 45.0, 90.0, 4.0  # to the references of the same run, what the bars above come to


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. bars: the most that value and p99 may be on a quiet machine; ratio: to the reference of the same run."""

    name: str
    unit: str
    value: float
    p99: float | None = None
    bar: float | None = None
    bar_p99: float | None = None
    ratio: float | None = None

    @property
    def passed(self) -> bool:
        return (self.bar is None or self.value <= self.bar) and (self.bar_p99 is None or self.p99 is None or self.p99 <= self.bar_p99)


class Constant:
    """A plugin whose bodies cost nothing: the same answers every time."""

    def __init__(self, n: int) -> None:
        both = ("prefill", "decode")
        kinds = {Stage.PROPOSE: OverrideType.SET, Stage.RECONCILE: OverrideType.AT_LEAST, Stage.CONSTRAIN: OverrideType.AT_MOST}
        self._predict = PredictResponse(PredictionData(100.0 + n, 3000.0, 150.0, None, None, 60.0, 60.0, "constant"))
        targets = {stage: tuple(ComponentTarget(c, 4 + n, kind) for c in both) for stage, kind in kinds.items()}
        self._said = {stage: StageResponse(Override(wanted, "constant")) for stage, wanted in targets.items()}

    def predict(self, request: StageRequest) -> PredictResponse:
        return self._predict

    def propose(self, request: StageRequest) -> StageResponse:
        return self._said[Stage.PROPOSE]

    def reconcile(self, request: StageRequest) -> StageResponse:
        return self._said[Stage.RECONCILE]

    def constrain(self, request: StageRequest) -> StageResponse:
        return self._said[Stage.CONSTRAIN]


class Echo:
    """Accepts, whatever it is asked."""

    def predict(self, request: StageRequest) -> PredictResponse:
        return PredictResponse()

    def propose(self, request: StageRequest) -> StageResponse:
        return StageResponse(Accept())

    reconcile = constrain = propose


def twelve() -> list[tuple[Registration, Constant]]:
    return [(Registration(f"{stage}-{i}", stage, 10 + i), Constant(i)) for stage, n in COUNTS.items() for i in range(n)]


def observed(engines: int = 0) -> ObservationData:
    """Two pools; `engines` reports of forward passes, half of them of either."""
    step = StepLoad(3, 4096, 123_456, 48, 987_654, 1234.5, 6789.0)
    names = [f"service-decode-{i:04d}-abcdef" for i in range(engines)]
    passes = {name: ForwardPass(name, 0, 123_456 + i, 86_400.5 + i, 0.031, step, step) for i, name in enumerate(names)}
    halves = {c: {f"{n}/0": p for n, p in passes.items() if p.counter % 2 == odd} for c, odd in (("prefill", 1), ("decode", 0))}
    pools = {c: PoolState(n, n, 0, 0, False, 60.0) for c, n in BASELINE.items()}
    traffic = TrafficMetrics(60.0, 600.0, 3000.0, 150.0, 0.3, None, 0.4, 0.02, 600.0, 590.0, 1e6, 0.0, 590.0, 88_000.0)
    return ObservationData(traffic, FpmData(halves) if engines else None, WorkerState(pools))


def percentiles(took: Sequence[float]) -> tuple[float, float]:
    """Median and p99."""
    ordered = sorted(took)
    return ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]


# -- in this process ----------------------------------------------------------------------------------------------------------------------


def reference_loop(ticks: int) -> list[float]:
    """Seconds of each turn of a generator that is asked what the pipeline asks, and does nothing with it."""
    plugins = [plugin for _, plugin in twelve()]
    request: Any = None
    groups = ([plugins[0].predict], [plugins[1].predict], [p.propose for p in plugins[2:7]], [p.reconcile for p in plugins[7:9]],
              [p.constrain for p in plugins[9:]])

    def empty() -> Generator[Any, Any, Any]:
        answers = None
        for group in groups:
            answers = yield group
        return answers

    took, clock = [], time.perf_counter
    for _ in range(ticks):
        start = clock()
        running = empty()
        try:
            asked = next(running)
            while True:
                asked = running.send(tuple([method(request) for method in asked]))
        except StopIteration:
            took.append(clock() - start)
    return took


def pipeline_ticks(ticks: int) -> list[float]:
    """Seconds of each tick of twelve plugins, inline."""
    roster = Roster(RosterSettings(SCALE_S))
    for registration, plugin in twelve():
        roster.register(registration, 0.0, plugin=plugin)
    pipeline, seen = Pipeline(roster), observed()
    took, clock = [], time.perf_counter
    for k in range(1, ticks + 1):
        context = PipelineContext(f"tick-{k}", f"decision-{k}", seen)
        start = clock()
        outcome = run_inline(pipeline.tick(context, BASELINE, tick_at=k * SCALE_S, now=k * SCALE_S))
        took.append(clock() - start)
        assert outcome.action == "apply"
    return took


def planner_of(plugins: Sequence[tuple[Registration, Any]]) -> PipelinePlanner:
    """A planner without built-in plugins that size anything."""
    settings = PlannerSettings(mode="disagg", pools={"prefill": PoolSettings(), "decode": PoolSettings()}, load=LoadSettings(enabled=False),
                               other_proposers=True)
    return PipelinePlanner(settings, [Attached(registration, plugin) for registration, plugin in plugins])


def planner_ticks(ticks: int) -> list[float]:
    """Seconds of each tick of the whole planner: observation, pipeline, boundary, diagnostics."""
    planner = planner_of(twelve())
    planner.start(0.0)
    took, clock = [], time.perf_counter
    for k in range(1, ticks + 1):
        event, now = Woke("planner"), k * SCALE_S
        start = clock()
        planner.handle(event, now)
        took.append(clock() - start)
    assert planner.ticks == ticks
    return took


@contextmanager
def no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def beside(measure: Callable[[int], list[float]], ticks: int, rounds: int) -> tuple[float, float, float]:
    """Median and p99 of all rounds in seconds, and the smallest ratio of medians to a reference loop that ran right before and after it."""
    took: list[float] = []
    ratios = []
    with no_gc():
        for _ in range(rounds):
            before = percentiles(reference_loop(ticks // rounds))[0]
            mine = measure(ticks // rounds)
            after = percentiles(reference_loop(ticks // rounds))[0]
            took += mine
            ratios.append(percentiles(mine)[0] / max(before, after))
    return (*percentiles(took), min(ratios))


def in_process(*, quick: bool) -> list[Row]:
    ticks = 4_000 if quick else 20_000
    median, p99, ratio = beside(pipeline_ticks, ticks, 4)
    whole, whole_p99, whole_ratio = beside(planner_ticks, ticks, 4)
    reference, reference_p99 = percentiles(reference_loop(ticks))
    return [Row("empty generator loop, 12 calls", "us", reference * 1e6, reference_p99 * 1e6),
            Row("pipeline tick, 12 plugins in process", "us", median * 1e6, p99 * 1e6, BAR_US, BAR_P99_US, ratio),
            Row("planner tick, observation to plan", "us", whole * 1e6, whole_p99 * 1e6, ratio=whole_ratio)]


# -- memory -------------------------------------------------------------------------------------------------------------------------------


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(ticks: int) -> tuple[float, float]:
    """(memory blocks, resident bytes) that a planner keeps more, a tick, after a tenth of the ticks for warming up."""
    planner = planner_of(twelve())
    planner.start(0.0)
    warm, before, resident = ticks // 10, 0, 0
    for k in range(1, ticks + warm + 1):
        planner.handle(Woke("planner"), k * SCALE_S)
        if k == warm:
            gc.collect()
            before, resident = sys.getallocatedblocks(), resident_bytes()
    gc.collect()
    return (sys.getallocatedblocks() - before) / ticks, (resident_bytes() - resident) / ticks


def memory(*, quick: bool) -> list[Row]:
    ticks = 100_000 if quick else 1_000_000
    blocks, resident = growth(ticks)
    return [Row(f"memory blocks kept, {ticks:,} ticks", "a tick", blocks, bar=BAR_GROWTH), Row("resident growth", "B a tick", resident)]


# -- over gRPC ----------------------------------------------------------------------------------------------------------------------------

SERVE = """
import sys
sys.path.insert(0, {folder!r})
from planner import Echo
from windtunnel.live.plugins.plugin_server import serve
serve(Echo(), {listen!r}, allow_insecure=True)
"""


@contextmanager
def echo_at(listen: str, code: str = SERVE) -> Iterator[None]:
    code = code.format(folder=str(Path(__file__).resolve().parent), listen=listen)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.terminate()
            process.communicate()


def four(endpoint: str, plugin: Any = None) -> Pipeline:
    """One plugin a stage."""
    roster = Roster(RosterSettings(SCALE_S))
    for stage in Stage:
        roster.register(Registration(f"echo-{stage}", stage, endpoint=endpoint), 0.0, plugin=plugin, transport="inline" if plugin else "unix")
    return Pipeline(roster)


def echo_ticks(ticks: int, engines: int) -> list[float]:
    """Seconds of each tick of four echo plugins in process."""
    pipeline, seen = four("", Echo()), observed(engines)
    took = []
    for k in range(1, ticks + 1):
        context = PipelineContext(f"tick-{k}", f"decision-{k}", seen)
        start = time.perf_counter()
        run_inline(pipeline.tick(context, BASELINE, tick_at=k * SCALE_S, now=k * SCALE_S))
        took.append(time.perf_counter() - start)
    return took


SERVE_BARE = """
import asyncio
import grpc
async def answer(data, context):
    return b""
async def main():
    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler("bare", {{"Echo": grpc.unary_unary_rpc_method_handler(answer)}})
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port({listen!r})
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()
asyncio.run(main())
"""


async def bare_ticks(listen: str, ticks: int, engines: int) -> list[float]:
    """Seconds of four calls one after another that carry as many bytes as a tick's, and mean nothing: gRPC's own part."""
    import grpc

    payload = b"x" * context_bytes(engines)
    took = []
    async with grpc.aio.insecure_channel(listen) as channel:
        call = channel.unary_unary("/bare/Echo")
        for _ in range(ticks + 10):
            start = time.perf_counter()
            for _ in Stage:
                await call(payload, timeout=5.0)
            took.append(time.perf_counter() - start)
    return took[10:]


async def grpc_ticks(endpoint: str, ticks: int, engines: int) -> list[float]:
    """Seconds of each tick of four echo plugins at an endpoint; every call sends the whole context."""
    from windtunnel.effects import Ask
    from windtunnel.live.asking import Asking
    from windtunnel.live.plugins.grpc_client import GrpcPlugin

    client, pipeline, seen = GrpcPlugin(endpoint, allow_insecure=True), four(endpoint), observed(engines)
    asking = Asking(time.perf_counter, {(e.plugin_id, e.order): client for e in pipeline.roster.entries.values()})
    took = []
    for k in range(1, ticks + 11):
        context = PipelineContext(f"tick-{k}", f"decision-{k}", seen)
        now = k * SCALE_S
        start = time.perf_counter()
        running = pipeline.tick(context, BASELINE, tick_at=now, now=now)
        try:
            gather = next(running)
            while True:
                answered = await asking.ask(Ask(gather.gather_id, gather.calls, gather.deadline_at))
                failed = [item.error for item in answered.items if item.error is not None]
                if failed:
                    raise RuntimeError(f"the echo plugin did not answer: {failed[0]}")
                gather = running.send(Answers(gather.gather_id, answered.items, now))
        except StopIteration:
            took.append(time.perf_counter() - start)
    await client.aclose()
    return took[10:]  # the first ones connect


def over_grpc(*, quick: bool) -> list[Row]:
    from windtunnel.live.scaling.exec import free_port

    ticks, engines = 100 if quick else 1_000, 64
    here = percentiles(echo_ticks(ticks, engines))
    rows = [Row(f"in-process tick, 4 calls, {engines} engines", "ms", here[0] * 1e3, here[1] * 1e3)]
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        for name, listen, endpoint in (("unix socket", f"unix:{folder}/echo.sock", f"unix:{folder}/echo.sock"),
                                       ("loopback TCP", f"127.0.0.1:{port}", f"grpc://127.0.0.1:{port}")):
            with echo_at(listen):
                p50, p99 = percentiles(asyncio.run(grpc_ticks(endpoint, ticks, engines)))
            with echo_at(f"{listen}.bare" if listen.startswith("unix:") else listen, SERVE_BARE):
                bare = percentiles(asyncio.run(bare_ticks(f"{listen}.bare" if listen.startswith("unix:") else listen, ticks, engines)))
            rows.append(Row(f"bare calls, {name}", "ms", bare[0] * 1e3, bare[1] * 1e3))
            rows.append(Row(f"gRPC tick, {name}", "ms", p50 * 1e3, p99 * 1e3, BAR_GRPC_MS, BAR_GRPC_P99_MS, p50 / bare[0]))
    return [*rows, Row("context of 200 engines", "KiB", context_bytes(200) / 1024, bar=BAR_BYTES / 1024)]


def context_bytes(engines: int) -> int:
    """Bytes of a request with reports of so many engines."""
    from windtunnel.live.plugins.bridge import to_proto

    context = PipelineContext("tick-17280", "decision-17280", observed(engines))
    return int(to_proto(StageRequest(context, Stage.PROPOSE, 86_400.0, 86_400.01)).ByteSize())


# -- in a run -----------------------------------------------------------------------------------------------------------------------------

BLOCK = {"pools": {"agg": {"max_replicas": 120, "limits": {"max_num_batched_tokens": 2048, "max_num_seqs": 128, "max_kv_tokens": 400_000,
                                                           "context_length": 8192}}},
         "budget": {"max_gpus": 120}, "throughput": {"enabled": True, "interval_s": 60}, "load": {"enabled": True, "interval_s": 5}}


def planned_run(duration_s: float) -> Mapping[str, float]:
    """CPU seconds inside the planner, of its ticks and of all else that it hears, and of the whole run: 100 replicas, a tick every 5 s."""
    from windtunnel.lab.build import pool_facts
    from windtunnel.lab.planner_build import build_pipeline_planner
    from windtunnel.lab.planner_config import read_planner
    from windtunnel.lab.scenario import Scenario
    from windtunnel.lab.worlds import Simulated
    from windtunnel.policy.control import Control

    scenario = Scenario.load("overload").with_({"duration_s": duration_s, "warmup_s": 0.0, "source.rate_rps": 300, "fleet.pools.chat.replicas": 100})
    facts = pool_facts(scenario.build_fleet())
    built, planner = scenario.build_control(pools=facts), build_pipeline_planner(read_planner(BLOCK), facts)
    spent, clock, handle = {"ticks": 0.0, "events": 0.0}, time.thread_time, planner.handle

    def timed(event: Any, now: float) -> Any:
        if type(event) is not Woke and type(event) is not StepReported and type(event) is not Arrived:
            return handle(event, now)
        start = clock()
        made = handle(event, now)
        spent["ticks" if type(event) is Woke else "events"] += clock() - start
        return made

    planner.handle = timed  # type: ignore[method-assign]
    control = Control(lanes=built.lanes, fleet=built.fleet, planner=planner, settings=built.settings)
    world, source = Simulated(scenario.build_fleet(), seed=3, until=duration_s), scenario.build_source(seed=3)
    with no_gc():
        start = clock()
        world.run(control, source)
        whole = clock() - start
    return {**spent, "run": whole, "simulated": duration_s, "count": planner.ticks}


def in_a_run(*, quick: bool) -> list[Row]:
    spent = planned_run(60.0 if quick else 300.0)
    return [Row("planning, of the time simulated", "share", (spent["ticks"] + spent["events"]) / spent["simulated"], bar=BAR_SHARE),
            Row("ticks, of the run's CPU (100 replicas, 5 s)", "share", spent["ticks"] / spent["run"]),
            Row("arrivals and reports, of the run's CPU", "share", spent["events"] / spent["run"]),
            Row("tick in a run", "us", spent["ticks"] / max(spent["count"], 1) * 1e6)]


ROWS: list[Callable[..., list[Row]]] = [in_process, over_grpc, in_a_run, memory]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer ticks")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for make in ROWS:
        for row in make(quick=args.quick):
            rows.append(row)
            p99 = "" if row.p99 is None else f"  p99 {row.p99:9.3f}"
            ratio = "" if row.ratio is None else f"  / reference {row.ratio:6.1f}"
            bars = ", ".join(f"{bar:g}" for bar in (row.bar, row.bar_p99) if bar is not None)
            bar = f"  bar {bars}  {'ok' if row.passed else 'ABOVE'}" if bars else ""
            print(f"{row.name:<46}{row.value:11.4f} {row.unit:<9}{p99}{ratio}{bar}", flush=True)
    if args.json:
        result = {"rows": [{**asdict(row), "passed": row.passed} for row in rows], "python": platform.python_version(),
                  "machine": platform.processor() or platform.machine(), "load_average": os.getloadavg()[0]}
        args.json.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
