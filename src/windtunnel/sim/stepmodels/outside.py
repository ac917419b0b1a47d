"""What a measured step model was asked beyond its measurements: how far, and for what share of the simulated time."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

from windtunnel.errors import ConfigValueError

ON_EXTRAPOLATION = ("warn", "error")


@dataclass(slots=True)
class Outside:
    """worst: value and measured (least, most) of each feature that was beyond; outside_s: seconds of such steps, of `total_s` simulated ones."""

    total_s: float = 0.0
    outside_s: float = 0.0
    worst: dict[str, tuple[float, float, float]] = field(default_factory=dict)

    @property
    def share(self) -> float:
        return self.outside_s / self.total_s if self.total_s else 0.0

    @property
    def beyond(self) -> str:
        """What was beyond, how far and for how long; empty: nothing."""
        said = ", ".join(f"{name} {_how_far(*found)}" for name, found in self.worst.items())
        return f"{said}: {self.share:.1%} of simulated time" if said else ""

    def saw(self, name: str, value: float, least: float, most: float, on_extrapolation: str) -> None:
        """A feature is beyond (least, most): the first time it warns, or raises ConfigValueError for "error"."""
        known = self.worst.get(name)
        if known is None:
            if on_extrapolation == "error":
                raise ConfigValueError(name, f"{value:g} is outside the calibrated range {least:g} to {most:g}")
            warnings.warn(f"extrapolated: {name} {_how_far(value, least, most)}", stacklevel=3)
        if known is None or max(value - most, least - value) > max(known[0] - known[2], known[1] - known[0]):
            self.worst[name] = (value, least, most)


def check_extrapolation(given: str) -> None:
    """ConfigValueError unless it is one of ON_EXTRAPOLATION."""
    if given not in ON_EXTRAPOLATION:
        raise ConfigValueError("on_extrapolation", f"expected warn or error, got {given!r}")


def _how_far(value: float, least: float, most: float) -> str:
    return f"{value:g} is outside {least:g} to {most:g}"
