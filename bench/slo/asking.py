"""One request asked now, and how its reply is had: for what is measured besides the open loop.

The unloaded figures and the capacity are asked this way; the cells of a run are sent by
client.py. Knows no order of requests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from ...proto.async_client import AsyncClient
from ..load import Ask, Reply, send_one
from ..workload.records import Piece, WorkloadRequest

TIMEOUT_S = 120.0

AskOne = Callable[[WorkloadRequest], Awaitable[Reply]]
PromptIds = Callable[[tuple[Piece, ...]], Sequence[int]]


def asker(client: AsyncClient, prompt_ids: PromptIds) -> AskOne:
    return partial(_ask, client, prompt_ids)


async def _ask(client: AsyncClient, prompt_ids: PromptIds, request: WorkloadRequest) -> Reply:
    """Greedily, its answer at full length, and with a bound that no policy gives anybody up for:
    what is measured here must not depend on the policy.
    """
    ids = prompt_ids(request.prompt)
    wish = Ask(ids, request.adapter, request.num_new_tokens, ignore_eos=True, ttft_s=TIMEOUT_S)
    return await send_one(client, wish, TIMEOUT_S)
