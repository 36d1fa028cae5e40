"""One life of an engine, drawn from a seed: scarce memory, comings, goings, failures, deadlines.

The real engine, planner, pool, residency, link, host tier and runner in this process; only the
clock and the pace of the link are the fuzzer's, so that a seed repeats its episode step by step.
Every event is checked as it comes, every answer against PEFT, and at the end the engine must
hold nothing. Called by fuzz.py and by tests/server/test_fuzz.py.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from dataclasses import replace

from ..adapters.errors import AdapterLoadFailed
from ..adapters.host_tier import HostTier
from ..adapters.key import AdapterCard, AdapterKey
from ..server.engine import Engine
from ..server.engine_parts import NEVER_COLD, ColdParts
from ..server.errors import DeadlineExceeded, Overloaded, RequestTooLarge
from ..server.memory.cold import ColdFacts
from ..server.seam import (
    Cancel,
    Finish,
    Forget,
    Prefetch,
    Progress,
    PromptLogprobs,
    Reject,
    Released,
    ResidencyAnswer,
    Stop,
    Submit,
)
from ..server.seam_ends import LocalEnd
from .fuzz_engine import StepClock, WatchedRunner, make_engine, make_runner
from .fuzz_link import PacedLink
from .fuzz_records import Setting, Totals
from .fuzz_wishes import ToldBook, draw_sampling, has_history, is_filtered, without_wishes
from .fuzz_world import BASE, NUM_PLAIN, VOCAB, FuzzWorld, Question

STEP_S = 0.01  # a step takes this long by the episode's clock
MAX_STEPS = 20_000
BASE_TENANTS = ("default", "other")  # the adapters are the first one's
NAMES = ("ant", "bee", "cat", "dog", "elk", "fox")


class Broken(Exception):
    """The engine broke a promise; says which, with the episode's seed."""


def run_episode(world: FuzzWorld, seed: int, *, overlaps: bool = False) -> Totals:
    """Raises Broken, WrongToken or what the engine raised; all of it is a failure of Lorry."""
    episode = Episode(world, seed, overlaps=overlaps)
    try:
        return episode.run()
    finally:
        episode.close()


class Episode:
    """An engine, its front end's part, and the books of what was asked and said."""

    link_class: type[PacedLink] = PacedLink

    def __init__(self, world: FuzzWorld, seed: int, *, overlaps: bool) -> None:
        self._world, self.seed = world, seed
        # Most wishes make a step plain: in most lives of the overlapped loop nobody has them.
        self._is_frugal = overlaps and seed % 4 != 0
        self._rng = random.Random(seed)
        self.setting = setting = Setting.draw(self._rng)
        self._clock, self._end = StepClock(), LocalEnd()
        self._runner = make_runner(world, setting)
        # Fresh pages hold NaN, and freed ones hold it again.
        self._runner.poison(range(setting.num_pages))
        self._watched = WatchedRunner(self._runner, random.Random(seed + 2))
        self._host_tier = HostTier(setting.host_bytes)
        self._link = self._make_link()
        self._engine = self._make_engine(overlaps)
        self._topics = self._rng.sample(range(NUM_PLAIN, len(world.prompts)), 2)
        self._versions = 0
        self._current: dict[str, tuple[str, AdapterCard]] = {}  # name -> content, its card
        self._submits: dict[int, Submit] = {}
        self._questions: dict[int, Question] = {}
        self._tokens: defaultdict[int, list[int]] = defaultdict(list)
        self._ended: dict[int, Finish | Exception] = {}
        self._told = ToldBook()
        self._cancelled: set[int] = set()
        self._stopped: set[int] = set()
        self._forgotten: set[AdapterKey] = set()
        self._released: set[AdapterKey] = set()
        self._patience_s = 0.0
        self._num_steps = 0
        for name in NAMES:
            self._publish(name)

    def _make_link(self) -> PacedLink:
        return self.link_class(
            self._host_tier,
            self._runner.pool_PE,
            random.Random(self.seed + 1),
            max_polls=self.setting.max_polls,
            fail_share=self.setting.fail_share,
        )

    def _make_engine(
        self, overlaps: bool, cold: ColdParts = NEVER_COLD, facts: ColdFacts | None = None
    ) -> Engine:
        return make_engine(
            self._world,
            self.setting,
            end=self._end,
            runner=self._watched,
            link=self._link,
            host_tier=self._host_tier,
            clock=self._clock,
            overlaps=overlaps,
            cold=cold,
            facts=facts,
        )

    def close(self) -> None:
        self._link.close()

    def run(self) -> Totals:
        while self._open() or len(self._submits) < self.setting.num_requests:
            self._act()
            self._step()
        for name in NAMES:
            self._forget(name)
        self._step()
        while self._link.num_underway or not math.isinf(self._patience_s):
            self._step()
        self._expect_idle()
        return self._totals(sum(self._judge(request_id) for request_id in self._questions))

    # What the outside does

    def _act(self) -> None:
        rng, setting = self._rng, self.setting
        coming = int(setting.arrivals) + (rng.random() < setting.arrivals % 1)
        for _ in range(min(coming, setting.num_requests - len(self._submits))):
            self._submit()
        if rng.random() < setting.wishes:
            card, pinned = self._current[rng.choice(NAMES)][1], rng.choice([None, True, False])
            self._end.commands.put(Prefetch(self._num_steps, card, rng.random() < 0.7, pinned))
        if self._submits and rng.random() < setting.unrest:
            request_id = rng.randrange(len(self._submits))
            kind, crowd = rng.choice([(Cancel, self._cancelled), (Stop, self._stopped)])
            self._end.commands.put(kind(request_id))
            if request_id in self._open():
                crowd.add(request_id)
        if rng.random() < setting.unrest:
            name = rng.choice(NAMES)
            self._forget(name)
            self._publish(name)

    def _submit(self) -> None:
        rng, request_id = self._rng, len(self._submits)
        name = rng.choice([BASE, *NAMES, NAMES[0], NAMES[0]])
        content, card = self._current[name] if name else (BASE, None)
        # Those who come together ask alike: else hardly two of a few dozen would share a page.
        anything = rng.randrange(len(self._world.prompts))
        prompt = rng.choice([anything, anything, *self._topics])
        sampling = draw_sampling(rng)
        question = Question(
            content, prompt, without_wishes(sampling) if self._is_frugal else sampling
        )
        self._questions[request_id] = question
        self._submits[request_id] = submit = Submit(
            request_id,
            rng.choice(BASE_TENANTS) if card is None else card.key.tenant,
            card,
            self._world.prompts[prompt],
            max_new_tokens=rng.choice(self.setting.answer_lens),
            sampling=question.sampling,
            stop_ids=frozenset(rng.sample(range(VOCAB), rng.choice([0, 0, 4]))),
            ttft_s=1.0,
            tpot_s=1.0,
            timeout_s=math.inf if rng.random() < 0.9 else rng.choice([0.0, 0.2, 1.0]),
        )
        self._end.commands.put(submit)

    def _publish(self, name: str) -> None:
        """New content under the name, by a version never used before."""
        self._versions += 1
        content = self._rng.choice(sorted(self._world.cards))
        stored = self._world.cards[content]
        key = replace(stored.key, name=name, version=self._versions)
        self._current[name] = (content, replace(stored, key=key))

    def _forget(self, name: str) -> None:
        key = self._current[name][1].key
        self._forgotten.add(key)
        self._end.commands.put(Forget(key))

    # What the engine says

    def _step(self) -> None:
        self._patience_s = self._engine.step()
        self._clock.time_s += STEP_S
        self._num_steps += 1
        while not self._end.reports.empty():
            for event in self._end.reports.get().events:
                self._hear(event)
        late = self._stopped & self._open()
        self._expect(not late, f"{late} go on after their stop")
        stats = self._engine.stats(pages=False)
        known = stats.num_running + stats.num_waiting
        self._expect(
            not (known and math.isinf(self._patience_s)), f"sleeps for ever over {known} requests"
        )
        self._expect(self._num_steps < MAX_STEPS, f"stuck: {stats}, open {sorted(self._open())}")

    def _hear(self, event: object) -> None:
        match event:
            case PromptLogprobs(request_id=request_id):
                self._expect_open(request_id)
                wrong = self._told.hear_prompt(self._submits[request_id], event)
                self._expect(not wrong, wrong)
            case Progress(request_id=request_id, token_ids=token_ids):
                self._expect_open(request_id)
                wrong = self._told.hear(self._submits[request_id], event)
                self._expect(not wrong, wrong)
                self._tokens[request_id] += token_ids
            case Finish(request_id=request_id):
                self._expect_open(request_id)
                self._ended[request_id] = event
                self._check_finish(self._submits[request_id], event)
            case Reject(request_id=request_id, error=error):
                if isinstance(error, Overloaded | RequestTooLarge):
                    # Refused at the door; a cancel in the same batch came after that.
                    self._cancelled.discard(request_id)
                self._expect_open(request_id)
                self._ended[request_id] = error
                self._check_error(self._submits[request_id], error)
            case ResidencyAnswer(adapters=adapters):
                self._expect(len(adapters) == 1, f"said {event} of one adapter")
            case Released(key=key):
                self._expect(key in self._forgotten, f"{key} is released, nobody forgot it")
                self._expect(key not in self._released, f"{key} is released twice")
                self._released.add(key)
            case _:
                self._expect(False, f"said {event} unasked")

    def _expect_open(self, request_id: int) -> None:
        self._expect(request_id not in self._ended, f"{request_id} goes on after its end")
        self._expect(request_id not in self._cancelled, f"{request_id} goes on after its cancel")

    def _check_finish(self, submit: Submit, finish: Finish) -> None:
        tokens = self._tokens[submit.request_id]
        stops = [i for i, token in enumerate(tokens) if token in submit.stop_ids]
        if finish.reason == "stop":
            halted = submit.request_id in self._stopped and not stops
            whole = halted or stops == [len(tokens) - 1]
        else:
            whole = not stops and len(tokens) == submit.max_new_tokens
        counted = (finish.num_prompt_tokens, finish.num_new_tokens)
        whole &= counted == (len(submit.prompt_ids), len(tokens))
        self._expect(whole, f"{finish} after {tokens}, asked {submit}")

    def _check_error(self, submit: Submit, error: Exception) -> None:
        match error:
            case DeadlineExceeded():
                fits = not math.isinf(submit.timeout_s)
            case AdapterLoadFailed():
                fits = submit.adapter is not None and self._link.num_broken > 0
            case Overloaded():
                fits = self.setting.num_requests > self.setting.max_waiting
            case RequestTooLarge():
                fits = self._is_too_large(submit)
            case _:
                fits = False
        self._expect(fits, f"{submit} was answered {error!r}")

    def _is_too_large(self, submit: Submit) -> bool:
        num_tokens, setting = len(submit.prompt_ids) + submit.max_new_tokens, self.setting
        kv_pages = -(-num_tokens // self._world.loaded.geometry.tokens_per_page)
        own, memory = submit.adapter.num_pages if submit.adapter else 0, setting.memory
        share = memory.adapter_share_pages(setting.num_pages)
        beside_a_wall = share is not None and (own > share or kv_pages > setting.num_pages - share)
        most = memory.max_tenant_pages(setting.num_pages) or setting.num_pages
        return own + kv_pages > most or beside_a_wall

    def _open(self) -> set[int]:
        return self._submits.keys() - self._ended.keys() - self._cancelled

    def _expect_idle(self) -> None:
        stats = self._engine.stats(pages=True)
        idle = stats.pages_free + stats.memory.pages_cached
        self._expect(idle == stats.pages_total, f"pages are held: {stats}")
        self._expect(not stats.host_bytes, f"the host tier holds {stats.host_bytes} bytes")
        missing = self._forgotten - self._released
        self._expect(not missing, f"never released: {sorted(missing)}")
        # Whoever wrote a page after giving it back has left a number in it.
        kinds = [run.kind for run in stats.page_runs for _ in range(run.count)]
        free = [page for page, kind in enumerate(kinds) if kind == "free"]
        clean = bool(self._runner.pool_PE[free].isnan().all())
        self._expect(clean, "a page was written after it had been freed")

    def _expect(self, holds: bool, promise: str) -> None:
        if not holds:
            raise Broken(f"episode {self.seed}, step {self._num_steps}: {promise}; {self.setting}")

    # Results

    def _judge(self, request_id: int) -> int:
        question, tokens = self._questions[request_id], self._tokens[request_id]
        told = self._told
        self._world.judge_told(question, tokens, told.answers[request_id], told.prompts[request_id])
        return self._world.judge(question, tokens)

    def _totals(self, ties: int) -> Totals:
        ended, counters = self._ended.values(), self._engine.counters
        memory = self._engine.stats(pages=False).memory
        halted = [i for i in self._stopped if isinstance(self._ended.get(i), Finish)]
        asked = {i: question.sampling for i, question in self._questions.items()}
        lens = {request_id: len(tokens) for request_id, tokens in self._tokens.items()}
        return Totals(
            episodes=1,
            steps=self._num_steps,
            requests=len(self._submits),
            tokens=sum(lens.values()),
            sampled_tokens=sum(n for i, n in lens.items() if asked[i].temperature),
            filtered_tokens=sum(n for i, n in lens.items() if is_filtered(asked[i])),
            told_tokens=sum(len(told) for told in self._told.answers.values()),
            told_places=sum(len(told) for told in self._told.prompts.values()),
            ties=ties,
            stops=sum(isinstance(end, Finish) and end.reason == "stop" for end in ended)
            - len(halted),
            halts=len(halted),
            cancels=len(self._cancelled),
            expired=sum(isinstance(end, DeadlineExceeded) for end in ended),
            refused=sum(isinstance(end, Overloaded | RequestTooLarge) for end in ended),
            load_failures=self._link.num_broken,
            forgets=len(self._forgotten) - len(NAMES),
            chunks=self._watched.num_chunks,
            late=self._watched.num_late,
            preemptions=counters.preemptions,
            historic_preemptions=sum(
                end.timings.num_preemptions
                for i, end in self._ended.items()
                if isinstance(end, Finish) and has_history(asked[i])
            ),
            evictions=counters.adapter_evictions,
            loads=counters.adapter_loads,
            found_tokens=memory.prefix_hit_tokens,
            prefix_evictions=memory.prefix_evictions,
            kept_tokens=memory.preempted_tokens_kept,
            prefetches=memory.prefetches,
            cancelled_loads=memory.loads_cancelled,
        )
