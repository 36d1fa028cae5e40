"""The gate in front of every service: a call that may not pass is answered here.

Owns nothing but the way a refusal travels: as a handler that reads no stream of the caller's
messages before it answers. What may pass is access.py's to say; errors become
statuses in guard.py. Put in by service.py when the server has tokens.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from ..errors import LorryError
from .access import Access
from .guard import Context, end_with

Details = grpc.HandlerCallDetails
Handler = Any  # how a method is served; None: there is no such method


class TokenGate(grpc.aio.ServerInterceptor):
    """Health, reflection and services that come later stand behind it as well."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(
        self,
        continuation: Callable[[Details], Awaitable[Handler]],
        handler_call_details: Details,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler  # no such method: gRPC says UNIMPLEMENTED, with or without a token
        details: Any = handler_call_details
        try:
            self._access.admit(details.method, details.invocation_metadata or ())
        except LorryError as error:
            return _refusal(error, handler)
        return handler


def _refusal(error: LorryError, handler: Handler) -> Handler:
    async def refuse(_requests: Any, context: Context) -> None:
        await end_with(error, context)

    # A stream is not read: an upload would be waited for. A single message is, unparsed: an answer
    # that overtakes it resets the call, and the library may tell its caller of that (INTERNAL).
    shape = grpc.stream_stream_rpc_method_handler
    if not handler.request_streaming:
        shape = grpc.unary_stream_rpc_method_handler
    refusal: Any = shape(refuse)
    return refusal
