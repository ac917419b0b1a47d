"""What a scenario claims to show, as data: `expect:` holds metrics with bounds, `windtunnel run --check` says whether they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from windtunnel.errors import ConfigMetricError
from windtunnel.lab.expression import Expression
from windtunnel.lab.kinds import Spec

if TYPE_CHECKING:
    from windtunnel.lab.run import Run


class ExpectSpec(Spec):
    """One expectation. `==` holds within `tol` of the value, `<=` and `>=` may be missed by as much."""

    metric: str = Field(min_length=1, description="A scalar such as goodput_rps, or column.stat[filters], such as ttft_s.p99[tenant=acme].")
    window: tuple[float, float] | None = Field(default=None, description="Only requests that arrived in [from, to) run seconds.")
    op: Literal["<=", ">=", "<", ">", "=="]
    value: float
    tol: float = Field(default=0.0, ge=0, description="Allowed miss as a share of the value; absolute where the value is 0.")

    @model_validator(mode="after")
    def _means_something(self) -> ExpectSpec:
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError(f"window {list(self.window)} is empty; write [from, to] in run seconds")
        filters = self.metric.partition("[")[2].rstrip(" ]").split(",")
        if self.window is not None and any(f.partition("=")[0].strip() == "t" for f in filters):
            raise ValueError("a window stands both in the metric and beside it")
        return self

    def parse(self, scalars: Sequence[str]) -> Expression:
        """The metric; ConfigMetricError if it means nothing."""
        return Expression.parse(self.expression, scalars)

    @property
    def expression(self) -> str:
        """The metric with its window inside."""
        if self.window is None:
            return self.metric
        name, bracket, filters = self.metric.partition("[")
        span = f"t={self.window[0]!r}..{self.window[1]!r}"
        return f"{name}[{span}]" if not bracket else f"{name}[{filters.rstrip().removesuffix(']')},{span}]"

    @property
    def text(self) -> str:
        """Expression, operator, bound and tolerance, as people read them."""
        within = f" ± {self.tol:g}" + ("" if not self.value else f" × {abs(self.value):g}") if self.tol else ""
        return f"{self.expression} {self.op} {self.value:g}{within}"

    def holds(self, got: float | None) -> bool:
        """Unknown never holds."""
        if got is None or got != got:
            return False
        slack = self.tol * (abs(self.value) or 1.0)
        match self.op:
            case "<=":
                return got <= self.value + slack
            case ">=":
                return got >= self.value - slack
            case "<":
                return got < self.value + slack
            case ">":
                return got > self.value - slack
        return abs(got - self.value) <= slack


@dataclass(frozen=True, slots=True)
class Checked:
    """One expectation beside what came out; got None: there is no such number in this run."""

    expected: str
    got: float | None
    holds: bool


def check_expectations(run: Run, expect: Sequence[ExpectSpec]) -> list[Checked]:
    """Each expectation of a scenario on one of its runs, in order. Raises ConfigMetricError for a metric that means nothing."""
    out = []
    for one in expect:
        try:
            got = run.metric(one.expression)
        except ConfigMetricError as error:
            error.message = f"expect: {error.message}"
            raise
        out.append(Checked(one.text, got, one.holds(got)))
    return out


def expectation_table(checked: Sequence[Checked]) -> str:
    """Lines for people: expectation, what was got, ok or MISSED."""
    width = max((len(c.expected) for c in checked), default=0)
    return "\n".join(f"{c.expected:<{width}}   got {'nothing' if c.got is None else format(c.got, '.6g'):<10} {'ok' if c.holds else 'MISSED'}"
                     for c in checked)
