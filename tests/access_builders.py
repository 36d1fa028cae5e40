"""Tokens, tenants and certificates for tests: a file with one token of each kind, a store that
knows whose an adapter is, a key and its certificate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lorry.adapters.errors import AdapterNotFound
from lorry.adapters.key import AdapterCard
from lorry.server.store_messages import (
    BeginUpload,
    CardPage,
    CommitUpload,
    CountCards,
    DeleteAdapter,
    Failed,
    GetCard,
    ListCards,
    Ok,
    Stored,
)
from lorry.server.token_file import TokenFile
from lorry.server.tokens import Role, TokenEntry, digest_of, new_token
from lorry.tests.rpc_builders import FakeStore, make_card

Metadata = tuple[tuple[str, Any], ...]


def make_entry(name: str = "ada", **overrides: Any) -> TokenEntry:
    values: dict[str, Any] = {
        "name": name,
        "role": Role.GENERATE,
        "tenant": "acme",
        "sha256": digest_of(new_token()),
        "created_unix_s": 1.0,
    }
    return TokenEntry(**(values | overrides))


def hand_out(path: Path, **wanted: tuple[Role, str]) -> dict[str, str]:
    """A token for each `name=(role, tenant)`, put into the file; by name."""
    tokens = {name: new_token() for name in wanted}
    added = tuple(
        make_entry(name, role=role, tenant=tenant, sha256=digest_of(tokens[name]))
        for name, (role, tenant) in wanted.items()
    )
    TokenFile(path).change(lambda entries: (*entries, *added))
    return tokens


def revoke(path: Path, name: str) -> None:
    TokenFile(path).change(lambda entries: tuple(e for e in entries if e.name != name))


def bearing(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


def make_card_of(tenant: str, name: str, version: int = 1) -> AdapterCard:
    card = make_card(name, version)
    return replace(card, key=replace(card.key, tenant=tenant))


def _nobodys(name: str) -> AdapterNotFound:
    return AdapterNotFound(f"there is no adapter '{name}'", name=name)


class TenantStore(FakeStore):
    """A `FakeStore` whose cards are their tenants'; says of a stranger's name what the real one
    says of a name that nobody has.
    """

    def __init__(self, *places: tuple[str, str]) -> None:
        self.places = {place: make_card_of(*place) for place in places}
        super().__init__()

    def _answer(self, request: Any) -> Ok | Failed:
        match request:
            case GetCard(call_id, tenant, name) | DeleteAdapter(call_id, tenant, name):
                if (tenant, name) not in self.places:
                    return Failed(call_id, _nobodys(name))
                if isinstance(request, DeleteAdapter):
                    return Ok(call_id, self.places.pop((tenant, name)).key)
                return Ok(call_id, self.places[tenant, name])
            case ListCards(call_id, tenant):
                cards = self._of(tenant)
                return Ok(call_id, CardPage(cards, "", len(cards)))
            case CountCards(call_id, tenant):
                return Ok(call_id, len(self.places if tenant is None else self._of(tenant)))
            case CommitUpload(call_id, upload_id):
                begun: BeginUpload = self.uploads[upload_id]
                card = make_card_of(begun.tenant, begun.name)
                self.places[begun.tenant, begun.name] = card
                return Ok(call_id, Stored(card, None, True))
            case _:
                return super()._answer(request)

    def _of(self, tenant: str) -> tuple[AdapterCard, ...]:
        return tuple(card for place, card in sorted(self.places.items()) if place[0] == tenant)


@dataclass(frozen=True)
class Certificate:
    """PEM files."""

    cert: Path
    key: Path


def make_certificate(
    folder: Path,
    name: str = "server",
    *,
    host: str = "localhost",
    password: bytes = b"",
    days: tuple[int, int] = (-1, 2),
) -> Certificate:
    """Signed by itself, valid between these days from now; with a password the key is locked."""
    made = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    today = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today + timedelta(days=days[0]))
        .not_valid_after(today + timedelta(days=days[1]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    lock = serialization.BestAvailableEncryption(password) if password else None
    made.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    made.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            lock or serialization.NoEncryption(),
        )
    )
    return made


def make_expired(folder: Path) -> Certificate:
    """One whose day has passed."""
    return make_certificate(folder, "expired", days=(-3, -1))


def names_of(items: Iterable[Any]) -> list[str]:
    return [item.name for item in items]
