"""Who calls, and whether they may: the one table of methods and roles, and the tokens' bearers.

Owns what a call's `authorization` header is worth. Off without `--tokens`: everybody is then
the default tenant's admin, as the server listens to its own machine alone (config.py). Every
call of every service passes `admit` (gate.py); a handler asks `caller` whose tenant it serves.
Knows no services and no adapters.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...adapters.key import DEFAULT_TENANT
from ..clock import Clock
from ..errors import ConfigError, PermissionDenied, TokensUnreadable, Unauthenticated
from ..token_file import Stamp, TokenFile
from ..tokens import Role, TokenEntry, digest_of, is_token

# A token that was revoked works no longer than this: the file is looked at that often, on a call.
RELOAD_S = 1.0
HEADER = "authorization"
SCHEME = "bearer"

Metadata = Iterable[tuple[str, Any]]

# The role each method asks for; None is open to everybody. What is served and not named here
# is closed to all (a test walks everything that is served).
NEEDS: dict[str, Role | None] = {
    "/lorry.v1.Generation/Generate": Role.GENERATE,
    "/lorry.v1.Adapters/Get": Role.GENERATE,
    "/lorry.v1.Adapters/List": Role.GENERATE,
    "/lorry.v1.Adapters/Upload": Role.UPLOAD,
    "/lorry.v1.Adapters/Delete": Role.UPLOAD,
    # Like these two it changes what the server holds; who only generates loads by generating.
    "/lorry.v1.Adapters/Prefetch": Role.UPLOAD,
    "/lorry.v1.Engine/GetInfo": Role.GENERATE,
    # What belongs to other tenants is shown to admins alone: view.py.
    "/lorry.v1.Engine/GetStats": Role.GENERATE,
    # Load balancers have no token, and learn nothing but whether to send calls here.
    "/grpc.health.v1.Health/Check": None,
    "/grpc.health.v1.Health/Watch": None,
    "/grpc.health.v1.Health/List": None,
    # The wire is public; still nobody unknown needs it from this server.
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Role.GENERATE,
}

_log = logging.getLogger("lorry.rpc")


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a call is answered."""

    name: str  # of the token; empty without tokens
    role: Role
    tenant: str

    @property
    def sees_all(self) -> bool:
        """Whether other tenants' names may be shown to them."""
        return self.role >= Role.ADMIN


ANYBODY = Caller("", Role.ADMIN, DEFAULT_TENANT)


class Access:
    """Belongs to the event loop's thread. `open` before the first call."""

    def __init__(self, tokens: Path | None, clock: Clock) -> None:
        self._file = None if tokens is None else TokenFile(tokens)
        self._clock = clock
        self._bearers: dict[str, TokenEntry] | None = None  # by digest; None: nobody is let in
        self._stamp: Stamp | None = None
        self._looked_s = 0.0
        self._complaint = ""  # the last one logged

    @property
    def is_on(self) -> bool:
        return self._file is not None

    def open(self) -> None:
        """Raises:
        ConfigError: the tokens cannot be read; a server does not start like that.
        """
        if self._file is not None:
            self._read(self._file)

    def admit(self, method: str, metadata: Metadata) -> None:
        """Whether this call may go on to its handler.

        Raises:
            Unauthenticated: no token that is known here came with it.
            PermissionDenied: its role is not enough.
            TokensUnreadable: nobody can be known.
        """
        if self._file is None or (method in NEEDS and NEEDS[method] is None):
            return
        caller = self._bearer(self._file, metadata)
        needed = NEEDS.get(method)
        if needed is None:
            raise PermissionDenied(f"{_short(method)} is not open to callers")
        if caller.role < needed:
            raise PermissionDenied(
                f"{_short(method)} needs the role {needed.word}; this token has {caller.role.word}"
            )

    def caller(self, context: Any) -> Caller:
        """Whose call this is, as of now: a call that lasts may ask again before it commits.

        Raises:
            Unauthenticated: the token was revoked since.
        """
        if self._file is None:
            return ANYBODY
        return self._bearer(self._file, context.invocation_metadata() or ())

    def _bearer(self, file: TokenFile, metadata: Metadata) -> Caller:
        self._refresh(file)
        if self._bearers is None:
            raise TokensUnreadable(
                "this server cannot read its tokens, so it lets nobody in; its log says why",
                retry_after_s=RELOAD_S,
            )
        token = _token(metadata)
        # Found by hash: the time it takes tells of the hash of what was sent, not of any token.
        entry = None if token is None else self._bearers.get(digest_of(token))
        if entry is None:
            # One sentence for every reason: which part was wrong is of use to a guesser alone.
            raise Unauthenticated(
                "this server asks for a token it knows, as the header 'authorization: Bearer TOKEN'"
            )
        return Caller(entry.name, entry.role, entry.tenant)

    def _refresh(self, file: TokenFile) -> None:
        """A stat a second at most, and a read when the file is another than the one read last."""
        now_s = self._clock.now_s()
        if now_s - self._looked_s < RELOAD_S:
            return
        self._looked_s = now_s
        if self._bearers is not None and file.stamp() == self._stamp:
            return
        try:
            self._read(file)
        except ConfigError as error:
            # Closed, not as before: an operator who broke the file may have meant to revoke.
            self._bearers = None
            if error.message != self._complaint:
                self._complaint = error.message
                _log.error("nobody is let in: %s", error)

    def _read(self, file: TokenFile) -> None:
        self._looked_s = self._clock.now_s()
        entries, self._stamp = file.read()
        self._bearers = {entry.sha256: entry for entry in entries}
        self._complaint = ""
        _log.info("%d tokens read from %s", len(entries), file.path)


def _token(metadata: Metadata) -> str | None:
    """None unless exactly one header holds the scheme and something like a token of ours."""
    found = [value for key, value in metadata if key == HEADER]
    if len(found) != 1 or not isinstance(found[0], str):
        return None
    scheme, _, token = found[0].partition(" ")
    return token if scheme.lower() == SCHEME and is_token(token) else None


def _short(method: str) -> str:
    """`Adapters.Upload` of `/lorry.v1.Adapters/Upload`."""
    service, _, name = method.removeprefix("/").partition("/")
    return f"{service.rpartition('.')[2]}.{name}"
