"""The rooms of one simulated engine: the server's own, but for clock, end, runner and link.

Turns a hardware profile into the server's records, and a workload's requests into commands. No
copy of any rule: planner, table, pool, residency and gate are those that serve.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...adapters.key import AdapterCard, AdapterKey
from ...server.config import MemoryConfig
from ...server.engine_parts import EngineParts
from ...server.engine_process import MAX_SLOTS
from ...server.intake import Gate
from ...server.memory.pool import Pool
from ...server.memory.prefix_cache import PrefixCache
from ...server.memory.residency import Residency
from ...server.memory_rooms import join_memory
from ...server.scheduling.cost_model import CostModel
from ...server.scheduling.policies import Policy
from ...server.scheduling.records import BASE_ID, StepLimits
from ...server.scheduling.replica_view import RequestFacts
from ...server.scheduling.sampling import SamplingParams
from ...server.scheduling.state import SchedulerState
from ...server.seam import Submit
from ..workload.records import BASE, Piece, Workload, WorkloadAdapter
from ..workload.tokens import prompt_ids
from .clock import SimClock
from .end import SimEnd
from .host import SimHostTier
from .link import SimLink
from .profile import Profile, step_names
from .runner import TOKEN, SimRunner
from .stamping import StampBook

TENANT = "default"
VOCAB_SIZE = 32_000  # of the tokens of prompts: as Llama's
_GREEDY = SamplingParams()


@dataclass(frozen=True, slots=True)
class SimParts:
    """What the simulator itself goes on with; the engine has all of `engine`."""

    memory: MemoryConfig
    engine: EngineParts
    state: SchedulerState
    pool: Pool
    prefixes: PrefixCache
    residency: Residency
    clock: SimClock
    end: SimEnd
    link: SimLink
    host_tier: SimHostTier
    runner: SimRunner
    cost: CostModel


def cost_model(profile: Profile) -> CostModel:
    return CostModel(
        step_coefs_s=tuple(profile.value(name) for name in step_names()),
        load_s=profile.value("load_s"),
        load_s_per_byte=1.0 / profile.value("load_bytes_per_s"),
    )


def adapter_card(adapter: WorkloadAdapter, profile: Profile) -> AdapterCard:
    """As the store would describe an upload of this rank."""
    weight_bytes = adapter.rank * profile.whole("adapter_bytes_per_rank")
    image_bytes = weight_bytes * profile.value("image_stretch")
    return AdapterCard(
        key=AdapterKey(TENANT, adapter.name, 1, f"simulated-{adapter.name}"),
        size_bytes=weight_bytes,
        max_rank=adapter.rank,
        num_pages=-int(-image_bytes // profile.whole("page_bytes")),
        weight_bytes=weight_bytes,
        target_modules=(),
        created_unix_s=0.0,
        rounding_error=0.0,
        notes=(),
        image_path=Path(),
    )


class Door:
    """The front end: when a request reaches an engine, what it is told then, and what a router
    is told of it. Adapters have a number here, their place in the workload: a replica has its own.
    """

    def __init__(
        self, workload: Workload, profile: Profile, *, timeout_s: float, real_prompts: bool
    ) -> None:
        """`real_prompts` False: nobody will ask which tokens a prompt is made of."""
        self._requests, self._timeout_s = workload.requests, timeout_s
        self._real_prompts = real_prompts
        self._cards = {item.name: adapter_card(item, profile) for item in workload.adapters}
        self._numbers = {item.name: i for i, item in enumerate(workload.adapters)}
        self._request_s = profile.value("request_s")
        self._request_s_per_token = profile.value("request_s_per_token")
        self._prompts: dict[int, tuple[int, ...]] = {}  # by length
        self._ttft_s, self._tpot_s = profile.value("ttft_s"), profile.value("tpot_s")

    def due_s(self, index: int) -> float:
        return self._requests[index].at_s

    def number_of(self, adapter: str) -> int:
        return BASE_ID if adapter == BASE else self._numbers[adapter]

    def facts(self, index: int) -> RequestFacts:
        request = self._requests[index]
        base = request.adapter == BASE
        return RequestFacts(
            number=index,
            adapter_id=self.number_of(request.adapter),
            adapter_bytes=0 if base else self._cards[request.adapter].weight_bytes,
            num_prompt_tokens=request.num_prompt_tokens,
            tpot_s=request.tpot_s or self._tpot_s,
        )

    def arrival_s(self, index: int) -> float:
        request = self._requests[index]
        way_s = self._request_s + self._request_s_per_token * request.num_prompt_tokens
        return request.at_s + way_s

    def submit(self, index: int, arrival_s: float) -> Submit:
        request = self._requests[index]
        return Submit(
            request_id=index,
            tenant=TENANT,
            adapter=None if request.adapter == BASE else self._cards[request.adapter],
            prompt_ids=self._prompt(request.prompt),
            max_new_tokens=request.num_new_tokens,
            sampling=_GREEDY,
            stop_ids=frozenset(),
            ttft_s=request.ttft_s or self._ttft_s,
            tpot_s=request.tpot_s or self._tpot_s,
            timeout_s=request.at_s + self._timeout_s - arrival_s,
        )

    def _prompt(self, pieces: tuple[Piece, ...]) -> tuple[int, ...]:
        if self._real_prompts:
            return tuple(prompt_ids(pieces, vocab_size=VOCAB_SIZE))
        # Which tokens they are makes no difference, so those of one length may be the same.
        num_tokens = sum(piece.num_tokens for piece in pieces)
        return self._prompts.setdefault(num_tokens, (TOKEN,) * num_tokens)


def build_parts(
    profile: Profile, policy: Policy, door: Door, book: StampBook, *, memory: MemoryConfig
) -> SimParts:
    clock, cost = SimClock(), cost_model(profile)
    num_pages, max_running = profile.whole("num_pages"), profile.whole("max_running")
    max_slots = min(num_pages, MAX_SLOTS)
    state = SchedulerState(max_running, profile.whole("max_waiting"), policy=policy)
    host_tier = SimHostTier(profile.whole("host_bytes"))
    link = SimLink(
        clock,
        host_tier,
        cost,
        page_bytes=profile.whole("page_bytes"),
        disk_bytes_per_s=profile.value("disk_bytes_per_s"),
    )
    pool = Pool(num_pages)
    rooms = join_memory(
        pool,
        link,
        tokens_per_page=profile.whole("tokens_per_page"),
        max_slots=max_slots,
        memory=memory,
        cost=lambda: cost,
        in_host=host_tier.contains,
    )
    runner = SimRunner(clock, cost, max_slots=max_slots)
    end = SimEnd(clock, link, book, submit_of=door.submit)
    engine = EngineParts(
        end=end,
        state=state,
        pool=pool,
        prefixes=rooms.prefixes,
        residency=rooms.residency,
        link=link,
        host_tier=host_tier,
        runner=runner,
        limits=_step_limits(profile, memory),
        gate=_gate(profile),
        clock=clock,
        overlaps=bool(profile.whole("overlaps")),
    )
    return SimParts(
        memory=memory,
        engine=engine,
        state=state,
        pool=pool,
        prefixes=rooms.prefixes,
        residency=rooms.residency,
        clock=clock,
        end=end,
        link=link,
        host_tier=host_tier,
        runner=runner,
        cost=cost,
    )


def _step_limits(profile: Profile, memory: MemoryConfig) -> StepLimits:
    num_pages = profile.whole("num_pages")
    return StepLimits(
        max_running=profile.whole("max_running"),
        max_step_tokens=profile.whole("max_step_tokens"),
        max_bypass_s=profile.value("max_bypass_s"),
        max_loads=profile.whole("max_loads"),
        adapter_share_pages=memory.adapter_share_pages(num_pages),
        max_tenant_pages=memory.max_tenant_pages(num_pages),
    )


def _gate(profile: Profile) -> Gate:
    return Gate(
        num_pages=profile.whole("num_pages"),
        tokens_per_page=profile.whole("tokens_per_page"),
        max_model_len=profile.whole("max_model_len"),
        max_rank=profile.whole("max_rank"),
    )
