"""What S-LoRA's authors published about a 13B model on one A100-80GB: facts, as plain data.

Source: github.com/S-LoRA/S-LoRA, benchmarks/paper/synthetic/{slora,abort}/*_a100-80_S4_*.jsonl (the
records of their runs, made with 65,000 tokens of memory), benchmarks/exp_suite.py (setting S4),
benchmarks/trace.py (how a trace is drawn) and slora/utils/metric.py (the bound). Owns the rows and
the same traces drawn again. Knows no simulator; slora_profile.py and slora.py read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from ..workload.records import Piece, Workload, WorkloadAdapter, WorkloadRequest

NUM_ADAPTERS = 400
RANKS = (64, 32, 16)  # by index, in turn; on the projections q, k, v and o
SPAN_S = 300.0  # requests are rate x span
LENS_TOKENS = (8, 512)  # of prompts and of answers, uniform, the end not drawn
MEMORY_TOKENS = 65_000  # of keys and values and adapters together
BOUND_S = 6.0  # a first token before it is an attainment; an aborted request is none
SEED = 42


class Served(Enum):
    """How; the values are the names of our policies."""

    FCFS = "fcfs"  # their default: in the order of arrival
    EARLY_ABORT = "slora"


@dataclass(frozen=True, slots=True)
class Published:
    """One run of theirs."""

    served: Served
    rate_per_s: float
    cv: float  # of the gaps between requests
    attainment: float
    throughput_per_s: float  # answered requests, over the time until the last answer
    mean_first_s: float  # of answered requests
    mean_latency_s: float  # of answered requests, until the last token
    num_aborted: int = 0


FCFS, EARLY_ABORT = Served.FCFS, Served.EARLY_ABORT
# By rate, of *_req_rate_*.
BY_RATE = (
    Published(FCFS, 1, 1, 1.0, 0.9423, 0.3644, 15.3200),
    Published(FCFS, 2, 1, 1.0, 1.8382, 0.4987, 17.1794),
    Published(FCFS, 4, 1, 1.0, 3.5386, 0.7402, 23.0316),
    Published(FCFS, 6, 1, 0.1022, 4.0122, 60.0233, 86.2556),
    Published(FCFS, 8, 1, 0.0592, 4.0165, 136.5247, 163.2376),
)
# By cv at 6 requests/s, of *_cv_*. The first pair is the one that is quoted: 0.10 and 0.72.
BY_CV = (
    Published(FCFS, 6, 1, 0.1011, 3.9477, 62.5857, 89.1655),
    Published(EARLY_ABORT, 6, 1, 0.7189, 3.9590, 1.4504, 27.8806, num_aborted=506),
    Published(FCFS, 6, 2, 0.1006, 3.9602, 57.5348, 84.0181),
    Published(EARLY_ABORT, 6, 2, 0.7194, 3.9669, 1.5982, 27.8006, num_aborted=497),
    Published(FCFS, 6, 4, 0.0994, 3.9737, 57.4669, 83.8978),
    Published(EARLY_ABORT, 6, 4, 0.6850, 3.8969, 1.9002, 27.4924, num_aborted=555),
    Published(FCFS, 6, 6, 0.2794, 3.8367, 34.1535, 59.7176),
    Published(EARLY_ABORT, 6, 6, 0.6600, 3.5764, 2.5572, 25.9517, num_aborted=520),
    Published(FCFS, 6, 8, 0.1361, 4.0268, 42.3271, 68.5534),
    Published(EARLY_ABORT, 6, 8, 0.5622, 3.7290, 3.7135, 27.8663, num_aborted=584),
)
# Of those, what sets the one coefficient that arithmetic does not give: no request missed its bound
# in them. The overload is not among them.
NOT_OVERLOADED = BY_RATE[:3]


def draw_workload(run: Published, *, span_s: float = SPAN_S) -> Workload:
    """The very requests of that run: same generator, same seed, same order of drawing.

    A shorter span draws other requests of the same distributions: only the whole one is theirs.
    """
    # The old generator on purpose: its stream is frozen, and theirs was drawn with it.
    draw = np.random.RandomState(SEED)
    num = int(run.rate_per_s * span_s)
    adapters = (draw.power(1.0, num) * NUM_ADAPTERS).astype(int)
    prompts = draw.randint(*LENS_TOKENS, num)
    answers = draw.randint(*LENS_TOKENS, num)
    scale_s = run.cv**2 / run.rate_per_s
    at_s = draw.gamma(1 / run.cv**2, scale_s, num).cumsum()
    return Workload(
        name=f"s-lora-s4 rate {run.rate_per_s:g} cv {run.cv:g}",
        seed=SEED,
        recipe="",
        adapters=tuple(
            WorkloadAdapter(adapter_name(idx), RANKS[idx % len(RANKS)], 1 / NUM_ADAPTERS)
            for idx in range(NUM_ADAPTERS)
        ),
        requests=tuple(
            WorkloadRequest(
                at_s=float(at_s[i]),
                adapter=adapter_name(int(adapters[i])),
                prompt=(Piece(seed=i, num_tokens=int(prompts[i])),),
                num_new_tokens=int(answers[i]),
                ttft_s=BOUND_S,
            )
            for i in range(num)
        ),
    )


def adapter_name(idx: int) -> str:
    return f"s4-{idx:03d}"
