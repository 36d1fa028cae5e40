"""From an error of the house to the gRPC status a client sees.

Owns the one table, class to status code and details. The nearest class in an error's own
ancestry counts, so a subclass without an entry of its own is still answered; a test asks
that each has one. Without the grpcio-status package the code and the message still go out,
the details do not. Called by `guard.py` at the edge of every handler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from ...adapters.errors import (
    AdapterError,
    AdapterLoadFailed,
    AdapterNotFound,
    AdapterRefused,
    AdapterTooLarge,
    UploadCorrupt,
)
from ..errors import (
    ClientTooSlow,
    ConfigError,
    DeadlineExceeded,
    Draining,
    EngineUnavailable,
    GivenUp,
    InternalError,
    InvalidRequest,
    LorryError,
    ModelRefused,
    Overloaded,
    PermissionDenied,
    RequestTooLarge,
    TokensUnreadable,
    Unauthenticated,
)

ADAPTER_RESOURCE = "lorry.v1.Adapter"
# gRPC allows trailers of 8 KiB. There a sentence travels up to three times as it is, in base64,
# and once with three characters for each byte that is not ASCII.
MAX_MESSAGE_BYTES = 600
MAX_NAME_BYTES = 128
DRAINING_RETRY_S = 1.0  # another server can be asked at once; this one is not coming back

DetailBuilder = Callable[[Any], "Iterator[Any]"]


@dataclass(frozen=True, slots=True)
class Answer:
    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]


def answer_for(error: Exception) -> Answer:
    """The status of an error; what is of neither tree is a bug of ours."""
    for kind in type(error).__mro__:
        if kind in TABLE:
            code, build = TABLE[kind]
            message = safe(str(error))
            return Answer(code, message, _trailers(code, message, list(_packed(build, error))))
    return answer_for(InternalError("internal error; the server's log has the rest"))


def has_details() -> bool:
    """Whether the packages that carry google.rpc details are installed."""
    try:
        from google.rpc import error_details_pb2, status_pb2
        from grpc_status import rpc_status
    except ImportError:
        return False
    return all((error_details_pb2, status_pb2, rpc_status))


def _packed(build: DetailBuilder, error: Exception) -> Iterator[Any]:
    if not has_details():
        return
    from google.protobuf import any_pb2

    for detail in build(error):
        packed = any_pb2.Any()
        packed.Pack(detail)
        yield packed


def _trailers(
    code: grpc.StatusCode, message: str, details: list[Any]
) -> tuple[tuple[str, str | bytes], ...]:
    if not details:
        return ()
    from google.rpc import status_pb2
    from grpc_status import rpc_status

    status = status_pb2.Status(code=code.value[0], message=message, details=details)
    return tuple(rpc_status.to_status(status).trailing_metadata)


def safe(text: str, max_bytes: int = MAX_MESSAGE_BYTES) -> str:
    """What a client sent, come back in an error: valid UTF-8 of bounded length, whatever it was."""
    encoded = text.encode("utf-8", "backslashreplace")
    if len(encoded) > max_bytes:
        encoded = encoded[: max_bytes - 4] + b" ..."
    return encoded.decode("utf-8", "ignore")  # a character cut in half goes whole


def _nothing(_: Exception) -> Iterator[Any]:
    return iter(())


def _field(error: LorryError | AdapterError) -> Iterator[Any]:
    from google.rpc import error_details_pb2

    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=safe(error.field, MAX_NAME_BYTES), description=safe(error.message)
        )
        yield error_details_pb2.BadRequest(field_violations=[violation])


def _resource(error: AdapterNotFound | AdapterLoadFailed) -> Iterator[Any]:
    from google.rpc import error_details_pb2

    yield error_details_pb2.ResourceInfo(
        resource_type=ADAPTER_RESOURCE,
        resource_name=safe(error.name, MAX_NAME_BYTES),
        description=safe(error.message),
    )


def _quota(error: AdapterTooLarge) -> Iterator[Any]:
    from google.rpc import error_details_pb2

    violation = error_details_pb2.QuotaFailure.Violation(
        subject=safe(error.field or error.unit, MAX_NAME_BYTES), description=safe(error.message)
    )
    yield error_details_pb2.QuotaFailure(violations=[violation])
    yield from _field(error)


def _retry_after(error: EngineUnavailable | TokensUnreadable) -> Iterator[Any]:
    yield _retry_info(error.retry_after_s)


def _exceeded(error: LorryError) -> Iterator[Any]:
    from google.rpc import error_details_pb2

    violation = error_details_pb2.QuotaFailure.Violation(
        subject=safe(error.field or "server", MAX_NAME_BYTES), description=safe(error.message)
    )
    yield error_details_pb2.QuotaFailure(violations=[violation])


def _overloaded(error: Overloaded) -> Iterator[Any]:
    yield from _exceeded(error)
    yield _retry_info(error.retry_after_s)


def _elsewhere(_: Draining) -> Iterator[Any]:
    yield _retry_info(DRAINING_RETRY_S)


def _retry_info(delay_s: float) -> Any:
    from google.protobuf import duration_pb2
    from google.rpc import error_details_pb2

    delay = duration_pb2.Duration()
    delay.FromNanoseconds(int(delay_s * 1e9))
    return error_details_pb2.RetryInfo(retry_delay=delay)


_CODE = grpc.StatusCode
TABLE: dict[type[Exception], tuple[grpc.StatusCode, DetailBuilder]] = {
    # The client's doing: the same call fails again, so no code that invites a retry.
    InvalidRequest: (_CODE.INVALID_ARGUMENT, _field),
    RequestTooLarge: (_CODE.INVALID_ARGUMENT, _field),
    AdapterError: (_CODE.INVALID_ARGUMENT, _field),
    AdapterRefused: (_CODE.INVALID_ARGUMENT, _field),
    UploadCorrupt: (_CODE.INVALID_ARGUMENT, _field),
    AdapterNotFound: (_CODE.NOT_FOUND, _resource),
    # No RetryInfo: the limit stays where it is.
    AdapterTooLarge: (_CODE.INVALID_ARGUMENT, _quota),
    ClientTooSlow: (_CODE.RESOURCE_EXHAUSTED, _exceeded),
    # Nothing but the sentence: details would tell a guesser more.
    Unauthenticated: (_CODE.UNAUTHENTICATED, _nothing),
    PermissionDenied: (_CODE.PERMISSION_DENIED, _nothing),
    # Passing states: come back.
    Overloaded: (_CODE.RESOURCE_EXHAUSTED, _overloaded),
    GivenUp: (_CODE.RESOURCE_EXHAUSTED, _overloaded),
    DeadlineExceeded: (_CODE.DEADLINE_EXCEEDED, _nothing),
    Draining: (_CODE.UNAVAILABLE, _elsewhere),
    EngineUnavailable: (_CODE.UNAVAILABLE, _retry_after),
    TokensUnreadable: (_CODE.UNAVAILABLE, _retry_after),
    # Ours. The two of the start never reach a client of a server that started; one that
    # comes back refused after a restart is told so.
    AdapterLoadFailed: (_CODE.INTERNAL, _resource),
    LorryError: (_CODE.INTERNAL, _nothing),
    InternalError: (_CODE.INTERNAL, _nothing),
    ModelRefused: (_CODE.FAILED_PRECONDITION, _nothing),
    ConfigError: (_CODE.FAILED_PRECONDITION, _nothing),
}
