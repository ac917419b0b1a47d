"""What an operator may tell a running `Control`. A command that cannot be carried out changes nothing, is counted and noted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from windtunnel import effects as fx
from windtunnel.errors import ConfigValueError
from windtunnel.events import Commanded
from windtunnel.policy.param import check_number
from windtunnel.policy.preemption import HARD
from windtunnel.policy.routing.replica import BOOTING, DRAINING, READY
from windtunnel.policy.settings import ControlSettings

if TYPE_CHECKING:
    from windtunnel.policy.control import Control


class _Refused(Exception):
    """Why a command is not carried out."""


def carry_out(control: Control, command: Commanded, now: float) -> None:
    """stop | drain {replica, deadline_s?} | undrain {replica} | reconfigure {settings?, tenants?}; all values plain data. Those that
    begin with `planner.` are the planner's.

    deadline_s: seconds from now until what still runs there is cut (None: the pool's own). settings: fields of `ControlSettings` by
    name; tenants: weight by name, replacing all. Both count from now on: clocks that run and items that wait stay as they are.
    """
    if command.name.startswith("planner.") and control.planner is not None:
        return
    act = _COMMANDS.get(command.name)
    try:
        if act is None:
            raise _Refused(f"there is no command {command.name!r}")
        act(control, dict(command.args or {}), now)
    except (_Refused, ConfigValueError) as why:
        control.commands_refused += 1
        if "fleet" in control.wants:
            control.flow.out.append(fx.Note("command_refused", "fleet", control.commands_refused, (command.name,), str(why)))


def _stop(control: Control, args: dict[str, Any], now: float) -> None:
    control.flow.stop()


def _drain(control: Control, args: dict[str, Any], now: float) -> None:
    _only(args, "replica", "deadline_s")
    id, deadline_s = args.get("replica"), args.get("deadline_s")
    replica = control.fleet.replicas.get(id) if isinstance(id, str) else None
    if replica is None or replica.state not in (READY, BOOTING):
        raise _Refused(f"replica {id!r} is {'not there' if replica is None else 'draining already'}")
    if deadline_s is not None:
        check_number("deadline_s", deadline_s, lo=0.0)
    control.fleet.draining(replica.id, now)
    control.changed("draining", replica.id, replica.pool)
    control.flow.pump_all()
    control.flow.out.append(fx.Drain(replica.id, None if deadline_s is None else now + deadline_s, "operator"))


def _undrain(control: Control, args: dict[str, Any], now: float) -> None:
    _only(args, "replica")
    id = args.get("replica")
    replica = control.fleet.replicas.get(id) if isinstance(id, str) else None
    if replica is None or replica.state != DRAINING:
        raise _Refused(f"replica {id!r} is {'not there' if replica is None else 'not draining'}")
    control.flow.out.append(fx.Drain(replica.id, None, "operator", True))  # before anything is dispatched to it
    control.fleet.undrain(replica.id, now)
    if control.fleet.replicas[replica.id].state == READY:
        control.changed("ready", replica.id, replica.pool)


def _reconfigure(control: Control, args: dict[str, Any], now: float) -> None:
    """All of it or nothing."""
    _only(args, "settings", "tenants")
    settings = _settings(control, args["settings"]) if "settings" in args else None
    tenants = _tenants(args["tenants"]) if "tenants" in args else None
    if settings is not None:
        control.settings = settings
        control.flow.follow(settings)
    if tenants is not None:
        control.flow.retune(tenants)


def _settings(control: Control, wanted: Any) -> ControlSettings:
    known = {f.name for f in fields(ControlSettings)}
    if not isinstance(wanted, Mapping) or not set(wanted) <= known:
        raise _Refused(f"settings: expected some of {', '.join(sorted(known))}")
    settings = replace(control.settings, **wanted)
    needed = {"first_token"} if settings.attempts > 1 or settings.first_token_s is not None or settings.cancel_late else set()
    needed |= set() if settings.idle_s is None else {"first_token", "progress"}
    needed |= {"interruptible"} if settings.preemption == HARD else set()
    if missing := needed - control.needs:
        raise _Refused(f"settings: this run was not asked for {', '.join(sorted(missing))} at its start")
    return settings


def _tenants(wanted: Any) -> dict[str, float]:
    if not isinstance(wanted, Mapping):
        raise _Refused("tenants: expected a weight by name")
    for name, weight in wanted.items():
        check_number(f"tenants.{name}", weight, above=0.0)
    return {str(name): float(weight) for name, weight in wanted.items()}


def _only(args: dict[str, Any], *known: str) -> None:
    if unknown := set(args) - set(known):
        raise _Refused(f"unknown argument {min(map(str, unknown))!r}; known: {', '.join(known)}")


_COMMANDS = {"stop": _stop, "drain": _drain, "undrain": _undrain, "reconfigure": _reconfigure}
