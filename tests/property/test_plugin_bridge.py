"""The wire form of the planner's contract: nothing is lost, nothing is invented."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windtunnel.errors import PluginSerializationError
from windtunnel.live.plugins import planner_pb2 as pb
from windtunnel.live.plugins.bridge import from_proto, parse, to_proto
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
    Reject,
    ScalingProposal,
    Stage,
    StageRequest,
    StageResponse,
    StageResult,
    StepLoad,
    TrafficMetrics,
    WorkerState,
)

reals = st.one_of(st.floats(0, 1e300, allow_subnormal=True), st.sampled_from([0.0, -0.0, 5e-324, 0.1]))
maybe = st.one_of(st.none(), reals)
counts = st.integers(0, 2**31 - 1)
names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,10}", fullmatch=True)
texts = st.text(max_size=8)
signed = st.floats(allow_nan=False, allow_infinity=False)

traffic = st.builds(TrafficMetrics, reals, reals, maybe, maybe, st.one_of(st.none(), st.floats(0, 1)), st.one_of(st.none(), st.floats(1, 9)),
                    maybe, maybe, reals, reals, reals, reals, reals, reals, st.floats(0, 1))
loads = st.builds(StepLoad, counts, counts, counts, counts, counts, reals, reals)
passes = st.builds(ForwardPass, st.text(min_size=1, max_size=6), counts, st.integers(0, 2**62), signed, reals, loads, loads)
fpm = st.builds(FpmData, st.dictionaries(names, st.dictionaries(texts, passes, max_size=2), max_size=2))
pools = st.builds(PoolState, *([st.one_of(st.none(), counts)] * 4), st.one_of(st.none(), st.booleans()), maybe)
workers = st.builds(WorkerState, st.dictionaries(names, pools, max_size=2))
observations = st.builds(ObservationData, st.none() | traffic, st.none() | fpm, st.none() | workers)
predictions = st.builds(PredictionData, maybe, maybe, maybe, st.one_of(st.none(), st.floats(0, 1)), st.one_of(st.none(), st.floats(1, 9)),
                        maybe, maybe, texts)
targets = st.builds(ComponentTarget, names, st.one_of(st.none(), st.integers(-(2**31), 2**31 - 1)), st.sampled_from(OverrideType))
target_lists = st.lists(targets, max_size=3).map(tuple)
overrides = st.builds(Override, target_lists, texts)
proposals = st.builds(ScalingProposal, target_lists, texts, texts)
contexts = st.builds(PipelineContext, texts, texts, st.none() | observations, st.none() | predictions, st.none() | proposals,
                     st.none() | proposals)
results = st.builds(StageResult, texts, st.sampled_from(["accept", "override", "reject", "empty"]), st.none() | overrides, counts, st.booleans())
requests = st.builds(StageRequest, contexts, st.sampled_from(Stage), signed, signed, st.lists(results, max_size=2).map(tuple))
responses = st.builds(StageResponse, st.none() | st.builds(Accept) | overrides | st.builds(Reject, texts), st.booleans())
answers = st.builds(PredictResponse, st.none() | predictions, texts, st.booleans())


def bits(value: Any) -> Any:
    """A value with every float as its bytes: -0.0 differs from 0.0."""
    if isinstance(value, float):
        return struct.pack("<d", value)
    if isinstance(value, dict):
        return {k: bits(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(bits(v) for v in value)
    if hasattr(value, "__dataclass_fields__"):
        return (type(value).__name__, *(bits(getattr(value, f)) for f in value.__dataclass_fields__))
    return value


def through_the_wire(value: Any) -> Any:
    message = to_proto(value)
    return parse(type(message), message.SerializeToString())


@settings(max_examples=150, deadline=None)
@given(st.one_of(requests, responses, answers, traffic, workers, fpm))
def test_PL_106_PL_T9_round_trip_is_exact(value: Any) -> None:
    back = through_the_wire(value)
    assert back == value and bits(back) == bits(value)


def test_PL_102_unknown_is_not_zero() -> None:
    unknown, zero = PredictionData(), PredictionData(predicted_num_req=0.0, window_s=-0.0)
    assert through_the_wire(unknown).predicted_num_req is None
    back = through_the_wire(zero)
    assert back.predicted_num_req == 0.0 and math.copysign(1.0, back.window_s) == -1.0
    assert through_the_wire(ObservationData()) == ObservationData()
    assert through_the_wire(PipelineContext("t", "d", ObservationData())).observations == ObservationData(), "empty is not missing"
    assert through_the_wire(FpmData({"prefill": {}})).engines == {"prefill": {}}


@pytest.mark.parametrize("answer", [None, Accept(), Override(()), Reject("")])
def test_PL_101_one_payload_or_none(answer: Any) -> None:
    for final in (False, True):
        assert through_the_wire(StageResponse(answer, final)) == StageResponse(answer, final)


def test_PL_105_what_is_unspecified_or_missing_is_refused() -> None:
    with pytest.raises(PluginSerializationError, match="unspecified"):
        from_proto(pb.ComponentTarget(component="p", replicas=3))
    with pytest.raises(PluginSerializationError, match="missing"):
        from_proto(pb.TrafficMetrics(duration_s=1.0))
    with pytest.raises(PluginSerializationError, match="unknown value"):
        from_proto(pb.ComponentTarget(component="p", type=9))  # type: ignore[arg-type]
    with pytest.raises(PluginSerializationError, match="component"):
        from_proto(pb.ComponentTarget(component="NOT A NAME", type=pb.OVERRIDE_TYPE_SET))
    with pytest.raises(PluginSerializationError):
        parse(pb.StageResponse, b"\xff\xff\xff")
    with pytest.raises(PluginSerializationError, match="not a value"):
        from_proto(pb.RegisterReply())


def test_PL_106_unknown_fields_are_ignored() -> None:
    data = to_proto(Reject("why")).SerializeToString() + bytes([0x7A, 0x01, 0x41])  # field 15, one byte
    assert parse(pb.Reject, data) == Reject("why")


def test_PL_106_the_committed_code_is_that_of_the_proto(tmp_path: Path) -> None:
    source = Path(pb.__file__).parents[3]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(source), f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}",
               str(source / "windtunnel/live/plugins/planner.proto")]
    subprocess.run(command, check=True)
    for name in ("planner_pb2.py", "planner_pb2_grpc.py"):
        fresh = (tmp_path / "windtunnel/live/plugins" / name).read_text()
        assert fresh == (source / "windtunnel/live/plugins" / name).read_text(), f"{name} is not what the compiler makes of planner.proto"
    messages = pb.DESCRIPTOR.message_types_by_name.values()
    assert all(f.has_presence for m in messages for f in m.fields if f.cpp_type == f.CPPTYPE_DOUBLE), "a real number without presence"
