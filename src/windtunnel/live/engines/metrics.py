"""What an engine's Prometheus text says, by canonical names: tables of names, the first present wins, a missing one is None."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Self

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from windtunnel.errors import EngineUnavailableError
from windtunnel.events import Scrape


@dataclass(frozen=True, slots=True)
class Source:
    """One way to get a value. names: series that are added up (all must be there); label: the value is this label's text;
    where: only series with these labels; mean: several series (one per rank) are averaged, not added."""

    names: tuple[str, ...]
    label: str = ""
    where: tuple[tuple[str, str], ...] = ()
    mean: bool = False

    def value(self, samples: Mapping[str, Sequence[Sample]]) -> float | None:
        parts = [self._one(samples.get(name, ())) for name in self.names]
        return None if any(p is None for p in parts) else sum(p for p in parts if p is not None)

    def _one(self, samples: Sequence[Sample]) -> float | None:
        fitting = [s for s in samples if all(s.labels.get(k) == v for k, v in self.where)]
        numbers = [n for n in map(self._number, fitting) if n is not None]
        if not numbers:
            return None
        return sum(numbers) / len(numbers) if self.mean else sum(numbers)

    def _number(self, sample: Sample) -> float | None:
        try:
            number = float(sample.labels[self.label]) if self.label else sample.value
        except (KeyError, ValueError):
            return None
        return number if math.isfinite(number) else None


@dataclass(frozen=True, slots=True)
class MetricsTable:
    """Canonical name to the ways of getting it, newest engine version first."""

    engine: str
    prefix: str
    values: Mapping[str, tuple[Source, ...]]

    @classmethod
    def load(cls, engine: str) -> Self:
        """The table shipped for this engine."""
        return cls.of(tomllib.loads((files(__package__) / "tables" / f"{engine}.toml").read_text("utf-8")))

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        prefix = data["prefix"]
        return cls(data["engine"], prefix, {name: tuple(_source(prefix, s) for s in ways) for name, ways in data["values"].items()})

    def read(self, text: str) -> dict[str, float | None]:
        """Every canonical name; None where the text does not hold it. Raises EngineUnavailableError if it is no exposition."""
        wanted = {name for ways in self.values.values() for way in ways for name in way.names}
        samples: dict[str, list[Sample]] = {name: [] for name in wanted}
        # The parser is slow and an exposition long: only the lines that matter reach it (histograms and `_created` do not).
        lines = [line for line in text.splitlines() if line.startswith(self.prefix) and _name(line) in wanted]
        try:
            for family in text_string_to_metric_families("\n".join(lines) + "\n"):
                for sample in family.samples:
                    samples[sample.name].append(sample)
        except (ValueError, KeyError, IndexError) as error:
            raise EngineUnavailableError(f"the metrics of this {self.engine} engine cannot be read: {error}") from None
        return {name: _first(ways, samples) for name, ways in self.values.items()}

    def found(self, values: Mapping[str, float | None]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Canonical names that are there, and those that are not."""
        return tuple(n for n, v in values.items() if v is not None), tuple(n for n, v in values.items() if v is None)

    def scrape(self, text: str, sampled_s: float) -> Scrape:
        """The values as a Scrape; what this engine does not export is None."""
        values = self.read(text)
        awake = values.get("awake")
        return Scrape(
            sampled_s, _int(values.get("running")), _int(values.get("waiting")), values.get("kv_used_fraction"),
            _int(values.get("preemptions_total")), _int(values.get("prompt_tokens_total")), _int(values.get("output_tokens_total")),
            _int(values.get("cached_tokens_total")), _int(values.get("num_blocks")), None if awake is None else awake == 0,
        )


def _source(prefix: str, way: Mapping[str, Any]) -> Source:
    names = way["sum"] if "sum" in way else [way["name"]]
    return Source(tuple(prefix + n for n in names), way.get("label", ""), tuple(way.get("where", {}).items()), way.get("mean", False))


def _name(line: str) -> str:
    return line.split("{", 1)[0].split(" ", 1)[0]


def _first(ways: Sequence[Source], samples: Mapping[str, Sequence[Sample]]) -> float | None:
    return next((value for way in ways if (value := way.value(samples)) is not None), None)


def _int(value: float | None) -> int | None:
    return None if value is None else int(value)


