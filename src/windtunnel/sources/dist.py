"""Laws of lengths and durations, drawn in bulk from a generator that is handed in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windtunnel.errors import ConfigFileError, ConfigUnknownKeyError, ConfigValueError
from windtunnel.policy.param import check_number

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Const:
    """Always `value`."""

    value: float

    def __post_init__(self) -> None:
        check_number("value", self.value, lo=0)

    def expected(self) -> float:
        return float(self.value)

    def sample(self, rng: np.random.Generator, n: int) -> Floats:
        """n values; draws nothing from `rng`."""
        return np.full(n, float(self.value))


@dataclass(frozen=True, slots=True)
class Uniform:
    """Evenly between lo and hi."""

    lo: float
    hi: float

    def __post_init__(self) -> None:
        check_number("lo", self.lo, lo=0)
        check_number("hi", self.hi, lo=self.lo)

    def expected(self) -> float:
        return (self.lo + self.hi) / 2

    def sample(self, rng: np.random.Generator, n: int) -> Floats:
        """n values in [lo, hi)."""
        return rng.uniform(self.lo, self.hi, n)


@dataclass(frozen=True, slots=True)
class Normal:
    """Normal law truncated at 0 (negative draws are drawn again); mean and sd are those before the truncation."""

    mean: float
    sd: float
    max: float | None = None

    def __post_init__(self) -> None:
        check_number("mean", self.mean, lo=0)
        check_number("sd", self.sd, lo=0)
        _check_max(self.max)

    def expected(self) -> float:
        if self.sd == 0:
            return float(self.mean)
        a = self.mean / self.sd
        return self.mean + self.sd * math.exp(-a * a / 2) / math.sqrt(2 * math.pi) / (0.5 * math.erfc(-a / math.sqrt(2)))

    def sample(self, rng: np.random.Generator, n: int) -> Floats:
        """n values >= 0."""
        values = rng.normal(self.mean, self.sd, n)
        while (bad := np.flatnonzero(values < 0)).size:
            values[bad] = rng.normal(self.mean, self.sd, bad.size)
        return _cap(values, self.max)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Log-normal law with this mean and coefficient of variation (sd / mean); values above `max` become `max`."""

    mean: float
    cv: float
    max: float | None = None

    def __post_init__(self) -> None:
        check_number("mean", self.mean, above=0)
        check_number("cv", self.cv, lo=0)
        _check_max(self.max)

    def expected(self) -> float:
        return float(self.mean)

    def sample(self, rng: np.random.Generator, n: int) -> Floats:
        """n values > 0."""
        variance = math.log1p(self.cv * self.cv)
        return _cap(rng.lognormal(math.log(self.mean) - variance / 2, math.sqrt(variance), n), self.max)


@dataclass(frozen=True, slots=True)
class Exponential:
    """Exponential law with this mean; values above `max` become `max`."""

    mean: float
    max: float | None = None

    def __post_init__(self) -> None:
        check_number("mean", self.mean, above=0)
        _check_max(self.max)

    def expected(self) -> float:
        return float(self.mean)

    def sample(self, rng: np.random.Generator, n: int) -> Floats:
        """n values >= 0."""
        return _cap(rng.exponential(self.mean, n), self.max)


@dataclass(frozen=True, slots=True)
class Empirical:
    """Drawn evenly, with replacement, from measured values."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ConfigValueError("values", "expected at least one value, got none")
        for value in self.values:
            check_number("values", value, lo=0)

    def expected(self) -> float:
        return float(np.mean(self.values))

    def sample(self, rng: np.random.Generator, n: int) -> Floats:
        """n of the measured values."""
        return np.asarray(self.values, dtype=np.float64)[rng.integers(0, len(self.values), n)]


@dataclass(frozen=True, slots=True)
class Gamma:
    """Gamma law with this mean and coefficient of variation; shape 1/cv^2, so cv = 1/sqrt(k) is Erlang-k."""

    mean: float
    cv: float
    max: float | None = None

    def __post_init__(self) -> None:
        check_number("mean", self.mean, above=0)
        check_number("cv", self.cv, above=0)
        _check_max(self.max)

    def expected(self) -> float:
        return float(self.mean)

    def sample(self, rng: np.random.Generator, n: int) -> Floats:
        """n values >= 0."""
        shape = 1.0 / (self.cv * self.cv)
        return _cap(rng.standard_gamma(shape, n) * (self.mean / shape), self.max)


@dataclass(frozen=True, slots=True)
class Hyperexponential:
    """Two exponential phases with balanced means (each carries half of the work): this mean and coefficient of variation, cv >= 1."""

    mean: float
    cv: float
    max: float | None = None

    def __post_init__(self) -> None:
        check_number("mean", self.mean, above=0)
        check_number("cv", self.cv, lo=1)
        _check_max(self.max)

    def expected(self) -> float:
        return float(self.mean)

    def sample(self, rng: np.random.Generator, n: int) -> Floats:
        """n values >= 0."""
        square = self.cv * self.cv
        p = (1.0 + math.sqrt((square - 1.0) / (square + 1.0))) / 2.0
        means = np.where(rng.random(n) < p, self.mean / (2.0 * p), self.mean / (2.0 * (1.0 - p)))
        return _cap(rng.standard_exponential(n) * means, self.max)


@dataclass(frozen=True, slots=True)
class BoundedPareto:
    """Pareto law with tail index `alpha` cut to [lo, hi]: a few large ones carry much of the work."""

    alpha: float
    lo: float
    hi: float

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, above=0)
        check_number("lo", self.lo, above=0)
        check_number("hi", self.hi, above=self.lo)

    def expected(self) -> float:
        a, ratio = self.alpha, self.lo / self.hi
        if a == 1.0:
            return self.lo * math.log(1.0 / ratio) / (1.0 - ratio)
        return float(self.lo * a / (a - 1.0) * (1.0 - ratio ** (a - 1.0)) / (1.0 - ratio**a))

    def sample(self, rng: np.random.Generator, n: int) -> Floats:
        """n values in [lo, hi]."""
        tail = 1.0 - (self.lo / self.hi) ** self.alpha
        values: Floats = self.lo * (1.0 - rng.random(n) * tail) ** (-1.0 / self.alpha)
        return np.minimum(values, self.hi)


Dist = Const | Uniform | Normal | LogNormal | Exponential | Gamma | Hyperexponential | BoundedPareto | Empirical
KINDS: Mapping[str, tuple[type[Any], Mapping[str, str]]] = {  # class, and field by the key that plain data uses
    "const": (Const, {"value": "value"}),
    "uniform": (Uniform, {"lo": "lo", "hi": "hi"}),
    "normal": (Normal, {"mean": "mean", "sd": "sd", "max": "max"}),
    "lognormal": (LogNormal, {"mean": "mean", "cv": "cv", "max": "max"}),
    "exp": (Exponential, {"mean": "mean", "max": "max"}),
    "gamma": (Gamma, {"mean": "mean", "cv": "cv", "max": "max"}),
    "hyperexp": (Hyperexponential, {"mean": "mean", "cv": "cv", "max": "max"}),
    "pareto": (BoundedPareto, {"alpha": "alpha", "lo": "lo", "hi": "hi"}),
    "empirical": (Empirical, {"values": "values", "file": "values"}),
}


def dist_of(value: Any, field: str = "dist") -> Dist:
    """The law that plain data means: a number (const), a Dist, or {kind: lognormal, mean: 600, cv: 1.2}; `field` names it in errors."""
    if isinstance(value, Dist):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = {"kind": "const", "value": value}
    if not isinstance(value, Mapping) or value.get("kind") not in KINDS:
        raise ConfigValueError(field, f"expected a number or a mapping with kind {', '.join(KINDS)}; got {value!r}")
    cls, names = KINDS[value["kind"]]
    given = {key: item for key, item in value.items() if key != "kind"}
    for key in given:
        if key not in names:
            raise ConfigUnknownKeyError(field, str(key), known=tuple(names))
    if "file" in given:
        given["file"] = _numbers_of(Path(given["file"]))
    try:
        made: Dist = cls(**{names[key]: tuple(item) if isinstance(item, list) else item for key, item in given.items()})
    except ConfigValueError as error:
        raise ConfigValueError(f"{field}.{error.field}", error.message.removeprefix(f"{error.field}: ")) from None
    except TypeError:
        got = ", ".join(map(str, given)) or "nothing"
        raise ConfigValueError(field, f"kind {value['kind']} takes {', '.join(names)}; got {got}") from None
    return made


def tokens(dist: Dist, rng: np.random.Generator, n: int) -> list[int]:
    """n token counts: drawn, rounded half up, at least 1."""
    counts: list[int] = np.maximum(np.floor(dist.sample(rng, n) + 0.5), 1).astype(np.int64).tolist()
    return counts


def _check_max(value: float | None) -> None:
    if value is not None:
        check_number("max", value, above=0)


def _cap(values: Floats, top: float | None) -> Floats:
    return values if top is None else np.minimum(values, top)


def _numbers_of(path: Path) -> tuple[float, ...]:
    try:
        return tuple(float(line) for line in path.read_text(encoding="utf-8").split())
    except OSError:
        raise ConfigFileError("cannot read the file of measured values", where=str(path)) from None
    except ValueError as error:
        raise ConfigFileError(f"expected one number a line ({error})", where=str(path)) from None
