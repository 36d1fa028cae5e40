"""What a client call can end with, decoded from the status that gRPC delivers.

LorryClientError              base: `code` is the name of the gRPC status
├── InvalidRequest            INVALID_ARGUMENT and its kin: `field` is wrong
├── NotFound                  NOT_FOUND: `resource` is the adapter's name
├── Unauthenticated           UNAUTHENTICATED: the server asks for a token that it knows
├── PermissionDenied          PERMISSION_DENIED: the token's role may not do this
├── Overloaded                RESOURCE_EXHAUSTED: a limit; `retry_after_s` when waiting helps
├── DeadlineExceeded          DEADLINE_EXCEEDED: `timeout_s` passed
├── Unavailable               UNAVAILABLE: nobody answers, or the server is starting or stopping
├── Cancelled                 CANCELLED: this client went away
├── ServerFault               everything else: a bug of the server, or a proxy's answer
├── CredentialsError          a local token or certificate cannot be used; nothing was sent
└── AdapterDirectoryError     a local file is missing or unreadable; nothing was stored

Raised by client.py only. Imports neither grpc nor protobuf until an error is decoded, so that
the command line can name these classes for free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

DETAILS_KEY = "grpc-status-details-bin"
# gRPC's own words, which name neither the address nor what to do; a server's are kept.
CONNECT_FAILURES = ("failed to connect", "errors resolving", "DNS resolution failed")
UNTRUSTED_WORDS = "CERTIFICATE_VERIFY_FAILED: "
OTHER_HOST_WORDS = "Hostname Verification Check failed"
NO_TLS_WORDS = "WRONG_VERSION_NUMBER"
CLOSED_WORDS = "Socket closed"
DEADLINE_WORDS = "Deadline Exceeded"
TOO_LONG_WORDS = "message larger than max"  # of gRPC itself, under the code of a full server


class LorryClientError(Exception):
    """`message` is the whole sentence as the server said it."""

    def __init__(
        self,
        code: str,
        message: str,
        field: str = "",
        retry_after_s: float | None = None,
        *,
        resource: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field  # place in the request or in the adapter's files; empty: unknown
        self.retry_after_s = retry_after_s  # None: the server did not say
        self.resource = resource  # name of the adapter a NotFound is about

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.__dict__))


class InvalidRequest(LorryClientError):
    """A field of the request is wrong; the same request will be refused again."""


class NotFound(LorryClientError):
    """No adapter of this name."""


class Unauthenticated(LorryClientError):
    """No token was sent, or none that the server knows."""


class PermissionDenied(LorryClientError):
    """The server knows the token, and its role is not enough."""


class Overloaded(LorryClientError):
    """A limit is reached: with a `retry_after_s` it passes, without one it stays."""


class DeadlineExceeded(LorryClientError):
    """The call's `timeout_s` passed."""


class Unavailable(LorryClientError):
    """Nobody answers at the address, or whoever answers cannot serve now."""


class Cancelled(LorryClientError):
    """The stream or the client was closed on this side."""


class ServerFault(LorryClientError):
    """Not this client's doing."""


class CredentialsError(LorryClientError):
    """`field` is the option of the client that cannot be used."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__("LOCAL_CREDENTIALS", message, field)


class AdapterDirectoryError(LorryClientError):
    """`field` is the missing or unreadable file."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__("LOCAL_FILE", message, field)


KIND_OF_CODE: dict[str, type[LorryClientError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "FAILED_PRECONDITION": InvalidRequest,
    "OUT_OF_RANGE": InvalidRequest,
    "NOT_FOUND": NotFound,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": PermissionDenied,
    "RESOURCE_EXHAUSTED": Overloaded,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "UNAVAILABLE": Unavailable,
    "CANCELLED": Cancelled,
}


class RpcFailure(Protocol):
    """The part of grpc's and grpc.aio's errors that is read here."""

    def code(self) -> Any: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


@dataclass(frozen=True, slots=True)
class Details:
    """What google.rpc details add to the sentence."""

    field: str = ""  # first violated field, or the subject of the quota
    retry_after_s: float | None = None
    resource: str = ""


def from_rpc(failure: RpcFailure, address: str) -> LorryClientError:
    """The typed error of a failed call to `address`."""
    code = str(failure.code().name)
    message = failure.details() or f"the call ended with {code} and no explanation"
    if code == "UNAVAILABLE" and message.startswith(CONNECT_FAILURES):
        message = _not_reached(message, address)
    if code == "DEADLINE_EXCEEDED" and DEADLINE_WORDS in message:
        message = f"{address} had not answered in full when the call's timeout passed"
    if code == "RESOURCE_EXHAUSTED" and TOO_LONG_WORDS in message:
        return _too_long(message, address)
    details = Details()
    for key, value in failure.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            details = decode_details(value)
    return KIND_OF_CODE.get(code, ServerFault)(
        code, message, details.field, details.retry_after_s, resource=details.resource
    )


def _not_reached(message: str, address: str) -> str:
    """GRPC's reason is the last of several; of a failed handshake it is not even that."""
    if UNTRUSTED_WORDS in message:
        why = message.partition(UNTRUSTED_WORDS)[2].partition(":")[0]
        return f"the certificate of {address} is not trusted: {why}"
    if OTHER_HOST_WORDS in message:
        return f"the certificate of {address} is another host's"
    if NO_TLS_WORDS in message:
        return f"{address} does not speak TLS"
    reason = message.rsplit(":", 1)[-1].strip(" ]")
    if reason == CLOSED_WORDS:
        reason = "the connection was closed, as by one who expects TLS or a client's certificate"
    return f"no server can be reached at {address}: {reason}"


def _too_long(message: str, address: str) -> InvalidRequest:
    """`message` ends with what there was and what is allowed: `(9000000 vs. 8388608)`."""
    sizes = message.rsplit("(", 1)[-1].rstrip(")").split(" vs. ")
    what = "the answer of" if message.startswith("CLIENT") else "a message to"
    said = f"{what} {address} has {sizes[0]} bytes; at most {sizes[-1]} are taken"
    return InvalidRequest("RESOURCE_EXHAUSTED", said)


def decode_details(blob: bytes) -> Details:
    """Empty when google.rpc is not installed or the bytes are none of its messages."""
    try:
        from google.protobuf.message import DecodeError
        from google.rpc import error_details_pb2, status_pb2
    except ImportError:
        return Details()
    field, resource = "", ""
    retry_after_s: float | None = None
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    info = error_details_pb2.ResourceInfo()
    quota = error_details_pb2.QuotaFailure()
    try:
        for packed in status_pb2.Status.FromString(blob).details:
            if packed.Unpack(bad_request) and bad_request.field_violations:
                field = bad_request.field_violations[0].field
            elif packed.Unpack(quota) and quota.violations:
                field = field or quota.violations[0].subject
            elif packed.Unpack(info):
                resource = info.resource_name
            elif packed.Unpack(retry):
                delay = retry.retry_delay
                retry_after_s = delay.seconds + delay.nanos / 1e9
    except DecodeError:
        pass  # a proxy's bytes: the sentence alone is still worth having
    return Details(field, retry_after_s, resource)


def _rebuild(kind: type[LorryClientError], state: dict[str, object]) -> LorryClientError:
    error = kind.__new__(kind, state["message"])
    error.__dict__.update(state)
    return error
