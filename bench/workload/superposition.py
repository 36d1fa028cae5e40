"""Many senders at once: each adapter has a process of its own, and the server sees their sum.

What makes traffic bursty by adapter and not as a whole; ServeGen (2505.09999) finds that traffic
drawn without clients needs half as many machines again in truth. Called by make.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .arrivals import Extent
from .renewal import Gaps, instants_until
from .streams import Floats, Ints

_MARGIN = 1.25  # drawn past the expected end at first
_LONGER = 1.5


def superpose(
    rates_per_s: Floats, gaps: Sequence[Gaps], rng: np.random.Generator, *, extent: Extent
) -> tuple[Floats, Ints]:
    """Instants, ascending, and whose each one is. In equilibrium from the start.

    A stream of chance for each sender: one that is drawn for longer begins the same, so that
    a short draw is continued and not replaced by a luckier one.
    """
    seeds = rng.integers(2**63, size=len(rates_per_s))
    end_s = extent.span_s or _MARGIN * extent.num_requests / float(rates_per_s.sum())
    while True:
        drawn = [
            instants_until(kind, np.random.default_rng(seed), rate_per_s=rate, end_s=end_s)
            for kind, seed, rate in zip(gaps, seeds, rates_per_s.tolist(), strict=True)
        ]
        if extent.span_s or sum(map(len, drawn)) >= extent.num_requests:
            break
        end_s *= _LONGER
    instants = np.concatenate(drawn)
    senders = np.repeat(np.arange(len(drawn)), [len(part) for part in drawn])
    order = np.argsort(instants, kind="stable")[: extent.num_requests or None]
    return instants[order], senders[order]
