"""The plain data that crosses the planner's border: requests and memory in, plans out.

Frozen records only. Knows no columns (state.py), no rules (plan.py) and no page numbers: the
plan speaks in counts. `PoolView` is declared here and filled by server/memory, because the
planner says what it needs to see. Instants are `now_s` of the engine's clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from . import ids
from .prefix_view import NO_PREFIXES, PrefixView
from .sampling import SamplingParams
from .starts import NO_COLD_VIEW, NO_PRICES, ColdView, Start, StartPrices, Way

BASE_ID = ids.BASE_ID
NO_PLACES = range(0)  # of a prompt
# Logits are the largest tensor of a step: 256 places of a vocabulary of 152,000 are 156 MB in fp32.
MAX_PROMPT_LOGITS = 256


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked for, as the scheduler keeps it."""

    request_id: int  # unique for the life of the front end
    tenant: str
    adapter_id: int  # handle given by residency; -1: base model
    adapter_pages: int  # pages its image takes; 0 for the base
    adapter_bytes: int  # of its weights at true ranks; 0 for the base
    prompt_ids: tuple[int, ...]  # at least one
    max_new_tokens: int  # at least one
    sampling: SamplingParams
    stop_ids: frozenset[int]  # a token among them ends the answer and is part of it
    ttft_s: float  # bound on the time to the first token
    tpot_s: float  # bound on the time per further token
    arrival_s: float  # instant of receipt
    deadline_s: float  # instant after which nobody listens; inf: none


@dataclass(frozen=True, slots=True)
class AdapterView:
    """One adapter that holds pages."""

    num_pages: int
    resident: bool  # False: still on its way, neither usable nor evictable
    last_used_s: float  # instant: when it arrived, or when the last request that named it ended
    worth: float = 0.0  # what is idle goes by it, smallest first; the economy's (memory/economy.py)
    pinned: bool = False  # goes only where a request could not get on otherwise
    tenant: str = ""  # whose pages they are


@dataclass(frozen=True, slots=True)
class Wish:
    """An adapter that nobody in the line waits for and that is worth having in the pool."""

    adapter_id: int  # absent
    num_pages: int
    worth: float  # what is idle and worth less may go for it
    tenant: str = ""


def _no_adapters() -> dict[int, AdapterView]:
    return {}


@dataclass(frozen=True, slots=True)
class PoolView:
    """Read-only facts about memory at the start of a step."""

    num_pages: int
    num_free: int
    tokens_per_page: int
    num_free_slots: int  # how many more adapters may hold pages at once
    adapters: Mapping[int, AdapterView] = field(default_factory=_no_adapters)  # by adapter_id
    prefixes: PrefixView = NO_PREFIXES
    wishes: tuple[Wish, ...] = ()  # most wanted first
    cold: ColdView = NO_COLD_VIEW
    prices: StartPrices = NO_PRICES


@dataclass(frozen=True, slots=True)
class StepLimits:
    """What one step may take, from the configuration."""

    max_running: int  # requests that hold pages
    max_step_tokens: int  # prompt and decode tokens together
    max_bypass_s: float = 5.0  # how long newcomers may pass a request that does not fit
    max_loads: int = 8  # adapters on their way at once: the link must not rest during a long step
    # Places of prompts whose logits one step computes, for requests that want them told; beside
    # them there is one place for each running request.
    max_prompt_logits: int = MAX_PROMPT_LOGITS
    # Pages that adapters have to themselves, and KV the rest (the static split of other servers, a
    # baseline); None: one pool for all.
    adapter_share_pages: int | None = None
    max_tenant_pages: int | None = None  # that one tenant may hold; None: all


class PlannedRun(NamedTuple):
    """One request's part of the step; a tuple, so that a step's are one array."""

    row: int
    start: int  # tokens computed before this step
    num_tokens: int  # tokens to compute: [start, start + num_tokens)
    num_new_pages: int  # beyond those it holds, or begins behind


@dataclass(frozen=True, slots=True)
class PlannedLoad:
    """One adapter that begins its way into the pool."""

    adapter_id: int
    num_pages: int


class PlannedKeep(NamedTuple):
    """Pages of a preempted row that become blocks of the prefix cache: nobody in this plan needs
    them. Those that are blocks already stay without it, unless the plan evicts them.
    """

    row: int
    num_pages: int  # full ones, from the beginning, also those that are blocks already


class PlannedStart(NamedTuple):
    """What was chosen for a row whose adapter is not in the pool; told when the row first has a
    token. Chosen anew as long as it waits: the last one counts.
    """

    row: int
    start: Start


class PlannedHit(NamedTuple):
    """A newcomer that begins behind cached pages."""

    row: int
    num_pages: int  # the first of its chain; its run starts where they end


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Counts and names, no page numbers; applied in the order of the fields."""

    now_s: float = 0.0  # instant the plan was made for
    expired: tuple[int, ...] = ()  # rows whose deadline has passed
    aborted: tuple[int, ...] = ()  # waiting rows that the policy gives up
    preemptions: tuple[int, ...] = ()  # rows that give their pages back and are recomputed
    keeps: tuple[PlannedKeep, ...] = ()  # of those, rows whose KV is not thrown away
    # Blocks of the prefix cache, children first: idle, or held by nobody but rows that go by this
    # plan (preempted or expired).
    prefix_evictions: tuple[int, ...] = ()
    evictions: tuple[int, ...] = ()  # adapter_ids
    hits: tuple[PlannedHit, ...] = ()  # each has a run, and holds these pages from now on
    loads: tuple[PlannedLoad, ...] = ()
    runs: tuple[PlannedRun, ...] = ()  # rows of one adapter side by side, the base's first
    # Of adapters that runs use while they are on their way: never WARM, never WAIT.
    ways: Mapping[int, Way] = field(default_factory=dict[int, Way])  # by adapter_id
    starts: tuple[PlannedStart, ...] = ()
    # Instant from which a plan would let a row begin or go on while its adapter is on its way,
    # though nothing else happens; inf: none. An idle engine wakes for it.
    wake_s: float = math.inf
    # Of the waiting rows whose prompt is to be told, this one and all behind it had none of the
    # step's prompt logits to hope for: to be passed by others is no wrong to them.
    first_without_logits: int | None = None
    # Whether the line was turned round: whoever has had no token is then passed by no wrong.
    newest_first: bool = False


class Ending(Enum):
    """Why a row came to its end."""

    STOP = "stop"  # one of its stop ids was sampled
    LENGTH = "length"  # max_new_tokens are there
    EXPIRED = "expired"  # its deadline passed
    ABORTED = "aborted"  # its first token would have come too late
    BROKEN = "broken"  # its logits were not finite


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step meant for one row; rows in the middle of their prompt have none."""

    row: int
    request_id: int
    token: int | None  # sampled in this step
    ending: Ending | None  # None: it goes on. The row stays until the engine drops it.


@dataclass(frozen=True, slots=True)
class RowTimings:
    """Where a request's time went. Durations: the seam carries it to the front end."""

    queue_s: float  # receipt -> first scheduled
    load_s: float  # part of queue_s while the adapter was not resident
    prefill_s: float  # first scheduled -> first token
    decode_s: float  # first token -> last token
    num_preemptions: int
