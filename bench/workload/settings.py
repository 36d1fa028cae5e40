"""What a workload is drawn from: one record, all of whose fields together mean one file.

Knows what fits together and what does not; make.py draws. The record as JSON is the workload's
recipe.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from .arrivals import Extent, Poisson, Process
from .errors import must
from .fit import Scale
from .lengths import FromTable, Lengths, PoolLengths
from .popularity import Popularity, Uniform, check_steady
from .ranks import RankMix
from .senders import PerAdapter, PoolClients, Senders
from .sessions import Sessions
from .traces import TraceFormat


@dataclass(frozen=True, slots=True)
class FromTrace:
    """Instants of a trace file, stretched to the wanted mean rate; its lengths are `OfTrace`."""

    path: str
    format: TraceFormat


@dataclass(frozen=True, slots=True)
class OfTrace:
    """The lengths of the trace's own rows, and what their prompts share."""


@dataclass(frozen=True, slots=True)
class WorkloadSettings:
    name: str
    seed: int = 0
    # How much: a number of requests or a span; neither: all rows of a trace.
    num_requests: int = 0
    span_s: float = 0.0
    rate_per_s: float = 1.0  # mean; 0: that of the trace
    num_adapters: int = 1
    base_share: float = 0.0  # of the requests, to the base; drawn one by one
    arrivals: Process | Senders | FromTrace = field(default_factory=Poisson)
    popularity: Popularity = field(default_factory=Uniform)
    lengths: Lengths | OfTrace = field(default_factory=lambda: FromTable("azure-conv"))
    ranks: RankMix = field(default_factory=lambda: RankMix((16,)))
    sessions: Sessions | None = None  # None: each request stands alone
    scale: Scale = field(default_factory=Scale)

    def __post_init__(self) -> None:
        is_trace = isinstance(self.arrivals, FromTrace)
        must(self.seed >= 0, f"seed {self.seed}: must not be negative")
        must(self.num_adapters >= 0, f"num_adapters {self.num_adapters}: must not be negative")
        must(0 <= self.base_share <= 1, f"base_share {self.base_share}: from 0 to 1")
        must(
            self.num_adapters > 0 or self.base_share == 1,
            f"num_adapters 0: then base_share must be 1, not {self.base_share}",
        )
        if not is_trace or self.num_requests or self.span_s:
            Extent(self.num_requests, self.span_s)
        must(
            self.rate_per_s > 0 or (is_trace and self.rate_per_s == 0),
            f"rate_per_s {self.rate_per_s}: must be above 0",
        )
        if isinstance(self.arrivals, PerAdapter | PoolClients):
            must(self.num_adapters > 0, "num_adapters 0: nobody to send, with a process an adapter")
            check_steady(self.popularity, "and arrivals run per adapter")
        if isinstance(self.lengths, PoolLengths):
            must(self.num_adapters > 0, "num_adapters 0: lengths of a pool belong to its clients")
        must(
            is_trace or not isinstance(self.lengths, OfTrace),
            "lengths OfTrace: only with arrivals FromTrace",
        )
        must(
            not (self.sessions and isinstance(self.lengths, OfTrace)),
            "sessions: the prompts of a trace are whole, lengths OfTrace excludes them",
        )


def as_tree(value: Any) -> Any:
    """Records as objects that say their kind, for the recipe."""
    if is_dataclass(value) and not isinstance(value, type):
        parts = {item.name: as_tree(getattr(value, item.name)) for item in fields(value)}
        return {"kind": type(value).__name__, **parts}
    if isinstance(value, tuple):
        return [as_tree(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value
