"""The edge of every handler: whatever goes wrong inside leaves as a status.

Owns the one place where an error nobody named is caught: it is logged with its trace and
answered INTERNAL. Knows no service; every handler is decorated with `answering`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, ParamSpec, TypeVar, cast

import grpc.aio

from ...adapters.errors import AdapterError
from ..errors import InternalError, LorryError
from .status import Answer, answer_for

logger = logging.getLogger("lorry.rpc")

Context = grpc.aio.ServicerContext[Any, Any]

Asked = ParamSpec("Asked")  # (service, request, context)
Reply = TypeVar("Reply")


def answering(handler: Callable[Asked, Awaitable[Reply]]) -> Callable[Asked, Awaitable[Reply]]:
    """The handler, with its errors turned into statuses."""

    @functools.wraps(handler)
    async def guarded(*args: Asked.args, **kwargs: Asked.kwargs) -> Reply:
        try:
            return await handler(*args, **kwargs)
        except (LorryError, AdapterError) as error:
            await end_with(error, cast(Context, args[-1]))
        except Exception as error:
            context = cast(Context, args[-1])
            if _has_left(error, context):
                raise asyncio.CancelledError from error  # as if the write had not been tried
            # A bug of ours: its request ends, the server does not.
            logger.exception("a handler failed")
            await end_with(error, context)

    return guarded


def _has_left(error: Exception, context: Context) -> bool:
    """A caller may leave while it is written to: the library then says that the batch failed."""
    return isinstance(error, grpc.aio.BaseError) and (context.cancelled() or context.done())


async def end_with(error: Exception, context: Context) -> NoReturn:
    """The call ends with this error's status."""
    answer = _answer(error)
    await context.abort(answer.code, answer.message, answer.trailers)


def _answer(error: Exception) -> Answer:
    try:
        return answer_for(error)
    except Exception:  # an error that cannot be told must still end the call
        logger.exception("an error could not be told: %r", error)
        return answer_for(InternalError("internal error; the server's log has the rest"))
