"""Whether the sender was punctual: how long after its due instant each request left.

Pure. A sender that falls behind offers another load than the one written down, so a run whose
P99 is above the limit is no result (cells.py says so). Called after every live run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .stamps import Run

# A process gets its turn on a busy core within some tens of ms; bounds on TTFT are far above.
# TTFT counts from the due instant in any case: lag makes a server look worse, never better.
LAG_LIMIT_MS = 50.0


@dataclass(frozen=True, slots=True)
class LagReport:
    p50_ms: float
    p99_ms: float
    max_ms: float


def lag_of(run: Run) -> LagReport:
    if not run.requests:
        return LagReport(0.0, 0.0, 0.0)
    lags_ms = [1000 * (request.sent_s - request.due_s) for request in run.requests]
    p50_ms, p99_ms = np.quantile(lags_ms, (0.5, 0.99))
    return LagReport(float(p50_ms), float(p99_ms), max(lags_ms))
