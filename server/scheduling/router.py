"""Which of several replicas a request goes to.

A router is a pure function of the request and of what is seen of each replica: what would be a
counter elsewhere is the request's number, so the same requests and views give the same places.
Knows no network and no clock. Called by whoever stands in front of the replicas: the simulator
today.

`by_adapter` is rendezvous hashing (Thaler and Ravishankar, 1998) with a bound on the load, as in
consistent hashing with bounded loads (Mirrokni et al., 2018). `by_added_cost` is the routing of
CaraServe / Toppings (2401.11240; USENIX ATC 2025).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np

from .cost_model import CostModel
from .records import BASE_ID
from .replica_view import ReplicaView, RequestFacts
from .step_work import NO_WORK, StepWork, measure_work

# Returns a position in the views, of which there is at least one.
Router = Callable[[RequestFacts, Sequence[ReplicaView]], int]


def round_robin(request: RequestFacts, views: Sequence[ReplicaView]) -> int:
    return request.number % len(views)


def at_random(seed: int) -> Router:
    def route(request: RequestFacts, views: Sequence[ReplicaView]) -> int:
        return _hash(f"{seed} {request.number}") % len(views)

    return route


def least_work(mean_new_tokens: float) -> Router:
    """Fewest tokens to compute: those known, and the answers, whose length is a guess."""

    def route(request: RequestFacts, views: Sequence[ReplicaView]) -> int:
        del request

        def work_tokens(index: int) -> float:
            view = views[index]
            return view.todo_tokens + mean_new_tokens * view.num_requests

        return min(range(len(views)), key=work_tokens)

    return route


def by_adapter(overflow: float = 1.25) -> Router:
    """An adapter's requests meet where its weights are, until that replica is too full.

    Full is `overflow` times the mean number of requests, and one more. Then another that has the
    adapter takes it, else the least loaded, where it will be the next time. The base's requests
    go to the least loaded.
    """

    def route(request: RequestFacts, views: Sequence[ReplicaView]) -> int:
        everyone = range(len(views))
        if request.adapter_id == BASE_ID:
            return _least_loaded(views, everyone)
        limit = overflow * sum(view.num_requests for view in views) / len(views) + 1
        home = max(everyone, key=lambda i: _hash(f"{request.adapter_id} {views[i].replica_id}"))
        if views[home].num_requests < limit:
            return home
        also = [
            i
            for i in everyone
            if request.adapter_id in views[i].resident and views[i].num_requests < limit
        ]
        return _least_loaded(views, also or everyone)

    return route


def by_added_cost(model: CostModel, mean_new_tokens: float) -> Router:
    """Where the request slows everyone down least.

    cost = (Pre(queue + request) - Pre(queue)) / mean_new_tokens
         + (Dec(all + request) - Dec(all)), times the requests there; infinite where
    Dec(all + request) would break the request's bound. When it would everywhere, the least cost
    decides alone: the published system then takes any. It asks those replicas only that hold the
    adapter; here all can load it.
    """

    def route(request: RequestFacts, views: Sequence[ReplicaView]) -> int:
        prompt = _row(request, 0, request.num_prompt_tokens)
        token = _row(request, request.num_prompt_tokens, 1)

        def added_cost(index: int) -> tuple[float, float, float]:
            """With the bound, without it, and without regard to how many pay."""
            view = views[index]
            queue = _joined(view.queue, prompt, already=request.adapter_id in view.queue_adapters)
            decode = _joined(view.decode, token, already=request.adapter_id in view.decode_adapters)
            decode_s = model.step_s(decode)
            prefill_s = model.step_s(queue) - model.step_s(view.queue)
            each_s = prefill_s / mean_new_tokens + decode_s - model.step_s(view.decode)
            all_s = each_s * view.num_requests
            return (math.inf if decode_s > request.tpot_s else all_s), all_s, each_s

        return min(range(len(views)), key=added_cost)

    return route


def _row(request: RequestFacts, start: int, num_tokens: int) -> StepWork:
    """A step with nothing in it but these tokens of the request."""
    return measure_work(
        np.array([start]),
        np.array([num_tokens]),
        np.array([request.adapter_id]),
        np.array([request.adapter_bytes]),
    )


def _joined(work: StepWork, row: StepWork, *, already: bool) -> StepWork:
    """One step of both; `already`: the row's adapter is among those of the work."""
    if work == NO_WORK:
        return row
    if already:
        row = row._replace(adapters=0, adapter_bytes=0)
    return StepWork(*map(sum, zip(work, row, strict=True)))._replace(steps=1)


def _least_loaded(views: Sequence[ReplicaView], among: Sequence[int]) -> int:
    return min(among, key=lambda i: (views[i].num_requests, -views[i].free_pages))


def _hash(text: str) -> int:
    """The same in every process, which Python's own is not."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
