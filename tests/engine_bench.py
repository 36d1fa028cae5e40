"""An engine over fakes, with everything around it that a test wants to see."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lorry.adapters.key import AdapterCard
from lorry.server.config import MemoryConfig
from lorry.server.engine import Engine
from lorry.server.engine_parts import NEVER_COLD, ColdParts, EngineParts
from lorry.server.intake import Gate
from lorry.server.memory.cold import ColdFacts
from lorry.server.memory.pool import Pool
from lorry.server.memory_rooms import join_memory
from lorry.server.scheduling.cost_model import NO_MODEL, CostModel
from lorry.server.scheduling.policies import FCFS, Policy
from lorry.server.scheduling.records import StepLimits
from lorry.server.scheduling.sampling import SamplingParams, TokenLogprobs
from lorry.server.scheduling.state import SchedulerState
from lorry.server.seam import (
    AdapterResidency,
    Finish,
    Progress,
    PromptLogprobs,
    Reject,
    Released,
    ResidencyAnswer,
    StatsAnswer,
    Submit,
)
from lorry.server.seam_ends import LocalEnd
from lorry.server.step_meter import StepMeter
from lorry.tests.fakes import FakeClock, FakeHostTier, FakeLink, FakePages, FakeRunner

PROMPT = (5, 6, 7)
MEMORY = MemoryConfig(prefetch=False)  # loads are those that a test asks for
NO_CACHE = MemoryConfig(prefetch=False, prefix_cache=False)


def submit(request_id: int, card: AdapterCard | None = None, **overrides: Any) -> Submit:
    settings: dict[str, Any] = {
        "request_id": request_id,
        "tenant": "default",
        "adapter": card,
        "prompt_ids": PROMPT,
        "max_new_tokens": 4,
        "sampling": SamplingParams(),
        "stop_ids": frozenset[int](),
        "ttft_s": 1.0,
        "tpot_s": 1.0,
        "timeout_s": math.inf,
    }
    return Submit(**{**settings, **overrides})


@dataclass
class Bench:
    """An engine and everything around it that a test wants to see."""

    engine: Engine
    end: LocalEnd
    pool: Pool
    runner: FakeRunner
    link: FakeLink
    clock: FakeClock
    host_tier: FakeHostTier
    tokens: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=lambda: defaultdict(list))
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(
        default_factory=lambda: defaultdict(list)
    )
    ended: dict[int, Finish | Exception] = field(default_factory=dict)
    released: list[str] = field(default_factory=list)
    stats: list[Any] = field(default_factory=list)
    residency: list[AdapterResidency] = field(default_factory=list[AdapterResidency])
    # What each request heard, in its order and without instants, for comparisons of two loops.
    heard: dict[int, list[tuple[Any, ...]]] = field(default_factory=lambda: defaultdict(list))

    @property
    def num_available(self) -> int:
        """Pages that are free, or cached for nobody."""
        return self.pool.num_free + self.pool.stats().num_cached

    def tell(self, *commands: Any) -> None:
        for command in commands:
            self.end.commands.put(command)

    def step(self, times: int = 1) -> float:
        patience_s = 0.0
        for _ in range(times):
            patience_s = self.engine.step()
            self.clock.advance(0.01)
            self._hear()
        return patience_s

    def run_dry(self, most: int = 500) -> None:
        for _ in range(most):
            if math.isinf(self.step()):
                stats = self.engine.stats(pages=False)
                assert stats.num_running == stats.num_waiting == 0, "it sleeps over its work"
                return
        raise AssertionError(f"still busy after {most} steps")

    def _hear(self) -> None:
        while not self.end.reports.empty():
            for event in self.end.reports.get().events:
                match event:
                    case Progress():
                        self._note(event.request_id, *event.token_ids, *event.logprobs)
                        self.tokens[event.request_id] += event.token_ids
                        self.logprobs[event.request_id] += event.logprobs
                    case PromptLogprobs():
                        told = self.prompt_logprobs[event.request_id]
                        assert event.first_position == len(told) + 1, "in order, each once"
                        assert not self.tokens[event.request_id], "before the first token"
                        told += event.logprobs
                        self._note(event.request_id, event.first_position, *event.logprobs)
                    case Finish():
                        said = (event.reason, event.num_prompt_tokens, event.num_new_tokens)
                        self._note(event.request_id, *said)
                        self.ended[event.request_id] = event
                    case Reject():
                        self._note(event.request_id, type(event.error).__name__)
                        self.ended[event.request_id] = event.error
                    case Released():
                        self.released.append(event.key.name)
                    case StatsAnswer():
                        self.stats.append(event.stats)
                    case ResidencyAnswer():
                        self.residency += event.adapters

    def _note(self, request_id: int, *said: Any) -> None:
        assert request_id not in self.ended, f"{request_id} goes on after its end"
        self.heard[request_id].append(said)


def _shares(memory: MemoryConfig, num_pages: int) -> dict[str, Any]:
    return {
        "max_tenant_pages": memory.max_tenant_pages(num_pages),
        "adapter_share_pages": memory.adapter_share_pages(num_pages),
    }


def make_bench(
    *,
    num_pages: int = 32,
    max_running: int = 8,
    max_waiting: int = 100,
    max_step_tokens: int = 64,
    max_prompt_logits: int = 256,
    instant: bool = True,
    overlaps: bool = False,
    runner_kind: type[FakeRunner] = FakeRunner,
    policy: Policy = FCFS,
    meter: StepMeter | None = None,
    memory: MemoryConfig = MEMORY,
    cost: CostModel = NO_MODEL,
    cold: Callable[[FakeRunner], ColdParts] = lambda runner: NEVER_COLD,
    facts: ColdFacts | None = None,
) -> Bench:
    shares = _shares(memory, num_pages)
    end, clock, pages = LocalEnd(), FakeClock(), FakePages()
    runner = runner_kind(pages, tokens_per_page=4)
    link = FakeLink(pages, instant=instant)
    host_tier, pool = FakeHostTier(), Pool(num_pages, on_free=pages.poison)
    rooms = join_memory(
        pool,
        link,
        tokens_per_page=4,
        max_slots=num_pages,
        memory=memory,
        cost=lambda: cost,
        in_host=host_tier.contains,
        cold=facts,
    )
    engine = Engine(
        EngineParts(
            end=end,
            state=SchedulerState(max_running, max_waiting, policy=policy),
            pool=pool,
            prefixes=rooms.prefixes,
            residency=rooms.residency,
            link=link,
            host_tier=host_tier,
            runner=runner,
            limits=StepLimits(
                max_running=max_running,
                max_step_tokens=max_step_tokens,
                max_prompt_logits=max_prompt_logits,
                **shares,
            ),
            gate=Gate(num_pages, 4, 256, 256, **shares),
            clock=clock,
            audits=True,
            overlaps=overlaps,
            meter=meter or StepMeter(),
            model="fake",
            share_prefixes=memory.share_prefixes,
            cold=cold(runner),
        )
    )
    return Bench(engine, end, pool, runner, link, clock, host_tier)
