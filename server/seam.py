"""The seam between front end and engine: the messages, and the two ends of the pipe.

One message per step each way: a list of commands down, one report up. Times inside are
durations; instants never cross. The in-process pair (`local_seam`) serves tests and has the
same two faces as the pair over a pipe. Knows no gRPC, no plans, no tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..adapters.key import AdapterCard, AdapterKey
from .errors import LorryError
from .execution.info import EngineInfo
from .scheduling.cost_model import NO_REPORT, CostReport
from .scheduling.records import RowTimings
from .scheduling.sampling import SamplingParams, TokenLogprobs
from .scheduling.starts import StartTold


@dataclass(frozen=True, slots=True)
class Submit:
    request_id: int  # unique for the life of the front end
    tenant: str
    adapter: AdapterCard | None  # None: the base model
    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    sampling: SamplingParams
    stop_ids: frozenset[int]  # a token among them ends the answer and is part of it
    ttft_s: float  # the request's own bounds
    tpot_s: float
    timeout_s: float  # left of the client's deadline; inf: none


@dataclass(frozen=True, slots=True)
class Cancel:
    request_id: int


@dataclass(frozen=True, slots=True)
class Stop:
    """The front end has seen a stop string: end the answer as a stop token would.

    Crosses tokens that were made meanwhile; the answer to it is a `Finish` with reason stop.
    """

    request_id: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Let go of a deleted or replaced adapter when its last user leaves.

    No `Submit` that names this key may come after it: the front end resolves a name and submits
    without waiting in between (rpc/registry.py), so that nobody brings a forgotten key back.
    """

    key: AdapterKey


@dataclass(frozen=True, slots=True)
class AskStats:
    query_id: int
    pages: bool  # also the owner of every page


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Stop once this is read; open requests are answered with Draining."""


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Bring an adapter nearer, although nobody asks for it yet; answered by `ResidencyAnswer`."""

    query_id: int
    card: AdapterCard
    to_pool: bool  # False: into host memory
    # True: from now on it stays in the pool; False: no longer, and nothing moves; None: as it was
    pinned: bool | None = None


@dataclass(frozen=True, slots=True)
class AskResidency:
    query_id: int
    keys: tuple[AdapterKey, ...]


Command = Submit | Cancel | Stop | Forget | AskStats | Prefetch | AskResidency | Shutdown


@dataclass(frozen=True, slots=True)
class StartFailed:
    """First message of an engine that cannot serve."""

    error: LorryError


FirstMessage = EngineInfo | StartFailed


@dataclass(frozen=True, slots=True)
class Progress:
    request_id: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()  # one a token where asked for, else empty


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """A stretch of the prompt, in order and each place once, before the first `Progress`."""

    request_id: int
    first_position: int  # of the first entry's token in the prompt; 1 or more
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    request_id: int
    reason: str  # stop, length
    num_prompt_tokens: int
    num_new_tokens: int
    timings: RowTimings
    num_cached_tokens: int = 0  # of the prompt, found in the prefix cache when it first ran
    start: StartTold | None = None  # None: its adapter was in the pool, or it has none


@dataclass(frozen=True, slots=True)
class Reject:
    """The request ended without a whole answer."""

    request_id: int
    error: Exception  # LorryError or AdapterError


@dataclass(frozen=True, slots=True)
class Released:
    """No page and no host copy of this forgotten adapter is left: its files may go."""

    key: AdapterKey


@dataclass(frozen=True, slots=True)
class ResidentStats:
    key: AdapterKey
    num_pages: int
    loading: bool
    num_users: int  # requests that name it, waiting or running


@dataclass(frozen=True, slots=True)
class AdapterResidency:
    """Where an adapter is, and how its requests have met it since the engine started."""

    key: AdapterKey
    place: str  # disk, host, loading, pool
    pinned: bool
    num_pages: int  # held in the pool
    num_users: int  # requests that name it, waiting or running
    num_requests: int  # since the engine started, as the three below
    num_pool_hits: int  # of those requests: it was in the pool when they came
    num_loads: int  # into the pool
    num_reads: int  # of those loads: the image was read from disk
    load_s: float  # mean time of those loads, from order to resident; nan: none


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """What memory has done since the engine started, and the economy it does it by."""

    eviction: str = "economy"  # economy, lru, split
    params: tuple[tuple[str, float], ...] = ()  # the economy's, by name with their unit
    pages_cached: int = 0  # prefixes nobody holds; not among the kv pages
    prefix_lookup_tokens: int = 0  # of prompts of requests that could have used the cache
    prefix_hit_tokens: int = 0  # of those, not computed again
    prefix_evictions: int = 0  # pages
    preempted_tokens_kept: int = 0  # of preempted requests, that stayed in the cache
    host_capacity_bytes: int = 0
    host_peak_bytes: int = 0
    host_hits: int = 0
    host_misses: int = 0
    prefetches: int = 0  # loads that no request waited for
    loads_cancelled: int = 0
    requests_with_adapter: int = 0
    pool_hits: int = 0  # of those: the adapter was in the pool when the request came
    tenant_pages: tuple[tuple[str, int], ...] = ()  # pages held, by tenant


NO_MEMORY_STATS = MemoryStats()


@dataclass(frozen=True, slots=True)
class ColdStats:
    """Starts of requests whose adapter was not in the pool, since the engine started."""

    wait: int = 0  # requests that had their first token this way, as the next two
    stream: int = 0
    assist: int = 0
    lost_rows: int = 0  # parts of steps that were thrown away and done again
    helpers_up: int = 0  # now
    helper_restarts: int = 0


NO_COLD_STATS = ColdStats()


@dataclass(frozen=True, slots=True)
class PageRunStats:
    kind: str  # free, kv, adapter, cached
    count: int
    owner: str
    tenant: str = ""  # of the owner


@dataclass(frozen=True, slots=True)
class EngineStats:
    num_running: int
    num_waiting: int
    pages_total: int
    pages_free: int
    pages_kv: int
    pages_adapter: int
    steps_total: int
    tokens_prefill_total: int
    tokens_decode_total: int
    requests_finished_total: int
    requests_failed_total: int
    requests_cancelled_total: int
    requests_aborted_total: int  # of those failed: given up by the policy
    preemptions_total: int
    adapter_loads_total: int
    adapter_evictions_total: int
    host_bytes: int
    residents: tuple[ResidentStats, ...]
    page_runs: tuple[PageRunStats, ...]  # empty unless asked for
    cost: CostReport = NO_REPORT  # of steps and loads
    memory: MemoryStats = NO_MEMORY_STATS
    cold: ColdStats = NO_COLD_STATS


@dataclass(frozen=True, slots=True)
class StatsAnswer:
    query_id: int
    stats: EngineStats


@dataclass(frozen=True, slots=True)
class ResidencyAnswer:
    """To `AskResidency`: one for each key, in their order. To `Prefetch`: one."""

    query_id: int
    adapters: tuple[AdapterResidency, ...]


Event = Progress | PromptLogprobs | Finish | Reject | Released | StatsAnswer | ResidencyAnswer


@dataclass(frozen=True, slots=True)
class Report:
    """Everything one step has to say."""

    events: tuple[Event, ...]


class EngineEnd(Protocol):
    """What the engine holds."""

    def receive(self, timeout_s: float) -> list[Command]:
        """All commands that wait; at most `timeout_s` for the first, 0 does not block.

        Raises:
            EOFError: the front end is gone.
        """
        ...

    def send(self, report: Report) -> None: ...

    def wake(self) -> None:
        """From any thread: make a blocked `receive` return."""
        ...
