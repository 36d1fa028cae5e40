"""The two traces of the comparison: A, which the profile is fitted on, and B, which judges it.

Owns their settings, so that they differ in lengths, ranks, popularity and arrivals, and A covers
what a fit needs: bursts, so that batches are of all sizes, and wide spans of lengths and ranks.
Their rates are multiples of the capacity that the server shows (live_run.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..workload.arrivals import Gamma, Poisson
from ..workload.fit import Scale
from ..workload.lengths import FromTable, UniformLengths
from ..workload.make import make_workload
from ..workload.popularity import Uniform, Zipf
from ..workload.ranks import RankMix
from ..workload.records import Workload
from ..workload.settings import WorkloadSettings

FIT = WorkloadSettings(
    name="A: bursts, uniform lengths and adapters",
    seed=11,
    num_requests=1,
    num_adapters=16,
    arrivals=Gamma(cv=2.5),
    popularity=Uniform(),
    lengths=UniformLengths(prompt=(4, 401), answer=(4, 101)),
    ranks=RankMix((8, 64)),
)
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
FIT_LOAD, JUDGED_LOAD = 0.85, 1.5
# Bounds of B. Seconds, not multiples: how fast a queue grows depends on the load alone. At 1.5 of
# the capacity a line of 6 s is there after 12 s, so in order of arrival the first two fifths of B
# are in time: enough requests to count. S-LoRA's own bound, too.
TTFT_S = 6.0
TPOT_X = 1.5  # times what a token takes with a full batch always out


@dataclass(frozen=True, slots=True)
class TraceSize:
    fit_s: float  # length of A
    judged_s: float  # of B
    num_rounds: int  # each sent to each policy


FULL = TraceSize(fit_s=16.0, judged_s=30.0, num_rounds=3)
QUICK = TraceSize(fit_s=8.0, judged_s=10.0, num_rounds=2)


def draw(settings: WorkloadSettings, *, rate_per_s: float, span_s: float) -> Workload:
    num = max(round(rate_per_s * span_s), 2)
    return make_workload(replace(settings, rate_per_s=rate_per_s, num_requests=num))
