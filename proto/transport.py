"""What both transports share: channel options, error translation, the stream's face, health.

Knows that a call can fail and that a server may still be starting; not what is asked. Used by
client.py and async_client.py.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from .completion import Completion, Transcript
from .errors import Cancelled, LorryClientError, Unavailable, from_rpc

DEFAULT_ADDRESS = "127.0.0.1:50051"
CHANNEL_OPTIONS = (
    # A map of every page of a large pool is longer than gRPC's 4 MiB.
    ("grpc.max_receive_message_length", 64 << 20),
    # A server that has just started is found within a second, not after a backoff of minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Despite its name also the time that one attempt to connect is given.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_retries", 0),
)


def call_timeout_s(timeout_s: float | None, default_s: float | None) -> float | None:
    """0 is a timeout, which has passed; gRPC lets some calls through whose end is this instant."""
    chosen_s = default_s if timeout_s is None else timeout_s
    return -1.0 if chosen_s is not None and chosen_s <= 0 else chosen_s


def was_overtaken(error: LorryClientError) -> bool:
    """Whether an answer came while the call was still sending: gRPC's asyncio client then tells of
    the sending that failed, in these words of its own, and keeps the answer to itself.
    """
    cause = error.__cause__
    if not isinstance(cause, grpc.aio.AioRpcError):
        return False
    told = (cause.code(), cause.details())
    return told == (grpc.StatusCode.INTERNAL, "Internal error from Core")


@contextmanager
def translated(address: str) -> Generator[None]:
    """Turns gRPC's errors, of either transport, into ours."""
    try:
        yield
    except (ValueError, grpc.aio.UsageError) as failure:
        # How the two transports refuse a call on a channel that is closed; else a bug of ours.
        if "closed" not in str(failure):
            raise
        raise Cancelled("CANCELLED", f"this client of {address} is closed") from failure
    except grpc.RpcError as failure:
        # Every RpcError that a call raises is also that call, with a code; the class is bare.
        call: Any = failure
        raise from_rpc(call, address) from failure


class StreamFace:
    """What a stream of either transport shows besides its items."""

    def __init__(self, call: Any, address: str, num_answers: int = 1) -> None:
        self._call = call
        self._address = address
        self._transcript = Transcript(num_answers)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All tokens so far, of the first answer."""
        return tuple(self._transcript.token_ids)

    @property
    def final(self) -> Completion:
        """The whole answer, after the last item; the first of several."""
        return self._transcript.completions()[0]

    @property
    def finals(self) -> tuple[Completion, ...]:
        """All `n` answers, after the last item."""
        return self._transcript.completions()

    def close(self) -> None:
        """Cancels what has not come yet; the server frees the request within a step."""
        self._call.cancel()


@dataclass(frozen=True, slots=True)
class HealthWatch:
    """A standing question to gRPC's health service: tell me when you serve."""

    call: Any  # starts the stream, of the channel's own transport
    request: Any
    serving: int  # the status that ends the wait


def health_watch(channel: Any) -> HealthWatch | None:
    """None where grpcio-health-checking is not installed."""
    try:
        from grpc_health.v1 import health_pb2
    except ImportError:
        return None
    call = channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return HealthWatch(
        call, health_pb2.HealthCheckRequest(), health_pb2.HealthCheckResponse.SERVING
    )


def has_no_health_service(failure: grpc.RpcError) -> bool:
    call: Any = failure
    return call.code() is grpc.StatusCode.UNIMPLEMENTED


def not_ready(address: str, timeout_s: float) -> Unavailable:
    return Unavailable("UNAVAILABLE", f"{address} did not begin to serve within {timeout_s:g} s")
