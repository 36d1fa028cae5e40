"""When requests come and whose they are: a workload before anybody says anything.

Joins arrivals, popularity and traces into three columns; each from a stream of chance of its own.
Called by make.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrivals import Extent, draw_instants
from .errors import must
from .popularity import draw_adapters, steady_weights
from .senders import PerAdapter, PoolClients, gaps_of
from .settings import FromTrace, WorkloadSettings
from .streams import Floats, Ints, stream
from .superposition import superpose
from .traces import Trace, TraceRow

INSTANT_DECIMALS = 6  # microseconds: finer than anybody sends


@dataclass(frozen=True, slots=True)
class Columns:
    instants_s: Floats  # ascending
    senders: Ints  # an adapter's index, as drawn
    adapters: Ints  # the same, or -1: the base is asked instead
    weights: Floats  # of each adapter, in sum 1
    rows: tuple[TraceRow, ...]  # of the trace whose instants these are; else empty


def draw_columns(settings: WorkloadSettings, trace: Trace | None) -> Columns:
    arrivals, extent = settings.arrivals, _extent(settings)
    chance = stream(settings.seed, "arrivals")
    rows: tuple[TraceRow, ...] = ()
    if isinstance(arrivals, PerAdapter | PoolClients):
        assert extent is not None
        weights = steady_weights(settings.popularity, settings.num_adapters)
        instants_s, senders = superpose(
            settings.rate_per_s * weights,
            gaps_of(arrivals, weights, stream(settings.seed, "clients")),
            chance,
            extent=extent,
        )
    else:
        if isinstance(arrivals, FromTrace):
            assert trace is not None
            instants_s, rows = _stretched(trace, settings.rate_per_s, extent)
        else:
            assert extent is not None
            instants_s = draw_instants(
                arrivals, chance, rate_per_s=settings.rate_per_s, extent=extent
            )
        senders, weights = draw_adapters(
            settings.popularity,
            stream(settings.seed, "popularity"),
            num_adapters=settings.num_adapters,
            instants_s=instants_s,
        )
    to_base = stream(settings.seed, "base").random(len(instants_s)) < settings.base_share
    if rows:
        senders, to_base = _one_a_session(senders, rows), _one_a_session(to_base, rows)
    adapters = np.where(to_base, -1, senders)
    return Columns(np.round(instants_s, INSTANT_DECIMALS), senders, adapters, weights, rows)


def _extent(settings: WorkloadSettings) -> Extent | None:
    """None: all rows of a trace."""
    if settings.num_requests or settings.span_s:
        return Extent(settings.num_requests, settings.span_s)
    return None


def _stretched(
    trace: Trace, rate_per_s: float, extent: Extent | None
) -> tuple[Floats, tuple[TraceRow, ...]]:
    """The first rows, as far as wanted; 0 leaves the rate as it was."""
    wanted = extent.num_requests if extent else 0
    must(
        wanted <= len(trace.rows),
        f"num_requests {wanted}: the trace has {len(trace.rows)} rows that can be served",
    )
    rows = trace.rows[: wanted or None]
    instants_s = np.array([row.at_s for row in rows])
    last_s = float(instants_s[-1])
    if rate_per_s:
        must(last_s > 0, f"rate_per_s {rate_per_s}: all rows of the trace are at one instant")
        instants_s *= len(rows) / last_s / rate_per_s
    if extent and extent.span_s:
        within = int(np.searchsorted(instants_s, extent.span_s))
        return instants_s[:within], rows[:within]
    return instants_s, rows


def _one_a_session(column: NDArray[Any], rows: tuple[TraceRow, ...]) -> NDArray[Any]:
    """All turns of a conversation have what its first one drew."""
    first: dict[str, int] = {}
    places = [first.setdefault(row.session, i) if row.session else i for i, row in enumerate(rows)]
    return column[places]
