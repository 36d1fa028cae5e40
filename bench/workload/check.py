"""What every workload must be, wherever it comes from: checked when one is written or read.

Knows the records alone. The message names the request's place, the field, the value, the limit.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from .errors import must
from .records import BASE, WorkloadAdapter, WorkloadRequest

_WEIGHT_ERROR = 1e-6  # of the sum: written numbers are rounded


def check_adapters(adapters: tuple[WorkloadAdapter, ...]) -> None:
    names = {adapter.name for adapter in adapters}
    must(len(names) == len(adapters), "adapters: a name stands there twice")
    for adapter in adapters:
        must(adapter.name != BASE, "adapters: an empty name means the base")
        must(adapter.rank > 0, f"adapter {adapter.name}: rank {adapter.rank} must be above 0")
        fits = 0 <= adapter.weight <= 1 + _WEIGHT_ERROR
        must(fits, f"adapter {adapter.name}: weight {adapter.weight} must be from 0 to 1")
    total = math.fsum(adapter.weight for adapter in adapters)
    fits = not adapters or abs(total - 1) < _WEIGHT_ERROR
    must(fits, f"adapters: weights add up to {total}, not to 1")


def check_request(
    request: WorkloadRequest, where: str, *, names: Collection[str], after_s: float
) -> None:
    """`after_s`: the instant of the request before it."""
    in_order = math.isfinite(request.at_s) and request.at_s >= after_s
    must(in_order, f"{where}: at_s {request.at_s} must be finite and not before {after_s}")
    known = request.adapter == BASE or request.adapter in names
    must(known, f"{where}: adapter {request.adapter!r} is none of the workload's")
    must(bool(request.prompt), f"{where}: prompt must have a piece")
    for piece in request.prompt:
        must(piece.seed >= 0, f"{where}: seed {piece.seed} of a piece must not be negative")
        must(piece.num_tokens > 0, f"{where}: a piece of {piece.num_tokens} tokens, not above 0")
    must(request.num_new_tokens > 0, f"{where}: num_new_tokens {request.num_new_tokens}, above 0")
    must(request.session >= -1, f"{where}: session {request.session} must not be below -1")
    fits = request.turn >= 0 and (request.session >= 0 or request.turn == 0)
    must(fits, f"{where}: turn {request.turn} of session {request.session} cannot be")
    for name, bound_s in (("ttft_s", request.ttft_s), ("tpot_s", request.tpot_s)):
        fits = math.isfinite(bound_s) and bound_s >= 0
        must(fits, f"{where}: {name} {bound_s} must be finite and not negative")
