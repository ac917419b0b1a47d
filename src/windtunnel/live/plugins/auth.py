"""Who may register a plugin: shared secrets, client certificates, several ways at once, or, on this machine only, anybody."""

from __future__ import annotations

import hmac
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from windtunnel.errors import PlannerConfigError

log = logging.getLogger(__name__)
ANONYMOUS = "anonymous"


class AuthSource(Protocol):
    """The subject behind a token and the names of a verified client certificate; None: not known here."""

    def subject(self, token: str, peer_names: Sequence[str]) -> str | None: ...


class StaticSecrets:
    """Secrets by subject's secret: {secret: subject}. Every entry is compared in constant time, none is ever printed."""

    def __init__(self, subjects: Mapping[str, str]) -> None:
        if not subjects:
            raise PlannerConfigError("auth: expected at least one secret")
        for secret, subject in subjects.items():
            if not secret or not subject:
                raise PlannerConfigError(f"auth: an empty {'secret' if not secret else 'subject'} is refused")
        self._subjects = [(secret.encode(), subject) for secret, subject in subjects.items()]

    def subject(self, token: str, peer_names: Sequence[str]) -> str | None:
        given, found = token.encode(), None
        for secret, subject in self._subjects:
            if hmac.compare_digest(secret, given):
                found = subject
        return found

    def __repr__(self) -> str:
        return f"StaticSecrets({len(self._subjects)} subjects)"


class PeerCertificate:
    """The subject is a name of the verified client certificate. allowed: these names only; empty: any that the CA signed."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._allowed = frozenset(allowed)

    def subject(self, token: str, peer_names: Sequence[str]) -> str | None:
        return next((name for name in peer_names if not self._allowed or name in self._allowed), None)


class AnyOf:
    """The first source that knows the caller."""

    def __init__(self, sources: Sequence[AuthSource]) -> None:
        if not sources:
            raise PlannerConfigError("auth: expected at least one source", hint="nothing falls back to no authentication")
        self._sources = tuple(sources)

    def subject(self, token: str, peer_names: Sequence[str]) -> str | None:
        found = [source.subject(token, peer_names) for source in self._sources]
        return next((subject for subject in found if subject is not None), None)


class Unauthenticated:
    """Everybody is `anonymous`: for one machine only, so `listen` has to be a unix socket or loopback."""

    def __init__(self, listen: str) -> None:
        if not on_this_machine(listen):
            raise PlannerConfigError(f"auth: unauthenticated plugins need a unix socket or loopback, got {listen!r}")
        log.warning("planner plugins may register without authentication at %s", listen)

    def subject(self, token: str, peer_names: Sequence[str]) -> str | None:
        return ANONYMOUS


class ReadSecrets:
    """Subjects by where their secret is (env:NAME, file:PATH), read at every question: a secret that was replaced is good no more.

    Raises PlannerConfigError at once for a secret that cannot be read now.
    """

    def __init__(self, subjects: Mapping[str, str]) -> None:
        StaticSecrets({secret_of(where): subject for where, subject in subjects.items()})
        self._subjects = dict(subjects)

    def subject(self, token: str, peer_names: Sequence[str]) -> str | None:
        found = {}
        for where, subject in self._subjects.items():
            try:
                found[secret_of(where)] = subject
            except PlannerConfigError as error:
                log.warning("%s", error)
        return StaticSecrets(found).subject(token, peer_names) if found else None

    def __repr__(self) -> str:
        return f"ReadSecrets({len(self._subjects)} subjects)"


def source_of(data: Mapping[str, Any], listen: str) -> AuthSource:
    """A source by its kind: static_secret {secrets: {env:NAME: subject}}, mtls {subjects: []}, allow_unauthenticated, multi {sources: []}.

    listen: where the registry is. Raises PlannerConfigError.
    """
    match data.get("kind"):
        case "static_secret":
            return ReadSecrets(data["secrets"])
        case "mtls":
            return PeerCertificate(data.get("subjects", ()))
        case "allow_unauthenticated":
            return Unauthenticated(listen)
        case "multi":
            return AnyOf([source_of(one, listen) for one in data["sources"]])
    raise PlannerConfigError(f"auth: unknown kind of source {data.get('kind')!r}")


def on_this_machine(listen: str) -> bool:
    """Is this address reachable from this machine alone?"""
    host = listen.rpartition(":")[0].strip("[]")
    return listen.startswith("unix:") or host in ("127.0.0.1", "localhost", "::1")


def secret_of(where: str) -> str:
    """A secret from `env:NAME` or `file:PATH`; anything else would be a secret in a file that is shown to others.

    Raises PlannerConfigError naming the place, never the value.
    """
    kind, _, name = where.partition(":")
    if kind == "env":
        value = os.environ.get(name, "")
    elif kind == "file":
        try:
            value = Path(name).read_text("utf-8").strip()
        except OSError as error:
            raise PlannerConfigError(f"auth: cannot read the secret file {name!r}: {error.strerror}") from error
    else:
        raise PlannerConfigError("auth: secrets come from env:NAME or file:PATH")
    if not value:
        raise PlannerConfigError(f"auth: the secret {where!r} is empty or not set")
    return value
