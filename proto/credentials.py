"""How a client shows who it is, and how its channel is protected.

Owns the token on its way into every call, the certificates of TLS, and the refusal to send a
token where it could be read. Used by client.py and async_client.py for their channels; knows
no messages. What a token may do is the server's to say.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypedDict, Unpack

import grpc
import grpc.aio

from .errors import CredentialsError
from .transport import CHANNEL_OPTIONS

# What a header may hold; gRPC would refuse the rest with the token in the message.
TOKEN_RULE = re.compile(r"[\x21-\x7e]+", re.ASCII)
MAX_TOKEN_CHARS = 4096
LOCAL_SOCKETS = ("unix:", "unix-abstract:")  # not vsock: it leaves a virtual machine
NAME_SCHEMES = ("dns:///", "ipv4:", "ipv6:", "dns:")
# Else http_proxy in the environment would send calls, and the token, to another machine.
NO_PROXY = (("grpc.enable_http_proxy", 0),)


class CredentialOptions(TypedDict, total=False):
    """What a client may be given besides its address; None is as if left out."""

    token: str | None  # as `lorry token create` printed it
    tls: bool | None  # encrypt, trusting whom this machine trusts; the next two imply it
    ca: str | Path | None  # PEM: trust servers whose certificates these signed, and no others
    cert: str | Path | None  # PEM, with `key`: the client's own, where the server asks for one
    key: str | Path | None
    plaintext_token: bool  # send the token unencrypted to another machine all the same


@dataclass(frozen=True, slots=True)
class Credentials:
    """Checked `CredentialOptions`."""

    tls: bool
    token: str = field(default="", repr=False)  # empty: none
    root_certificates: bytes | None = None  # None: what this machine trusts
    key: bytes | None = field(default=None, repr=False)
    certificate_chain: bytes | None = None

    def sync_channel(self, address: str) -> Any:
        if self.tls:
            channel = grpc.secure_channel(address, self._of_channel(), options=CHANNEL_OPTIONS)
        else:
            channel = grpc.insecure_channel(address, options=self._plain_options())
        return self._with_token(channel)

    def async_channel(self, address: str) -> Any:
        if self.tls:
            channel = grpc.aio.secure_channel(address, self._of_channel(), options=CHANNEL_OPTIONS)
        else:
            channel = grpc.aio.insecure_channel(address, options=self._plain_options())
        return self._with_token(channel)

    def _of_channel(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(
            self.root_certificates, self.key, self.certificate_chain
        )

    def _plain_options(self) -> tuple[tuple[str, int], ...]:
        return CHANNEL_OPTIONS + NO_PROXY if self.token else CHANNEL_OPTIONS

    def _with_token(self, channel: Any) -> Any:
        return TokenChannel(channel, self.token) if self.token else channel


class TokenChannel:
    """A channel of either transport whose every call carries the token.

    gRPC attaches call credentials to encrypted channels alone, and its interceptors change how
    calls fail; a header on each call does neither.
    """

    def __init__(self, channel: Any, token: str) -> None:
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {token}"),)

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return partial(self._channel.unary_unary(*args, **kwargs), metadata=self._metadata)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return partial(self._channel.unary_stream(*args, **kwargs), metadata=self._metadata)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return partial(self._channel.stream_unary(*args, **kwargs), metadata=self._metadata)

    def close(self) -> Any:
        """Awaitable where the channel's own is."""
        return self._channel.close()


def read_credentials(address: str, **options: Unpack[CredentialOptions]) -> Credentials:
    """Raises:
    CredentialsError: names the option that cannot be used.
    """
    token = options.get("token") or ""
    if token and (len(token) > MAX_TOKEN_CHARS or TOKEN_RULE.fullmatch(token) is None):
        raise CredentialsError(  # without the token: a message may end up in a log
            f"the token must be 1 to {MAX_TOKEN_CHARS} visible ASCII characters", field="token"
        )
    cert, key = options.get("cert"), options.get("key")
    if (cert is None) != (key is None):
        missing = "cert" if cert is None else "key"
        raise CredentialsError(f"cert and key come together; {missing} is missing", field=missing)
    if cert is not None and key is not None:
        _check_pair(cert, key)
    ca = options.get("ca")
    tls = options.get("tls")
    if tls is None:
        tls = ca is not None or cert is not None
    if not tls and (ca is not None or cert is not None):
        raise CredentialsError("ca, cert and key are of TLS, and tls is off", field="tls")
    may_be_read = token and not tls and not stays_here(address)
    if may_be_read and not options.get("plaintext_token", False):
        raise CredentialsError(
            f"the token would travel to {address} unencrypted; use TLS (tls or ca), or say "
            "plaintext_token if something else encrypts the way",
            field="token",
        )
    return Credentials(
        tls=tls,
        token=token,
        root_certificates=_read("ca", ca),
        key=_read("key", key),
        certificate_chain=_read("cert", cert),
    )


def stays_here(address: str) -> bool:
    """Whether what is sent there stays on this machine."""
    if address.startswith(LOCAL_SOCKETS):
        return True
    for scheme in NAME_SCHEMES:
        if address.startswith(scheme):
            address = address.removeprefix(scheme)
            break
    return all(_is_loopback(place) for place in address.split(","))


def _is_loopback(place: str) -> bool:
    host = place
    if place.startswith("["):
        host = place[1:].partition("]")[0]
    elif place.count(":") == 1:
        host = place.partition(":")[0]
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_pair(cert: str | Path, key: str | Path) -> None:
    """GRPC says of a key that does not fit that a handshaker could not be made."""
    import ssl

    def refuse(reason: str) -> NoReturn:
        raise CredentialsError(
            f"cert {cert} and key {key} cannot be used together: {reason}", field="key"
        )

    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_cert_chain(cert, key, password=lambda: refuse("the key is encrypted"))
    except ssl.SSLError as error:
        refuse((error.reason or str(error)).lower().replace("_", " "))
    except OSError as error:
        refuse(error.strerror or str(error))


def _read(option: str, path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CredentialsError(
            f"{option} is {path}, which cannot be read: {error.strerror}", field=option
        ) from error
    if b"-----BEGIN " not in data:
        raise CredentialsError(f"{option} is {path}, which is not PEM", field=option)
    return data
