"""How fast the helpers are: a few errands of known size, timed before the first request.

Owns the sizes, the fit and the least number of rows that is worth a helper of its own. The rows go
the real way, through mailboxes and back, with factors from cells of the slab that hold nothing yet.
Knows no requests. Called at start by whoever makes the helpers; after CaraServe, which profiles the
tokens per core offline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ....adapters.host_tier import HeldImage
from ....adapters.image import ImageSpec, SiteRank, plan_image
from ...clock import Clock
from ...scheduling.starts import HelpCosts
from .handover import Errand
from .helpers import Helpers

# (tokens, rank), those that tell most first.
SIZES = ((1, 8), (256, 64), (32, 64), (256, 8), (32, 8), (1, 64))
NUM_REPEATS = 3  # the median counts
SMALL_RANK = 16  # of the errands whose rows are worth sharing from `fewest_tokens` on


@dataclass(frozen=True, slots=True)
class Timed:
    """One errand, there and back."""

    num_tokens: int
    num_bytes: int  # of the factors
    seconds: float


def fit_costs(timed: Sequence[Timed], *, num_calls: int) -> HelpCosts:
    """Semantics: seconds = call_s + token_byte_s * tokens * bytes, neither negative, by least
    squares of the relative errors.
    """
    pairs = [(1 / one.seconds, one.num_tokens * one.num_bytes / one.seconds) for one in timed]
    ones = sum(a for a, _ in pairs)
    slopes = sum(b for _, b in pairs)
    aa = sum(a * a for a, _ in pairs)
    ab = sum(a * b for a, b in pairs)
    bb = sum(b * b for _, b in pairs)
    determinant = aa * bb - ab * ab
    call_s, token_byte_s = 0.0, slopes / bb if bb else 0.0
    if determinant > 1e-12 * aa * bb:  # else all are of one size: nobody knows what the call took
        call_s = (ones * bb - slopes * ab) / determinant
        token_byte_s = (slopes * aa - ones * ab) / determinant
    if call_s < 0:
        call_s, token_byte_s = 0.0, slopes / bb
    elif token_byte_s < 0:
        call_s, token_byte_s = ones / aa, 0.0
    return HelpCosts(call_s, token_byte_s, num_calls)


def fewest_tokens(costs: HelpCosts, num_bytes: int) -> int:
    """Rows whose products take as long as the call: fewer are not worth a helper of their own."""
    per_token_s = costs.token_byte_s * num_bytes
    return max(1, round(costs.call_s / per_token_s)) if per_token_s > 0 else 1


def calibrate(
    helpers: Helpers,
    spec: ImageSpec,
    groups: Sequence[tuple[int, ...]],
    *,
    clock: Clock,
    max_tokens: int,
    max_rank: int,
    budget_s: float = 0.3,
) -> HelpCosts | None:
    """`groups`: the sites of each hand-over of a step. Sets `helpers.min_tokens`. None: they are
    not up, or the slab is too small for the smallest errand. At start: slot 0 must be nobody's.
    """
    if not groups or not helpers.stats().num_up:
        return None
    group = max(groups, key=lambda sites: _num_bytes(spec, sites, rank=1))
    sizes = [(min(tokens, max_tokens), min(rank, max_rank)) for tokens, rank in SIZES]
    sizes = list(dict.fromkeys(sizes))

    def timed() -> list[Timed]:
        return time_errands(helpers, spec, group, sizes, clock=clock, budget_s=budget_s)

    helpers.min_tokens = max_tokens + 1  # one helper, alone
    found = timed()
    if not found:
        return None
    alone = fit_costs(found, num_calls=len(groups))
    helpers.min_tokens = fewest_tokens(alone, _num_bytes(spec, group, rank=SMALL_RANK))
    if helpers.stats().num_up == 1:
        return alone
    return fit_costs(timed() or found, num_calls=len(groups))


def time_errands(
    helpers: Helpers,
    spec: ImageSpec,
    group: tuple[int, ...],
    sizes: Sequence[tuple[int, int]],
    *,
    clock: Clock,
    budget_s: float,
) -> list[Timed]:
    """Of the sizes that fit the slab, until the budget is spent; those that failed are left out."""
    found: list[Timed] = []
    end_s = clock.now_s() + budget_s
    for num_tokens, rank in sizes:
        if len(found) >= 2 and clock.now_s() >= end_s:
            break
        image = blank_image(spec, group, rank, memory=helpers.crew.cells.memory)
        if image is None:
            continue
        helpers.open(0, image)
        try:
            run = _errand(helpers, spec, group, num_tokens)
            seconds = [_time(run, clock) for _ in range(1 + NUM_REPEATS)][1:]
        finally:
            helpers.close(0)
            helpers.lost()
        if None not in seconds:
            median_s = sorted(one for one in seconds if one is not None)[NUM_REPEATS // 2]
            found.append(Timed(num_tokens, _num_bytes(spec, group, rank=rank), median_s))
    return [one for one in found if one.seconds > 0]


def blank_image(
    spec: ImageSpec, sites: Sequence[int], rank: int, *, memory: torch.Tensor
) -> HeldImage | None:
    """An adapter of whatever the slab's first cells hold; None: there are too few."""
    layout = plan_image(spec, [SiteRank(site, rank, 1.0) for site in sites])
    if layout.num_pages > memory.shape[0]:
        return None
    return HeldImage(layout, memory, tuple(range(layout.num_pages)), is_loose=False)


def _errand(
    helpers: Helpers, spec: ImageSpec, group: tuple[int, ...], num_tokens: int
) -> Callable[[], bool]:
    dtype = helpers.crew.dtype
    hidden_TI = torch.zeros(num_tokens, spec.sites[group[0]].in_width, dtype=dtype)
    outs_TO = [torch.zeros(num_tokens, spec.sites[site].out_width, dtype=dtype) for site in group]

    def run() -> bool:
        ticket = helpers.send(Errand(0, group, 0, num_tokens), hidden_TI)
        return ticket is not None and ticket.add(outs_TO)

    return run


def _time(run: Callable[[], bool], clock: Clock) -> float | None:
    began_s = clock.now_s()
    return clock.now_s() - began_s if run() else None


def _num_bytes(spec: ImageSpec, sites: Sequence[int], *, rank: int) -> int:
    widths = sum(spec.sites[site].in_width + spec.sites[site].out_width for site in sites)
    return widths * rank * (4 if spec.dtype == "float32" else 2)
