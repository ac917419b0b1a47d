"""Calibrated profiles on disk: what was fitted, on what, how well, and the step model that comes of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from windtunnel.datafiles import data_path
from windtunnel.errors import ConfigError, ConfigFileError, ConfigInfeasibleError, ConfigUnknownKeyError, ConfigValueError
from windtunnel.lab.calibrate.closed_loop import MS, TPOT_TERMS, TTFT_TERMS, ClosedLoop, prior_of
from windtunnel.lab.calibrate.fit import Fit
from windtunnel.lab.calibrate.observe import PointObs
from windtunnel.sim.catalog import gpu, model
from windtunnel.sim.engine_config import HostCosts
from windtunnel.sim.stepmodels.calibrated import Calibrated, Coefficients, Prior
from windtunnel.sim.stepmodels.operators import Operators
from windtunnel.sim.stepmodels.roofline import Roofline
from windtunnel.sim.stepmodels.tables_aic import AicTables
from windtunnel.sim.stepmodels.tables_llmservingsim import LlmServingSimTables

FOLDER = "profiles"
PRIORS = ("roofline", "aic", "llmservingsim")


@dataclass(frozen=True, slots=True)
class PriorSpec:
    """What the coefficients scale. link: (s, bytes/s) of an all-reduce where no table has one."""

    kind: str = "roofline"
    dtype: str = "bf16"
    kv_dtype: str = "bf16"
    ep: int = 1
    dp: int = 1
    link: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.kind not in PRIORS:
            raise ConfigValueError("prior.kind", f"expected one of {', '.join(PRIORS)}, got {self.kind!r}")


@dataclass(frozen=True, slots=True)
class Profile:
    """theta: coefficients by name (those of `Coefficients`); theta0: before the fit; intervals: 90 %; not_identified: left at theta0.

    host: seconds outside the engine's steps; kv_blocks: as the engine reported, None: not known; errors: median absolute relative error by metric.
    """

    name: str
    model: str
    gpu: str
    tp: int
    engine: str
    prior: PriorSpec
    theta: dict[str, float]
    theta0: dict[str, float]
    source: str
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    not_identified: list[str] = field(default_factory=list)
    valid: dict[str, tuple[float, float]] = field(default_factory=dict)
    host: dict[str, float] = field(default_factory=dict)
    kv_blocks: int | None = None
    seed: int = 0
    errors: dict[str, float] = field(default_factory=dict)

    def step_model(self, *, on_extrapolation: str = "warn") -> Calibrated:
        """Raises ConfigUnknownModelError, ConfigTableMissError, ConfigValueError."""
        said = ", ".join(f"{name.upper()} ±{100 * error:.2g}%" for name, error in self.errors.items())
        source = f"{self.engine}: {self.source}" + (f", {said}" if said else "")
        return Calibrated(self._prior(), Coefficients(**self.theta), dict(self.valid), source, on_extrapolation)

    def host_costs(self) -> HostCosts:
        return HostCosts(**self.host)

    def serves(self, model: str, gpu: str, tp: int) -> None:
        """Raise ConfigInfeasibleError unless this is what was measured."""
        if (model, gpu, tp) != (self.model, self.gpu, self.tp):
            raise ConfigInfeasibleError(f"the profile {self.name} was measured with {self.model} on {self.gpu}×{self.tp}, the pool is {model} on "
                                        f"{gpu}×{tp}", hint="take another profile, or say anyway: true")

    def _prior(self) -> Prior:
        p, arch = self.prior, model(self.model)
        roof = Roofline(arch, gpu(self.gpu), tp=self.tp, dtype=p.dtype, kv_dtype=p.kv_dtype, ep=p.ep, dp=p.dp)
        if p.kind == "roofline":
            return roof
        tables = (LlmServingSimTables.load(self.gpu, arch, self.tp, link=p.link) if p.kind == "llmservingsim"
                  else AicTables(arch, gpu(self.gpu), self.tp, p.ep, p.dtype, p.kv_dtype))
        return Operators(arch, tables, self.gpu, self.tp, roof)

    def write(self, path: Path) -> Path:
        """As YAML."""
        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: plain(v) for k, v in value.items()}
            if isinstance(value, (list, tuple)):
                return [plain(v) for v in value]
            return float(f"{value:.6g}") if isinstance(value, float) else value

        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(plain(asdict(self)), sort_keys=False, allow_unicode=True, width=140), encoding="utf-8")
        return path


def shipped() -> list[str]:
    """Names of the profiles that come along."""
    try:
        return sorted(p.stem for p in data_path(FOLDER).glob("*.yaml"))
    except ConfigFileError:
        return []


def load_profile(name: str, base: Path | None = None) -> Profile:
    """A shipped profile by name, or a YAML file (relative to `base`). Raises ConfigFileError, ConfigUnknownKeyError, ConfigValueError."""
    path = (base or Path()) / name
    if not name.endswith((".yaml", ".yml")):
        if name not in shipped():
            close = get_close_matches(name, shipped(), 3, 0.0)
            raise ConfigFileError(f'no profile "{name}"', hint=f"did you mean {' or '.join(close)}?" if close else "give a YAML file")
        path = data_path(f"{FOLDER}/{name}.yaml")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigFileError(f"{path}: no profile: {error}") from None
    if not isinstance(data, dict):
        raise ConfigFileError(f"{path}: expected the keys of a profile")
    try:
        return _profile(data)
    except ConfigError as error:
        error.where = error.where or str(path)
        raise


def _profile(data: dict[str, Any]) -> Profile:
    known = tuple(f.name for f in fields(Profile))
    for given, allowed, where in ((data, known, ""), (data.get("prior") or {}, tuple(f.name for f in fields(PriorSpec)), "prior"),
                                  (data.get("theta") or {}, tuple(f.name for f in fields(Coefficients)), "theta")):
        for key in given:
            if key not in allowed:
                close = get_close_matches(str(key), allowed, 1)
                raise ConfigUnknownKeyError(where, str(key), did_you_mean=close[0] if close else None, known=allowed)
    for key in ("name", "model", "gpu", "tp", "engine", "prior", "theta", "theta0", "source"):
        if key not in data:
            raise ConfigValueError(key, "is missing")
    link = data["prior"].get("link")
    pairs = {key: {k: (float(v[0]), float(v[1])) for k, v in (data.get(key) or {}).items()} for key in ("intervals", "valid")}
    return Profile(**{**data, **pairs, "prior": PriorSpec(**{**data["prior"], "link": None if link is None else (float(link[0]), float(link[1]))})})


def of_run(name: str, run_model: str, run_gpu: str, tp: int, fit: Fit, prior: PriorSpec, *, engine: str, source: str,
           kv_blocks: int | None = None, errors: dict[str, float] | None = None) -> Profile:
    """The profile of a fit to one engine."""
    return Profile(name, run_model, run_gpu, tp, engine, prior, fit.theta, fit.theta0, source, fit.intervals, fit.not_identified, fit.valid, {},
                   kv_blocks, fit.seed, errors or {})


def of_points(name: str, fitted: ClosedLoop, points: list[PointObs], *, source: str, errors: dict[str, float] | None = None) -> Profile:
    """The profile of one group of load points, from a fit to many. All points are of one group."""
    p = points[0]
    theta, level = fitted.tpot.coefficients(p)
    ttft, _ = fitted.ttft.coefficients(p)
    layers = model(p.model).layers
    t, f = dict(zip(TPOT_TERMS, theta.tolist())), dict(zip(TTFT_TERMS, ttft.tolist()))
    scales = _scales(t, layers)
    before = _scales(dict(TPOT_TERMS), layers)
    host = {"ingress_s": (10 * f["request_10ms"] + 0.1 * layers * f["layer_100us"]) / MS, "ingress_per_token_s": 0.01 * f["token_10us"] / MS}
    most = max(q.concurrency for q in points)
    longest = max(q.isl + q.osl for q in points)
    valid = {"sequences": (1.0, float(most)), "kv_mean": (1.0, float(longest)), "context": (1.0, float(max(q.isl for q in points)))}
    roof = prior_of(p)
    return Profile(name, p.model, p.gpu, p.gpus, f"{p.engine} {p.version}", PriorSpec("roofline", p.dtype, "bf16", roof.ep, roof.dp), scales,
                   before, f"{source}, {len(points)} points, fitted per {level}", {}, [], valid, host, None, 0, errors or {})


def _scales(t: dict[str, float], layers: int) -> dict[str, float]:
    return {"gemm": t["gemm"], "moe": t["gemm"], "other": t["gemm"], "comm": t["comm"], "attn_decode": t["attn_decode"],
            "attn_prefill": t["attn_prefill"], "prefill_gemm": t["prefill_gemm"], "prefill_comm": t["prefill_comm"],
            "step_s": (0.01 * layers * t["layer_10us"] + t["step_ms"]) / MS, "sequence_s": 0.01 * t["sequence_10us"] / MS,
            "prefill_step_s": 0.01 * layers * t["prefill_layer_10us"] / MS}
