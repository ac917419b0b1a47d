"""Operations on traces, lazily on batches, and how plain data names them.

Random choices hash a row's key, so they do not hang on the order of rows. The key is the root of the row's session (a child session
counts as its parent's), or the request id of a row without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from windtunnel.errors import ConfigUnknownKeyError, ConfigValueError
from windtunnel.sources.traces.assign import AssignDeadline, AssignPriority, AssignTenants
from windtunnel.sources.traces.choose import Sample, Splice, Window
from windtunnel.sources.traces.open import Operation
from windtunnel.sources.traces.scale import Clamp, RateScale, Repeat, ScaleTokens, Shift, Stagger, TimeScale

OPERATIONS: Mapping[str, type[Any]] = {
    "time_scale": TimeScale, "rate_scale": RateScale, "window": Window, "sample": Sample, "splice": Splice, "repeat": Repeat,
    "shift": Shift, "stagger": Stagger, "clamp": Clamp, "scale_tokens": ScaleTokens, "assign_tenants": AssignTenants,
    "assign_priority": AssignPriority, "assign_deadline": AssignDeadline,
}
BARE = {"assign_tenants": "shares", "assign_priority": "shares", "assign_deadline": "slo"}


def operation_of(value: Any, field: str = "ops") -> Operation:
    """An operation from plain data: {window: {t0: 0, t1: 600}}, {rate_scale: 9.0}, {assign_tenants: {acme: 0.7, flood: 0.3}}."""
    if callable(value):
        made: Operation = value
        return made
    if not isinstance(value, Mapping) or len(value) != 1:
        raise ConfigValueError(field, f"expected one operation, as in {{window: {{t0: 0, t1: 600}}}}; got {value!r}")
    (name, given), = value.items()
    if name not in OPERATIONS:
        close = get_close_matches(str(name), OPERATIONS, 1)
        raise ConfigUnknownKeyError(field, str(name), did_you_mean=close[0] if close else None)
    known = [f.name for f in fields(OPERATIONS[name])]
    given = {BARE[name]: given} if name in BARE else given if isinstance(given, Mapping) else {known[0]: given}
    for key in given:
        if key not in known:
            raise ConfigUnknownKeyError(f"{field}.{name}", str(key), known=tuple(known))
    try:
        made = OPERATIONS[name](**given)
    except TypeError:
        raise ConfigValueError(f"{field}.{name}", f"takes {', '.join(known)}; got {', '.join(map(str, given)) or 'nothing'}") from None
    except ConfigValueError as error:
        raise ConfigValueError(f"{field}.{error.field}", error.message.removeprefix(f"{error.field}: ")) from None
    return made
