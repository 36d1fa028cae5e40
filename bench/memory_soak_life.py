"""An episode of the memory soak: random commands to an engine, and a judgement of all it says.

Owns what clients would do: requests that begin alike or go on from an answer, cancels, stops,
deadlines; uploads that replace, deletes, prefetches, pins. Judges every answer token by token, and
that at the end everyone was answered and nothing is left in memory but what the base has cached.
Called by memory_soak.py.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..adapters.key import AdapterCard, AdapterKey
from ..server.errors import InternalError
from ..server.scheduling.sampling import SamplingParams
from ..server.seam import (
    AskResidency,
    Cancel,
    Command,
    Finish,
    Forget,
    Prefetch,
    Progress,
    Reject,
    Released,
    Stop,
    Submit,
)
from .memory_soak_device import BASE, BROKEN, NUM_TOKENS, MemoryBroken, answer
from .memory_soak_world import MAX_MODEL_LEN, MAX_RANK, draw_circumstances, make_world
from .soak_rounds import Sums

TENANTS = ("red", "blue")
MAX_NEW_TOKENS = 40
MAX_OPEN = 30  # requests, mostly: a full line only refuses
NUM_NAMES = 5  # of each tenant's adapters
MAX_DRAIN_STEPS = 5000
TOO_HIGH_RANK = MAX_RANK + 1


@dataclass(slots=True)
class Totals(Sums):
    """What happened; sums over episodes."""

    operations: int = 0  # commands, and loads that ended
    submits: int = 0
    finished: int = 0
    answer_tokens: int = 0  # each compared with what it should have been
    cells_read: int = 0  # places of KV that steps read, each compared
    refused: int = 0  # ended without a whole answer: expired, too large, overloaded, failed load
    cancels: int = 0
    stops: int = 0
    replacements: int = 0
    deletes: int = 0
    prefetches: int = 0
    loads: int = 0
    loads_failed: int = 0
    loads_cancelled: int = 0
    steps: int = 0  # each followed by an audit of pool and prefix cache
    hit_tokens: int = 0
    prefix_evictions: int = 0
    adapter_evictions: int = 0
    preemptions: int = 0
    preempted_tokens_kept: int = 0


@dataclass(slots=True)
class Asked:
    """A request that has not ended."""

    submit: Submit
    tokens: list[int] = field(default_factory=list[int])
    is_stopped: bool = False  # by a command: its answer may be cut


class Episode:
    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.what = draw_circumstances(self._rng)
        self.world = make_world(self.what, self._rng)
        self.totals = Totals(episodes=1)
        self._open: dict[int, Asked] = {}
        self._talks: list[tuple[str, AdapterCard | None, tuple[int, ...]]] = []
        self._cards: dict[tuple[str, str], AdapterCard] = {}
        self._versions = 0
        self._forgotten: set[AdapterKey] = set()
        self._next_id = 0
        # What requests have in common, as a system prompt.
        self._beginnings = [self._draw_ids(24) for _ in range(3)]
        for tenant in TENANTS:
            for number in range(NUM_NAMES):
                self._upload(tenant, f"a{number}")

    def run(self, num_operations: int) -> Totals:
        """Raises: whatever the engine raised, or MemoryBroken."""
        while self._num_operations() < num_operations:
            for _ in range(self._rng.choice([0, 0, 0, 1, 1, 2, 5])):
                self._command()
            self._step()
        self._drain()
        self._let_all_go()
        return self._sum_up()

    def _num_operations(self) -> int:
        link = self.world.link
        return self.totals.operations + link.num_landed + link.num_failed + link.num_cancelled

    # What clients do

    def _command(self) -> None:
        kinds: list[tuple[int, Callable[[], None]]] = [
            (60, self._submit),
            (8, self._cancel),
            (5, self._stop),
            (3, self._replace),
            (1, self._delete),
            (6, self._prefetch),
        ]
        (kind,) = self._rng.choices([kind for _, kind in kinds], [weight for weight, _ in kinds])
        kind()

    def _tell(self, command: Command) -> None:
        self.totals.operations += 1
        self.world.end.commands.put(command)

    def _submit(self) -> None:
        rng = self._rng
        if len(self._open) > MAX_OPEN and rng.random() < 0.9:
            return
        tenant, card, prompt_ids = self._draw_prompt()
        submit = Submit(
            request_id=self._next_id,
            tenant=tenant,
            adapter=card,
            prompt_ids=prompt_ids[: MAX_MODEL_LEN - MAX_NEW_TOKENS],
            max_new_tokens=rng.choice([1, 2, 5, 9, 20, MAX_NEW_TOKENS]),
            sampling=SamplingParams(prompt_logprobs=0 if rng.random() < 0.05 else -1),
            stop_ids=frozenset([3]) if rng.random() < 0.3 else frozenset(),
            ttft_s=rng.choice([0.1, 1.0, 30.0]),
            tpot_s=1.0,
            timeout_s=rng.choice([0.05, 1.0]) if rng.random() < 0.1 else math.inf,
        )
        self._next_id += 1
        self._open[submit.request_id] = Asked(submit)
        self.totals.submits += 1
        self._tell(submit)

    def _draw_prompt(self) -> tuple[str, AdapterCard | None, tuple[int, ...]]:
        """Of anybody; often it begins as others do, or goes on from an answer."""
        rng, kind = self._rng, self._rng.random()
        if kind < 0.35 and self._talks:
            tenant, card, ids = rng.choice(self._talks)
            if card is None or card.key not in self._forgotten:
                return tenant, card, (*ids, *self._draw_ids(rng.choice([0, 1, 3, 8])))
        # A few are popular.
        number = min(int(rng.expovariate(0.7)), NUM_NAMES - 1)
        tenant = rng.choice(TENANTS)
        card = self._cards.get((tenant, f"a{number}")) if rng.random() < 0.8 else None
        beginning = rng.choice(self._beginnings)[: rng.choice([0, 8, 16, 24])]
        return tenant, card, (*beginning, *self._draw_ids(rng.choice([1, 2, 7, 20])))

    def _draw_ids(self, count: int) -> tuple[int, ...]:
        return tuple(self._rng.randrange(NUM_TOKENS) for _ in range(count))

    def _cancel(self) -> None:
        if self._open:
            request_id = self._rng.choice(list(self._open))
            del self._open[request_id]
            self.totals.cancels += 1
            self._tell(Cancel(request_id))

    def _stop(self) -> None:
        if self._open:
            request_id = self._rng.choice(list(self._open))
            self._open[request_id].is_stopped = True
            self.totals.stops += 1
            self._tell(Stop(request_id))

    def _replace(self) -> None:
        """The same name with other content; or again with what it once had."""
        tenant, name = self._draw_name()
        self._forget(tenant, name)
        self._upload(tenant, name)
        self.totals.replacements += 1

    def _delete(self) -> None:
        """And uploaded anew, perhaps the very same."""
        tenant, name = self._draw_name()
        self._forget(tenant, name)
        self.totals.deletes += 1

    def _draw_name(self) -> tuple[str, str]:
        return self._rng.choice(TENANTS), f"a{self._rng.randrange(NUM_NAMES)}"

    def _forget(self, tenant: str, name: str) -> None:
        card = self._cards.pop((tenant, name), None)
        if card is not None:
            self._forgotten.add(card.key)
            self._tell(Forget(card.key))

    def _upload(self, tenant: str, name: str) -> None:
        rng = self._rng
        self._versions += 1
        word = BROKEN if rng.random() < 0.04 else "content"
        content = f"{word}-{name}-{rng.randrange(3)}"
        largest = max(2, self.world.gate.max_adapter_pages // 5)
        self._cards[tenant, name] = AdapterCard(
            key=AdapterKey(tenant, name, self._versions, content),
            size_bytes=1,
            max_rank=4 if rng.random() < 0.97 else TOO_HIGH_RANK,
            num_pages=rng.randint(1, largest),
            weight_bytes=rng.choice([1, 10**6, 10**9]),
            target_modules=("q_proj",),
            created_unix_s=0.0,
            rounding_error=0.0,
            notes=(),
            image_path=Path("nowhere"),
        )

    def _prefetch(self) -> None:
        tenant, name = self._draw_name()
        card = self._cards.get((tenant, name))
        if card is None:
            self._upload(tenant, name)
            return
        pinned = self._rng.choice([None, None, True, False, False])
        to_pool = self._rng.random() < 0.8
        self.totals.prefetches += 1
        self._tell(Prefetch(self._next_id, card, to_pool, pinned))
        self._tell(AskResidency(self._next_id, (card.key,)))

    # What the engine says

    def _step(self) -> float:
        patience_s = self.world.engine.step()
        self.world.clock.time_s += self._rng.choice([0.01, 0.01, 0.1])
        while not self.world.end.reports.empty():
            for event in self.world.end.reports.get().events:
                self._hear(event)
        return patience_s

    def _hear(self, event: object) -> None:
        match event:
            case Progress(request_id=request_id, token_ids=token_ids):
                if request_id in self._open:
                    self._open[request_id].tokens += token_ids
            case Finish(request_id=request_id):
                self._judge(event, self._open.pop(request_id, None))
            case Reject(request_id=request_id, error=error):
                self._open.pop(request_id, None)
                self.totals.refused += 1
                if isinstance(error, InternalError):
                    raise MemoryBroken(f"request {request_id}: {error}")
            case Released(key=key):
                if key not in self._forgotten:
                    raise MemoryBroken(f"{key} is let go of, and nobody has said so")
            case _:
                pass

    def _judge(self, finish: Finish, asked: Asked | None) -> None:
        if asked is None:  # a cancel has crossed the end
            return
        submit, tokens = asked.submit, asked.tokens
        content = submit.adapter.key.content_hash if submit.adapter else BASE
        right = answer(content, submit.prompt_ids, submit.max_new_tokens, submit.stop_ids)
        if tokens != (right[: len(tokens)] if asked.is_stopped else right):
            raise MemoryBroken(f"request {submit.request_id} got {tokens}, not {right}")
        self.totals.finished += 1
        self.totals.answer_tokens += len(tokens)
        self._talks.append((submit.tenant, submit.adapter, (*submit.prompt_ids, *tokens)))
        del self._talks[:-20]
        if finish.num_cached_tokens > len(submit.prompt_ids):
            raise MemoryBroken(f"request {submit.request_id} found more than it asked: {finish}")

    # The end

    def _drain(self) -> None:
        for _ in range(MAX_DRAIN_STEPS):
            if not self._open and math.isinf(self._step()):
                return
            if self._open:
                self._step()
        first = next(iter(self._open.values()), None)
        raise MemoryBroken(f"{len(self._open)} requests do not end: {first} under {self.what}")

    def _let_all_go(self) -> None:
        """All adapters are deleted: nothing is left but cached pages of the base."""
        for tenant, name in list(self._cards):
            self._forget(tenant, name)
        for _ in range(4 * self.what.max_polls):
            self._step()
        world = self.world
        stats = world.pool.stats()
        if stats.num_kv or stats.num_adapter or world.residency.stats():
            raise MemoryBroken(f"pages are left: {stats}, {world.residency.stats()}")
        stats, cached = world.pool.stats(), world.prefixes.stats()
        if not stats.num_cached == cached.num_pages == cached.num_idle:
            raise MemoryBroken(f"pages are left: {stats}, {cached}")
        if world.device.attached or len(world.device.pages.kv) != stats.num_cached:
            raise MemoryBroken(f"the device holds more than the pool says: {stats}")

    def _sum_up(self) -> Totals:
        totals, world = self.totals, self.world
        stats = world.engine.stats(pages=False)
        totals.loads, totals.loads_failed = world.link.num_landed, world.link.num_failed
        totals.loads_cancelled = world.link.num_cancelled
        totals.operations = self._num_operations()
        totals.cells_read = world.device.num_cells_read
        totals.steps = stats.steps_total
        totals.hit_tokens = world.prefixes.stats().hit_tokens
        totals.prefix_evictions = world.prefixes.stats().num_evictions
        totals.adapter_evictions = stats.adapter_evictions_total
        totals.preemptions = stats.preemptions_total
        totals.preempted_tokens_kept = stats.memory.preempted_tokens_kept
        return totals
