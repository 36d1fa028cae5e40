"""The tokens an operator has handed out: who holds each, what it may do, and for which tenant.

Owns the roles, how a token is made and hashed, and how a list of them is written as JSON. The
token itself is nowhere in it: 256 random bits need no slow hash, so SHA-256 is kept. Knows no
files (token_file.py) and no calls (rpc/access.py).
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NoReturn, cast

from ..adapters.errors import AdapterRefused
from ..adapters.json_object import read_object
from ..adapters.names import check_name, shown
from .errors import ConfigError

FLAG = "--tokens"
PREFIX = "lorry_"  # lets a scanner for leaked secrets know one when it sees it
TOKEN_BYTES = 32
TOKEN_RULE = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}", re.ASCII)
DIGEST_RULE = re.compile(r"[0-9a-f]{64}", re.ASCII)
FORMAT = 1
MAX_TOKENS = 10_000


class Role(enum.IntEnum):
    """Each may all that those before it may."""

    GENERATE = 1  # ask the base and the tenant's adapters
    UPLOAD = 2  # also upload and delete the tenant's adapters
    ADMIN = 3  # also see what belongs to other tenants

    @property
    def word(self) -> str:
        return self.name.lower()


ROLES = {role.word: role for role in Role}


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """What is kept of one token."""

    name: str  # the operator's word for whoever holds it; one of its kind in a file
    role: Role
    tenant: str
    sha256: str = field(repr=False)  # lower-case hex, of the token's characters
    created_unix_s: float


FIELDS = frozenset(TokenEntry.__dataclass_fields__)


def new_token() -> str:
    return PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def is_token(text: str) -> bool:
    """Whether it could be one of ours; says nothing of whether anybody was given it."""
    return TOKEN_RULE.fullmatch(text) is not None


def write_entries(entries: Iterable[TokenEntry]) -> bytes:
    tokens = [
        {
            "name": entry.name,
            "role": entry.role.word,
            "tenant": entry.tenant,
            "sha256": entry.sha256,
            "created_unix_s": entry.created_unix_s,
        }
        for entry in entries
    ]
    return (json.dumps({"format": FORMAT, "tokens": tokens}, indent=2) + "\n").encode()


def read_entries(data: bytes, *, what: str) -> tuple[TokenEntry, ...]:
    """Raises:
    ConfigError: names `what` and the entry; never shows a hash or a token.
    """
    try:
        document = read_object(data, what=what, field=FLAG)
    except AdapterRefused as error:
        raise ConfigError(error.message, field=FLAG) from error
    tokens = document.get("tokens")
    if set(document) != {"format", "tokens"} or document["format"] != FORMAT:
        _refuse(f"{what} must hold the keys format ({FORMAT}) and tokens, and no others")
    if not isinstance(tokens, list):
        _refuse(f"{what}: tokens must be a list")
    listed = cast("list[object]", tokens)
    if len(listed) > MAX_TOKENS:
        _refuse(f"{what} holds {len(listed)} tokens; at most {MAX_TOKENS}")
    entries = tuple(_entry(item, f"{what}: tokens[{idx}]") for idx, item in enumerate(listed))
    check_unique(entries, what=what)
    return entries


def check_unique(entries: Iterable[TokenEntry], *, what: str) -> None:
    """A name that two have could not be revoked; a hash that two have would be either's."""
    names: set[str] = set()
    digests: dict[str, str] = {}
    for entry in entries:
        if entry.name in names:
            _refuse(f"{what} has two tokens named {entry.name}; a name is given once")
        if entry.sha256 in digests:
            _refuse(f"{what}: {digests[entry.sha256]} and {entry.name} have the same token")
        names.add(entry.name)
        digests[entry.sha256] = entry.name


def check_place(name: str, tenant: str, *, where: str = "") -> None:
    """Tenants and holders are named as adapters are.

    Raises:
        ConfigError: one of the two is no name.
    """
    for label, text in (("name", name), ("tenant", tenant)):
        try:
            check_name(text, field=f"{where}{label}")
        except AdapterRefused as error:
            raise ConfigError(error.message, field=FLAG) from error


def _entry(item: object, where: str) -> TokenEntry:
    if not isinstance(item, dict):
        _refuse(f"{where} must be an object")
    values = cast("dict[str, object]", item)
    if values.keys() != FIELDS:
        _refuse(f"{where} must have the fields {', '.join(sorted(FIELDS))}, and no others")
    for name in ("name", "role", "tenant", "sha256"):
        if not isinstance(values[name], str):
            _refuse(f"{where}.{name} must be text")
    check_place(str(values["name"]), str(values["tenant"]), where=f"{where}.")
    if values["role"] not in ROLES:
        _refuse(f"{where}.role is {shown(values['role'])}; it must be one of {', '.join(ROLES)}")
    if DIGEST_RULE.fullmatch(str(values["sha256"])) is None:
        _refuse(f"{where}.sha256 must be 64 lower-case hex digits")  # not shown: it may be a token
    created = values["created_unix_s"]
    if isinstance(created, bool) or not isinstance(created, int | float):
        _refuse(f"{where}.created_unix_s must be a number")
    if not math.isfinite(created):
        _refuse(f"{where}.created_unix_s must be finite")
    return TokenEntry(
        name=str(values["name"]),
        role=ROLES[str(values["role"])],
        tenant=str(values["tenant"]),
        sha256=str(values["sha256"]),
        created_unix_s=float(created),
    )


def _refuse(message: str) -> NoReturn:
    raise ConfigError(message, field=FLAG)
