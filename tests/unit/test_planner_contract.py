from __future__ import annotations

import json

import pytest
from pydantic import TypeAdapter, ValidationError

from windtunnel.errors import PlanContractError
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
    Stage,
    StageRequest,
    StageResponse,
    StepLoad,
    TrafficMetrics,
    WorkerState,
)

NAN, INF = float("nan"), float("inf")


def test_PL_101_kind_is_derived_from_the_answer():
    assert [StageResponse(a).kind for a in (None, Accept(), Override(()), Reject("no"))] == ["empty", "accept", "override", "reject"]


def test_PL_101_two_payloads_are_refused():
    read = TypeAdapter(StageResponse).validate_json
    with pytest.raises((PlanContractError, ValidationError), match="stage_response: more than one payload"):
        read('{"accept": {}, "reject": {"reason": "x"}}', strict=True)


@pytest.mark.parametrize("text", [
    '{"override": {"targets": [{"component": "prefill", "replicas": "1"}]}}',
    '{"override": {"targets": [{"component": "prefill", "replicas": true}]}}',
    '{"unknown": 1}', '{"override": {"targets": [], "extra": 1}}', '{"override": {"targets": [{"component": "prefill", "type": 0}]}}',
])
def test_PL_104_json_is_strict(text):
    with pytest.raises((PlanContractError, ValidationError)):
        TypeAdapter(StageResponse).validate_json(text, strict=True)


def test_PL_104_json_mirrors_the_wire_and_round_trips():
    adapter = TypeAdapter(StageResponse)
    response = StageResponse(Override((ComponentTarget("prefill", 3, OverrideType.AT_LEAST), ComponentTarget("decode")), "why"), final=True)
    text = adapter.dump_json(response)
    assert json.loads(text) == {"override": {"targets": [{"component": "prefill", "replicas": 3, "type": 2},
                                                         {"component": "decode", "replicas": None, "type": 1}], "reason": "why"}, "final": True}
    assert adapter.validate_json(text, strict=True) == response
    assert adapter.validate_json('{"final": false}', strict=True) == StageResponse()
    assert adapter.validate_json('{"accept": {}}', strict=True) == StageResponse(Accept())


def test_PL_104_a_whole_request_round_trips():
    fp = ForwardPass("r1", 0, 7, 4.5, 0.02, StepLoad(1, 128), StepLoad(2, 256))
    observed = ObservationData(TrafficMetrics(5.0, 0.0, isl=-0.0), FpmData({"decode": {"r1/0": fp}}), WorkerState({"decode": PoolState(ready=0)}))
    request = StageRequest(PipelineContext("t1", "d1", observed, PredictionData(predicted_num_req=0.0)), Stage.PROPOSE, 5.0, 5.25)
    adapter = TypeAdapter(StageRequest)
    assert adapter.validate_json(adapter.dump_json(request), strict=True) == request


@pytest.mark.parametrize(("make", "path"), [
    (lambda: TrafficMetrics(-1.0, 0.0), "traffic.duration_s"), (lambda: TrafficMetrics(1.0, NAN), "traffic.num_req"),
    (lambda: TrafficMetrics(1.0, True), "traffic.num_req"), (lambda: TrafficMetrics(1.0, 1.0, kv_hit_rate=1.01), "traffic.kv_hit_rate"),
    (lambda: TrafficMetrics(1.0, 1.0, accept_length=0.5), "traffic.accept_length"), (lambda: TrafficMetrics(1.0, 1.0, isl=INF), "traffic.isl"),
    (lambda: TrafficMetrics(1.0, 1.0, coverage=1.5), "traffic.coverage"), (lambda: StepLoad(num_prefill=-1), "step_load.num_prefill"),
    (lambda: StepLoad(num_decode=1.0), "step_load.num_decode"), (lambda: StepLoad(prefill_tokens=True), "step_load.prefill_tokens"),
    (lambda: ForwardPass("", 0, 0, 0.0, 0.0, StepLoad(), StepLoad()), "forward_pass.replica_id"),
    (lambda: ForwardPass("a", 0, 0, NAN, 0.0, StepLoad(), StepLoad()), "forward_pass.at_s"),
    (lambda: ForwardPass("a", 0, 0, 0.0, 0.0, None, StepLoad()), "forward_pass.scheduled"),
    (lambda: FpmData({"decode": {"a/0": 1}}), "fpm.engines.decode.a/0"), (lambda: FpmData([]), "fpm.engines"),
    (lambda: PoolState(ready=-1), "pool_state.ready"), (lambda: PoolState(ready=True), "pool_state.ready"),
    (lambda: PoolState(scaling=1), "pool_state.scaling"), (lambda: PoolState(boot_s=-INF), "pool_state.boot_s"),
    (lambda: WorkerState({"Decode": PoolState()}), "workers.pools"), (lambda: WorkerState({"decode": None}), "workers.pools.decode"),
    (lambda: ObservationData(traffic=3), "observations.traffic"), (lambda: PredictionData(predicted_num_req=-1), "predictions.predicted_num_req"),
    (lambda: PredictionData(predicted_kv_hit_rate=2), "predictions.predicted_kv_hit_rate"),
    (lambda: PredictionData(source=None), "predictions.source"),
    (lambda: ComponentTarget("", 1), "target.component"), (lambda: ComponentTarget("é", 1), "target.component"),
    (lambda: ComponentTarget("a\n", 1), "target.component"), (lambda: ComponentTarget("a" * 64, 1), "target.component"),
    (lambda: ComponentTarget("a", True), "target.a.replicas"), (lambda: ComponentTarget("a", 1.0), "target.a.replicas"),
    (lambda: ComponentTarget("a", 2**31), "target.a.replicas"), (lambda: ComponentTarget("a", 1, 1), "target.a.type"),
    (lambda: Override([ComponentTarget("a", 1)]), "override.targets"), (lambda: Override((1,)), r"override.targets\[0\]"),
    (lambda: Reject(None), "reject.reason"), (lambda: StageResponse("accept"), "stage_response.answer"),
    (lambda: StageResponse(final=1), "stage_response.final"),
    (lambda: PredictResponse(predictions={}), "predict_response.predictions"), (lambda: PipelineContext("t", 1), "context.decision_id"),
    (lambda: StageRequest(PipelineContext("t", "d"), "propose", 0.0, 0.0), "stage_request.stage"),
])
def test_PL_103_bad_values_name_the_dotted_path(make, path):
    with pytest.raises(PlanContractError, match=f"^{path}"):
        make()


def test_PL_103_negative_replicas_pass_here():
    assert ComponentTarget("a" * 63, -(2**31)).replicas == -(2**31)


def test_PL_102_zero_is_asserted_and_none_is_not():
    assert PredictionData(predicted_num_req=0.0) != PredictionData() and PoolState(ready=0) != PoolState()
