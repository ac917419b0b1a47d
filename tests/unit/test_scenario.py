"""Scenarios: loading, errors as sentences, variants, digest, round trips."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from windtunnel.errors import ConfigError, ConfigFileError, ConfigImportError, ConfigUnknownKeyError, WindtunnelError
from windtunnel.lab import registry
from windtunnel.lab.locate import bundled, data_file
from windtunnel.lab.scenario import Scenario, variants
from windtunnel.lab.sentences import ScenarioErrors, in_seconds

TEXT = textwrap.dedent("""
    windtunnel: 1
    name: small
    duration_s: 60
    seed: 7
    fleet:
      pools:
        chat: {model: Llama-3.1-8B, gpu: h100_sxm, replicas: 4, min: 2, max: 8,
               engine: {max_num_seqs: 64}, startup: {node_s: {kind: exp, mean: 3}}}
    source:
      kind: arrivals
      rate_rps: 5
      input_tokens: {kind: lognormal, mean: 500, cv: 1.0}
      output_tokens: 100
    control:
      tenants: {acme: {weight: 2}}
      queue: {kind: fair, bounded: {capacity: 100, capacity_by_class: {interactive: 50}}}
      admission: {limit: {kind: aimd, decrease_factor: 0.5}, gates: [{kind: breaker, window: 30}]}
    slo: {ttft_s: 1.0}
    compare: {six: {fleet.pools.chat.replicas: 6}}
    knobs: [control.admission.limit.cooldown_s, {path: fleet.pools.chat.replicas, label: replicas}]
""").lstrip()


@pytest.fixture()
def file(tmp_path: Path) -> Path:
    path = tmp_path / "s.yaml"
    path.write_text(TEXT, "utf-8")
    return path


def sentence(file: Path, *sets: str, text: str | None = None, **options: Any) -> str:
    """What loading says; the place is shortened to the file's name."""
    if text is not None:
        file.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as e:
        Scenario.load(file, overrides=sets, **options)
    return str(e.value).replace(str(file.parent) + "/", "")


def test_loads_with_defaults(file: Path) -> None:
    s = Scenario.load(file)
    assert (s.record, s.warmup_s, s.fleet.pools["chat"].tp, s.fleet.pools["chat"].profile.kind) == ("requests", 0.0, 1, "roofline")
    assert s.control.admission is not None
    assert s.control.admission.limit.config().decrease_factor == 0.5
    assert s.control.queue is not None
    assert s.control.queue.bounded.config().capacity_by_class == {0: 50}
    assert s.fleet.pools["chat"].engine.config().max_num_seqs == 64  # type: ignore[attr-defined]


@pytest.mark.parametrize(("override", "said"), [
    ("fleet.pools.chat.replicas=six", '--set fleet.pools.chat.replicas: expected an int >= 0, got "six"'),
    ("control.admision.limit.kind=aimd", '--set control.admision: unknown key; did you mean "admission"?'),
    ("fleet.pools.chat.gpu=h100", '--set fleet.pools.chat.gpu: unknown GPU "h100"; did you mean'),
    ("fleet.pools.chat.model=Llama-3.1-8b", '--set fleet.pools.chat.model: unknown model "Llama-3.1-8b"; did you mean "Llama-3.1-8B"'),
    ("knobs.3.path=x", "--set knobs.3: the list has 2 entries (0 to 1)"),
    ("control.admission.limit.kind=pid", "--set control.admission.limit.kind: unknown kind \"pid\"; known: none, fixed, aimd, aimd_netflix"),
    ("duration=600", "--set duration: unknown key; write duration_s: 600 (seconds)"),
    ("slo.ttft_ms=500", "--set slo.ttft_ms: unknown key; write ttft_s: 0.5 (seconds)"),
    ("duration_s=10m", '--set duration_s: expected a number > 0, got "10m"; write duration_s: 600 (seconds)'),
    ("duration_s=1e400", "--set duration_s: expected a finite number, got inf"),
    ("duration_s=.inf", "--set duration_s: expected a finite number, got inf"),
    ("source.rate_rps=-.inf", "--set source.rate_rps: expected a finite number, got -inf"),
    ("fleet.pools.chat.replicas=.nan", "--set fleet.pools.chat.replicas: expected an int >= 0, got nan"),
    ("source.duration_s=9", "--set source.duration_s: unknown key; it belongs to the top of the file"),
    ("control.limit={kind: aimd}", "--set control.limit: unknown key; it belongs to control.admission"),
    ("fleet.pools.chat.max_num_seqs=4", "--set fleet.pools.chat.max_num_seqs: unknown key; it belongs to fleet.pools.chat.engine"),
    ("control.admission.queue.kind=fair", "--set control.admission.queue: unknown key; it belongs to control"),
    ("control.queue=fair", '--set control.queue: expected a mapping, got "fair"; write {kind: fair}'),
    ("control.planner=rate", '--set control.planner: expected a mapping, got "rate"; write {kind: rate}'),
    ("control.planner={kind: pipeline, pools: {chat: {boot_s: 3}}}", "unknown role; expected agg, prefill or decode; write agg: {component: chat"),
    ("control.planner={kind: pipeline, pools: {nobody: {}}}", "control.planner.pools.nobody: unknown role; expected agg, prefill or decode"),
    ("control.planner={kind: pipeline, pools: {prefill: {}}}", "control.planner.pools.prefill: mode agg has no role prefill"),
    ("source.input_tokens={kind: table}", '--set source.input_tokens.kind: unknown kind "table"; known: const, uniform'),
    ("fleet.pools.chat.kind=x", "--set fleet.pools.chat.kind: unknown key"),
    ("catalog.files=[{path: gone.yaml}]", '--set catalog.files.0.path: no file "gone.yaml"; looked for'),
    ("expect=[{metric: goodput, op: '>', value: 1}]", '--set expect.0.metric: metric "goodput": unknown name'),
    ("catalog.models={Foo: {params: 3}}", "--set catalog.models.Foo."),
    ("faults=[{kind: crash, at_s: 5, pool: nope}]", '--set faults.0.pool: no pool "nope"; there are chat'),
    ("fleet.pools.*.tp=0", "--set fleet.pools.chat.tp: expected an int >= 1 and <= 64, got 0"),
    ("fleet.pools.chat.replicas=true", "--set fleet.pools.chat.replicas: expected an int >= 0, got true"),
    ("fleet.pools.chat.replicas=1.0", "--set fleet.pools.chat.replicas: expected an int >= 0, got 1.0"),
    ("fleet.pools.chat.engine.max_num_seqs=0", "--set fleet.pools.chat.engine.max_num_seqs: expected a value >= 1, got 0"),
    ("control.admission.limit.decrease_factor=2", "--set control.admission.limit.decrease_factor: expected a value < 1, got 2.0"),
    ("source.input_tokens.cv=-1", "--set source.input_tokens.cv: expected a value >= 0, got -1.0"),
    ("source.input_tokens.sigma=1", "--set source.input_tokens.sigma: unknown key; known keys: kind, mean, cv, max"),
    ("source.input_tokens=many", '--set source.input_tokens: expected a number, got "many"'),
    ("source.kind=trce", '--set source.kind: unknown kind "trce"; did you mean "trace"?'),
    ("source.rate_rps=0", "--set source.rate_rps: expected a value > 0, got 0.0"),
    ("control.preset=opn", '--set control.preset: unknown preset "opn"; presets: default, open, aimd, fair_tokens, batch'),
    ("control.queue.bounded.capacity_by_class.vip=3", "--set control.queue.bounded.capacity_by_class.vip: unknown key; known keys: inter"),
    ("fleet.pools={}", "--set fleet.pools: expected a mapping with at least 1, got {}"),
    ("fleet.pools.chat.max=1", "s.yaml:7: fleet.pools.chat: max 1 is below replicas 4"),
    ("windtunnel=2", "--set windtunnel: expected 1, got 2"),
    ("record=all", '--set record: expected one of "requests", "decisions", "full", got "all"'),
    ("seed=-1", "--set seed: expected an int >= 0 and < 9223372036854775808, got -1"),
    ("slo.interactive.ttft_s=1", "s.yaml:18: slo: use either one set of bounds or one per priority class, not both"),
    ("warmup_s=60", "warmup_s 60 leaves nothing of duration_s 60"),
    ("duration_s=null", "the source never ends; write duration_s, or a count in the source"),
    ("compare.bad={a..b: 1}", "--set: compare.bad: a..b"),
])
def test_CS_1_CS_20_CS_30_sentences(file: Path, override: str, said: str) -> None:
    assert said in sentence(file, override)


def test_CS_30_errors_are_collected_with_lines(file: Path) -> None:
    text = TEXT.replace("gpu: h100_sxm", "gpu: 5").replace("weight: 2", "wieght: 2").replace("seed: 7", "sed: 7")
    file.write_text(text, "utf-8")
    with pytest.raises(ScenarioErrors) as e:
        Scenario.load(file)
    assert len(e.value.errors) == 3
    told = [str(x).split("/")[-1] for x in e.value.errors]
    assert told == ['s.yaml:4: sed: unknown key; did you mean "seed"?', "s.yaml:7: fleet.pools.chat.gpu: expected text, got 5",
                    's.yaml:15: control.tenants.acme.wieght: unknown key; did you mean "weight"?']
    assert e.value._render_traceback_()[0].startswith("ScenarioErrors: 3 errors")


def test_CS_30_a_number_that_is_none_is_one_error(file: Path) -> None:
    for override in ("source.rate_rps=.nan", "source.input_tokens=.inf", "source.input_tokens={kind: table}", "fleet.pools.chat.kind=x"):
        assert "errors" not in sentence(file, override), override


@pytest.mark.parametrize(("old", "new", "said"), [
    ("kind: arrivals\n  rate_rps: 5\n  input_tokens: {kind: lognormal, mean: 500, cv: 1.0}\n  output_tokens: 100",
     "kind: trace\n  path: gone.csv", 's.yaml:11: source.path: no file "gone.csv"; looked for'),
    ("tp: 1", "tp: 3", "s.yaml:7: fleet.pools.chat: 32 attention heads cannot be split over tp 3"),
    ("tp: 1", "role: prefill", "s.yaml:6: fleet.pools: Llama-3.1-8B has no pool of role decode"),
    ("tp: 1", "profile: {kind: measured, path: gone.yaml}", 's.yaml:7: fleet.pools.chat.profile.path: no file "gone.yaml"'),
    ("slo:", "  routing: {kind: pairs}\nslo:", "s.yaml:18: control.routing: pairs need a pool of role prefill"),
    ("slo:", "  planner: {kind: rate, pool: nobody}\nslo:", "s.yaml:18: control.planner.pool: expected one of chat, got 'nobody'"),
    ("slo:", "  planner:\n    kind: pipeline\n    plugins:\n      external:\n"
             "      - {plugin_id: far, stage: propose, endpoint: 'grpc://h:1'}\nslo:",
     "s.yaml:22: control.planner.plugins.external.0: far is in another process, which a simulated world does not call; give it stand_in"),
    ("slo:", "  planner:\n    kind: pipeline\n    mode: disagg\nslo:", "s.yaml:18: control.planner.pools.prefill: expected one pool of role"),
])
def test_CS_30_what_is_found_while_building_has_its_line_too(file: Path, old: str, new: str, said: str) -> None:
    text = TEXT.replace("replicas: 4,", "tp: 1, replicas: 4,")
    assert old in text
    file.write_text(text.replace(old, new, 1), "utf-8")
    scenario = Scenario.load(file)
    for made in (scenario, scenario.with_({"seed": 8}), scenario.variant("six")):
        with pytest.raises(ConfigError) as e:
            made.start()
        assert said in str(e.value)


def test_a_plugins_arguments_are_no_data_files(file: Path) -> None:
    entry = {"plugin_id": "x", "stage": "propose", "module": "windtunnel.policy.planning.load", "class": "Load", "kwargs": {"path": "/nowhere"}}
    scenario = Scenario.load(file).with_({"control.planner": {"kind": "pipeline", "plugins": {"in_process": [entry]}}})
    assert len(scenario.digest) == 64


def test_the_digest_covers_the_file_of_a_law(file: Path) -> None:
    law = file.parent / "lengths.csv"
    digests = []
    for text in ("1\n2\n", "1\n3\n"):
        law.write_text(text, "utf-8")
        digests.append(Scenario.load(file, overrides=["source.input_tokens={kind: empirical, file: lengths.csv}"]).digest)
    assert digests[0] != digests[1]


def test_CS_30_the_first_twenty_are_shown_and_all_counted(file: Path) -> None:
    text = TEXT + "".join(f"key{i}: 1\n" for i in range(25))
    said = sentence(file, text=text)
    assert said.startswith("25 errors")
    assert said.count("unknown key") == 20
    assert said.endswith("and 5 more")


def test_CS_1_parts_that_do_not_exist_yet_are_unknown_keys(file: Path) -> None:
    for key in ("cluster", "sweep"):
        with pytest.raises(ConfigUnknownKeyError, match=f"{key}: unknown key"):
            Scenario.load(file, overrides=[f"{key}=[]"])


@pytest.mark.parametrize("override", [
    "control.settings.attempts=2", "control.routing.by=tokens", "fleet.pools.*.tp=2", "slo.ttft_s=null", "control.queue.kind=fifo",
    "control.planner={kind: rate}", "control.admission.limit={kind: none}", "fleet.pools.chat.price.usd_per_hour=2",
    "fleet.pools.chat.profile={kind: affine, c0: 0.006}",
    "source={kind: arrivals, rate_rps: 1, count: 3, input_tokens: 5, output_tokens: 5}",
])
def test_CS_20_good_overrides(file: Path, override: str) -> None:
    changed = Scenario.load(file, overrides=[override])
    assert changed != Scenario.load(file)
    assert Scenario.load(changed.dump()) == changed


def test_CS_20_a_field_of_the_presets_part_can_be_changed_alone(file: Path) -> None:
    s = Scenario.load(file, overrides=["control.admission=null", "control.queue=null", "control.admission.limit.cooldown_s=9"])
    full = s.control.resolved()
    assert full.admission is not None
    assert (full.admission.limit.kind, full.admission.limit.cooldown_s) == ("aimd", 9.0)
    assert full.queue is not None
    assert (full.queue.kind, full.queue.bounded.capacity) == ("fair", 256)


def test_KC_21_no_control_means_the_default_preset() -> None:
    s = Scenario.load(TEXT).with_({"control": {}})
    full = s.control.resolved().model_dump(mode="json", exclude_none=True)
    assert (full["queue"]["kind"], full["queue"]["bounded"]["capacity_by_class"]) == ("fair", {"interactive": 128, "batch": 128})
    assert (full["admission"]["limit"]["kind"], full["admission"]["gates"]) == ("aimd", [])
    assert (full["routing"]["kind"], full["routing"]["by"]) == ("least_outstanding", "requests")
    assert "planner" not in full


def test_a_named_part_replaces_the_presets_part() -> None:
    s = Scenario.load(TEXT).with_({"control": {"queue": {"kind": "fair"}, "admission": {"gates": [{"kind": "breaker"}]}}})
    full = s.control.resolved()
    assert full.queue is not None and full.queue.bounded is None
    assert full.admission is not None and full.admission.limit.kind == "aimd"


def test_round_trips_of_dump(file: Path, tmp_path: Path) -> None:
    s = Scenario.load(file)
    assert Scenario.load(s.dump()) == s
    assert Scenario.load(s.dump(resolved=True)).digest == s.digest
    s.dump(tmp_path / "t.yaml")
    assert Scenario.load(tmp_path / "t.yaml") == s


def test_CS_12_digest_is_of_what_determines_the_result(file: Path) -> None:
    s = Scenario.load(file)
    for same in ({"name": "other"}, {"question": "?"}, {"seed": 8}, {"record": "full"}, {"knobs": []}, {"compare": {}}, {"warmup_s": 0.0},
                 {"control.routing": {"kind": "least_outstanding", "by": "requests"}}):
        assert s.with_(same).digest == s.digest
    for other in ({"fleet.pools.chat.replicas": 6}, {"slo.ttft_s": 2}, {"control.tenants.acme.weight": 3}):
        assert s.with_(other).digest != s.digest


def test_CS_12_files_count_by_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "s.yaml").write_text(TEXT, "utf-8")
        (tmp_path / name / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n0.5,10,5\n", "utf-8")
    source = ["source={kind: trace, path: t.csv}"]
    a, b = (Scenario.load(tmp_path / n / "s.yaml", overrides=source) for n in ("a", "b"))
    assert a.digest == b.digest
    (tmp_path / "b" / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n0.5,10,6\n", "utf-8")
    assert a.digest != b.digest
    moved = Scenario.load(tmp_path / "a" / "s.yaml", overrides=["source={kind: trace, path: none.csv}"])
    with pytest.raises(ConfigFileError, match=r'no file "none.csv"; looked for .*none.csv, .*none.csv'):
        assert moved.digest


def test_CS_7_variants(file: Path) -> None:
    got = dict(variants(Scenario.load(file)))
    assert list(got) == ["base", "six"]
    assert got["six"].fleet.pools["chat"].replicas == 6
    assert Scenario.load(f"{file}@six") == got["six"]
    assert Scenario.load(file, variant="six", overrides=["fleet.pools.chat.replicas=5"]).fleet.pools["chat"].replicas == 5
    assert 'unknown variant "sx"; did you mean "six"?' in sentence(file, variant="sx")
    assert list(got["base"].diff(got["six"]).itertuples(index=False, name=None)) == [("fleet.pools.chat.replicas", 4, 6)]


def test_CS_6_extends(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(TEXT, "utf-8")
    (tmp_path / "over.yaml").write_text("extends: base.yaml\nname: over\nslo: null\nfleet: {pools: {chat: {replicas: 3}}}\n", "utf-8")
    over = Scenario.load(tmp_path / "over.yaml")
    assert (over.name, over.fleet.pools["chat"].replicas, over.fleet.pools["chat"].min, over.slo.ttft_s) == ("over", 3, 2, None)
    (tmp_path / "wrong.yaml").write_text("extends: base.yaml\nfleet: {pools: {chat: {replicas: x}}}\n", "utf-8")
    assert sentence(tmp_path / "wrong.yaml") == 'wrong.yaml:2: fleet.pools.chat.replicas: expected an int >= 0, got "x"'


def test_CS_6_cycles_and_depth(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n", "utf-8")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n", "utf-8")
    assert "a.yaml → b.yaml → a.yaml" in sentence(tmp_path / "a.yaml")
    for i in range(8):
        (tmp_path / f"d{i}.yaml").write_text(f"extends: d{i + 1}.yaml\n", "utf-8")
    assert "more than 5 files deep" in sentence(tmp_path / "d0.yaml")
    (tmp_path / "e.yaml").write_text("extends: none.yaml\n", "utf-8")
    assert "No such file" in sentence(tmp_path / "e.yaml")


def test_CS_9_names_places_and_close_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Scenario.load("tenant-flood").name == "tenant-flood"
    (tmp_path / "sims").mkdir()
    (tmp_path / "sims" / "mine.yaml").write_text(TEXT, "utf-8")
    monkeypatch.chdir(tmp_path)
    assert Scenario.load("mine").name == "small"
    assert {"mine", "tenant-flood"} <= set(bundled())
    with pytest.raises(ConfigFileError, match='no scenario "tenant-flod"; did you mean "tenant-flood"'):
        Scenario.load("tenant-flod")
    monkeypatch.setenv("WINDTUNNEL_DATA", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "t.csv").write_text("x", "utf-8")
    assert data_file("t.csv", tmp_path) == tmp_path / "elsewhere" / "t.csv"
    (tmp_path / "t.csv").write_text("x", "utf-8")
    assert data_file("t.csv", tmp_path) == tmp_path / "t.csv"


def test_CS_3_imports_need_permission(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mypolicies.py").write_text(textwrap.dedent("""
        from dataclasses import dataclass
        from windtunnel.policy.queueing.fifo import FifoQueue

        @dataclass(frozen=True)
        class Mine:
            patience: int = 3

            def build(self, ctx):
                return FifoQueue()
    """), "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    sets = ["control.queue={kind: 'mypolicies:Mine', patience: 5}"]
    with pytest.raises(ConfigImportError, match="would import code; pass allow_imports=True"):
        Scenario.load(file, overrides=sets)
    got = Scenario.load(file, overrides=sets, allow_imports=True)
    assert got.control.queue is not None
    assert got.control.queue.config().patience == 5
    assert "unknown key" in sentence(file, "control.queue={kind: 'mypolicies:Mine', patence: 5}", allow_imports=True)
    del registry._kinds["queue"]["mypolicies:Mine"]
    registry._listeners[0]("queue")


def test_with_is_a_new_checked_object(file: Path) -> None:
    s = Scenario.load(file)
    assert s.with_({"fleet.pools.*.replicas": 5}).fleet.pools["chat"].replicas == 5
    assert s.fleet.pools["chat"].replicas == 4
    with pytest.raises(WindtunnelError, match=r'pools\.chat\.replicas: expected an int >= 0, got "x"'):
        s.with_({"fleet.pools.chat.replicas": "x"})
    assert (s.fast().duration_s, s.with_({"duration_s": 600, "warmup_s": 30}).fast().warmup_s) == (60.0, 5.0)


@pytest.mark.parametrize(("text", "said"), [("- 1\n- 2\n", "expected a mapping"), ("\n\n", "expected a mapping"), ("a: [\n", "not YAML")])
def test_what_is_no_scenario(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Scenario.load(text)


@pytest.mark.parametrize(("text", "seconds"), [
    ("10m", 600.0), ("250 ms", 0.25), ("2h", 7200.0), ("1.5s", 1.5), ("ten", None), ("5 GB", None), ("1.2.3s", None),
])
def test_times_with_units(text: str, seconds: float | None) -> None:
    assert in_seconds(text) == seconds


def test_bundled_scenarios_load_say_their_question_and_name_their_schema() -> None:
    names = {"azure-chat", "mooncake-conversation", "tenant-flood", "peer-chat-10k"}
    assert names <= set(bundled())
    for name in names:
        path = bundled()[name]
        assert path.read_text("utf-8").startswith("# yaml-language-server: $schema=scenario.schema.json\n")
        for _, scenario in variants(Scenario.load(path)):
            assert scenario.question.endswith("?")
            assert scenario.name == name
            assert Scenario.load(scenario.dump()) == scenario
