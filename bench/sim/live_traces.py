"""The two traces of the comparison: A, which the profile is fitted on, and B, which judges it.

Owns their settings: they differ in lengths, ranks, popularity and arrivals. A is made to be fitted
on: bursts, so that batches are of all sizes, and four stretches in which what else costs varies by
itself. In a trace of one kind every row has about the same context and an adapter of its own, and
a fit cannot tell rows, contexts and adapters apart. Their rates are multiples of the capacity that
the server shows (live_run.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..workload.arrivals import Gamma, Poisson
from ..workload.fit import Scale
from ..workload.lengths import FromTable, UniformLengths
from ..workload.make import make_workload
from ..workload.popularity import Uniform, Zipf
from ..workload.ranks import RankMix
from ..workload.records import Workload, WorkloadAdapter, WorkloadRequest
from ..workload.settings import WorkloadSettings

_SHORT = UniformLengths(prompt=(4, 65), answer=(16, 145))
_LONG = UniformLengths(prompt=(192, 401), answer=(4, 101))
_MANY = WorkloadSettings(
    name="A: bursts; contexts short or long, adapters few or many",
    seed=11,
    num_requests=1,
    num_adapters=16,
    arrivals=Gamma(cv=2.5),
    popularity=Uniform(),
    lengths=_SHORT,
    ranks=RankMix((8, 64)),
)
_FEW = replace(_MANY, popularity=Zipf(3.0))
FIT = (_MANY, replace(_FEW, lengths=_LONG), _FEW, replace(_MANY, lengths=_LONG))
JUDGED = WorkloadSettings(
    name="B: Poisson, Azure's conversations scaled down, Zipf adapters",
    seed=12,
    num_requests=1,
    num_adapters=24,
    arrivals=Poisson(),
    popularity=Zipf(1.0),
    lengths=FromTable("azure-conv"),
    ranks=RankMix((16, 32)),
    scale=Scale(prompt_factor=0.1, answer_factor=0.2, max_prompt_tokens=400),
)
# Multiples of the capacity measured in a closed loop. A stays below it on average, so that its
# batches are also small ones. B is so far above it that policies differ, and that the queue's
# growth, load - 1, is no small difference of two large numbers.
FIT_LOAD, JUDGED_LOAD = 0.85, 1.7
# Bounds of B. Seconds, not multiples: how fast a queue grows depends on the load alone. At 1.7 of
# the capacity a line of 6 s is there after 9 s, so in order of arrival the first third of B is in
# time: enough requests to count. S-LoRA's own bound, too.
TTFT_S = 6.0
TPOT_X = 1.5  # times what a token takes with a full batch always out


@dataclass(frozen=True, slots=True)
class TraceSize:
    fit_s: float  # length of A
    judged_s: float  # of B
    num_rounds: int  # each sent to each policy


FULL = TraceSize(fit_s=24.0, judged_s=30.0, num_rounds=3)
QUICK = TraceSize(fit_s=12.0, judged_s=10.0, num_rounds=2)


def draw_fit(*, rate_per_s: float, span_s: float) -> Workload:
    """The stretches one after the other, each an equal part of the span or as long as it lasts."""
    parts = [_draw(one, rate_per_s=rate_per_s, span_s=span_s / len(FIT)) for one in FIT]
    requests, start_s = list[WorkloadRequest](), 0.0
    for part in parts:
        requests += [replace(request, at_s=start_s + request.at_s) for request in part.requests]
        start_s += max(part.span_s, span_s / len(parts))
    return replace(
        parts[0],
        recipe=json.dumps([json.loads(part.recipe) for part in parts]),
        adapters=_of_all(parts),
        requests=tuple(requests),
    )


def draw_judged(*, rate_per_s: float, span_s: float) -> Workload:
    return _draw(JUDGED, rate_per_s=rate_per_s, span_s=span_s)


def _draw(settings: WorkloadSettings, *, rate_per_s: float, span_s: float) -> Workload:
    num = max(round(rate_per_s * span_s), 2)
    return make_workload(replace(settings, rate_per_s=rate_per_s, num_requests=num))


def _of_all(parts: Sequence[Workload]) -> tuple[WorkloadAdapter, ...]:
    """The same adapters, by their mean shares: the stretches are as long as each other."""
    shares = np.mean([[one.weight for one in part.adapters] for part in parts], axis=0).tolist()
    return tuple(
        replace(one, weight=share) for one, share in zip(parts[0].adapters, shares, strict=True)
    )
