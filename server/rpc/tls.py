"""The server's certificate: checked before it is used, looked at again at each handshake.

Owns the three TLS files and what is wrong with them in words; gRPC itself says nothing when a
key does not fit. The check is a handshake of Python's own TLS with itself, in memory. A pair
that was renewed on the disk is taken up by the next connection. Knows no calls; built by
service.py.
"""

from __future__ import annotations

import logging
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import grpc

from ..config import ServiceConfig
from ..errors import ConfigError

MAX_PEM_BYTES = 1 << 20
# Not blocking: opening a pipe would wait for its writer.
OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
NOT_YET_VALID, EXPIRED = 9, 10  # OpenSSL's numbers of the two verdicts on a certificate's dates

_log = logging.getLogger("lorry.rpc")

Stamps = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the operator keeps them; PEM all."""

    cert: Path  # the server's certificate, then those that signed it
    key: Path  # its private key, not encrypted
    client_ca: Path | None  # given: only clients with a certificate of these are let in


@dataclass(frozen=True, slots=True)
class _Pair:
    """The bytes that gRPC is given."""

    cert: bytes
    key: bytes
    client_ca: bytes | None

    def __repr__(self) -> str:
        return "_Pair(...)"  # it holds the key

    def configuration(self) -> Any:
        pairs = [(self.key, self.cert)]
        return grpc.ssl_server_certificate_configuration(pairs, self.client_ca)


def tls_files(service: ServiceConfig) -> TlsFiles | None:
    """None without TLS; config.py has seen to it that key and certificate come together."""
    if service.tls_cert is None or service.tls_key is None:
        return None
    return TlsFiles(service.tls_cert, service.tls_key, service.tls_client_ca)


class ServerTls:
    """`notes`: what does not keep a server from starting but should be looked at."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises:
        ConfigError: names the flag, the file and what is wrong with it.
        """
        self._files = files
        self._stamps = _stamps(files)
        pair, self.notes = _load(files)
        self.credentials: Any = grpc.dynamic_ssl_server_credentials(
            pair.configuration(), self.renewed, files.client_ca is not None
        )

    def renewed(self) -> Any:
        """The pair on the disk if it is another than the last good one; else None.

        Called by gRPC on its own threads before each handshake. Key and certificate are two
        files, so between their replacements they do not fit: then the old pair goes on.
        """
        stamps = _stamps(self._files)
        if stamps == self._stamps:
            return None
        self._stamps = stamps
        try:
            pair, notes = _load(self._files)
        except ConfigError as error:
            _log.error("the certificate in use stays: %s", error)
            return None
        for note in notes:
            _log.warning("%s", note)
        _log.info("a new certificate is in use, from %s", self._files.cert)
        return pair.configuration()


def _stamps(files: TlsFiles) -> Stamps:
    return tuple(_stamp(path) for path in (files.cert, files.key, files.client_ca) if path)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _load(files: TlsFiles) -> tuple[_Pair, list[str]]:
    cert = _read("--tls-cert", files.cert)
    key = _read("--tls-key", files.key)
    client_ca = None if files.client_ca is None else _read("--tls-client-ca", files.client_ca)
    server = _server_context(files)
    if files.client_ca is not None:
        _certificates("--tls-client-ca", files.client_ca, client_ca or b"")
    return _Pair(cert, key, client_ca), _rehearse(server, files.cert, cert)


def _read(flag: str, path: Path) -> bytes:
    try:
        with os.fdopen(os.open(path, OPEN_FLAGS), "rb") as file:
            data = file.read(MAX_PEM_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{flag} is {path}, which cannot be read: {error.strerror}", field=flag
        ) from error
    if b"-----BEGIN " not in data:
        raise ConfigError(f"{flag} is {path}, which is not PEM", field=flag)
    if len(data) > MAX_PEM_BYTES:
        raise ConfigError(
            f"{flag} is {path}, which is longer than {MAX_PEM_BYTES} bytes", field=flag
        )
    return data


def _server_context(files: TlsFiles) -> ssl.SSLContext:
    def ask() -> NoReturn:
        raise ConfigError(
            f"--tls-key is {files.key}, which is encrypted; a server has nobody to ask for the "
            "passphrase",
            field="--tls-key",
        )

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.cert, files.key, password=ask)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            flag = "--tls-key"
            reason = f"--tls-key is {files.key}, which is not the key of --tls-cert {files.cert}"
        else:
            # OpenSSL does not say which file it could not read: the certificate alone tells.
            _certificates("--tls-cert", files.cert, files.cert.read_bytes())
            flag = "--tls-key"
            reason = (
                f"--tls-key is {files.key}, which is no private key that can be used with "
                f"--tls-cert {files.cert}: {_reason(error)}"
            )
        raise ConfigError(reason, field=flag) from error
    return context


def _certificates(flag: str, path: Path, data: bytes) -> ssl.SSLContext:
    """What trusts these certificates and nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata=data.decode("ascii", "replace"))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"{flag} is {path}, which holds no certificate that can be read: {_reason(error)}",
            field=flag,
        ) from error
    return context


def _rehearse(server: ssl.SSLContext, path: Path, cert: bytes) -> list[str]:
    """One handshake in memory: what a client would say of the certificate's dates."""
    client = _certificates("--tls-cert", path, cert)
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    answering = server.wrap_bio(theirs, ours, server_side=True)
    asking = client.wrap_bio(ours, theirs)
    try:
        for _ in range(4):  # TLS 1.3 needs two rounds
            for side in (asking, answering):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in (NOT_YET_VALID, EXPIRED):
            return [f"--tls-cert is {path}, and clients will refuse it: {error.verify_message}"]
        return []  # only the dates can be judged without knowing whom the clients trust
    except ssl.SSLError as error:
        raise ConfigError(
            f"--tls-cert is {path}, with which no handshake succeeds: {_reason(error)}",
            field="--tls-cert",
        ) from error
    return []


def _reason(error: Exception) -> str:
    said = getattr(error, "reason", None) or str(error)
    return str(said).lower().replace("_", " ")
