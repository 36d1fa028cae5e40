"""Cold starts of the real runner over the real link: PEFT's tokens by each way, and what happens
when a helper, the disk, the client or the adapter's owner leaves in the middle of one.

Every engine audits its books at every step, freed pages hold NaN, and at the end of each test no
page, no image and no hand-over is left (`ColdLive.close`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import pytest

from lorry.adapters.errors import AdapterLoadFailed
from lorry.adapters.key import AdapterCard
from lorry.server.config import (
    ColdConfig,
    MemoryConfig,
    ModelConfig,
    SchedulingConfig,
    ServerConfig,
)
from lorry.server.engine_process import build_engine
from lorry.server.execution.cold_start.helpers import Helpers
from lorry.server.execution.runner import Runner
from lorry.server.execution.start import load_runner
from lorry.server.scheduling.starts import Way
from lorry.server.seam import Cancel, Finish, Forget, Prefetch, Shutdown, Submit
from lorry.server.seam_ends import LocalEnd
from lorry.tests.builders import (
    AdapterSpec,
    generate,
    load_peft,
    load_reference,
    make_adapter,
    make_llama,
)
from lorry.tests.cold_live_builders import ColdLive, make_live
from lorry.tests.engine_builders import InProcess, make_submit, open_store, register

pytestmark = pytest.mark.slow

RANKS = {"low": 3, "high": 20}
NEW = 8  # tokens of an answer
PROMPTS = {"base": range(3, 20), "low": range(40, 71), "high": range(90, 113)}
COLD = pytest.mark.parametrize("way", [Way.STREAM, Way.ASSIST])


@dataclass(frozen=True)
class World:
    config: ServerConfig
    runner: Runner
    cards: dict[str, AdapterCard]
    answers: dict[str, list[int]]  # of PEFT

    def submit(self, request_id: int, name: str, **overrides: object) -> Submit:
        """Ends by its length alone."""
        settings: dict[str, object] = {"max_new_tokens": NEW, "stop_ids": frozenset[int]()}
        card = self.cards.get(name)
        return make_submit(request_id, list(PROMPTS[name]), card, **(settings | overrides))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("cold")
    model_dir = make_llama(root / "model", num_hidden_layers=3)
    config = ServerConfig(
        ModelConfig(str(model_dir), dtype="float32", num_threads=1),
        MemoryConfig(pool_bytes=2 << 20, max_rank=32),
        SchedulingConfig(max_running=6, max_step_tokens=32),
    )
    runner, reference = load_runner(config), load_reference(model_dir)
    cards: dict[str, AdapterCard] = {}
    answers = {"base": generate(reference, list(PROMPTS["base"]), NEW)}
    with closing(open_store(root / "store", model_dir, runner)) as store:
        for name, rank in RANKS.items():
            folder = make_adapter(reference, root / "peft", AdapterSpec(name, rank=rank, seed=rank))
            files = ("adapter_config.json", "adapter_model.safetensors")
            cards[name] = register(store, name, *((folder / file).read_bytes() for file in files))
            answers[name] = generate(load_peft(model_dir, folder), list(PROMPTS[name]), NEW)
        yield World(config, runner, cards, answers)


@pytest.fixture
def live(world: World) -> Iterator[ColdLive]:
    made = make_live(world.runner, Way.STREAM)
    yield made
    made.close()
    for slot in range(len(world.cards) + 1):
        world.runner.detach(slot)


def way_of(live: ColdLive, request_id: int) -> Way:
    finish = live.ended[request_id]
    assert isinstance(finish, Finish), finish
    assert finish.start is not None, "it was not cold"
    return finish.start.way


@COLD
@pytest.mark.parametrize("at", ["host", "disk"])
def test_every_way_gives_the_tokens_of_peft(world: World, live: ColdLive, way: Way, at: str):
    """The worst there is: wrong tokens, without an error."""
    live.ways.clear()
    live.ways.add(way)
    if at == "host":
        live.in_host(*world.cards.values())
    names = ("low", "base", "high", "low")
    live.tell(*(world.submit(i, name) for i, name in enumerate(names)))
    if at == "host" and way is Way.ASSIST:
        live.run_until(lambda: bool(live.tokens[0]))
        assert live.engine.stats(pages=False).adapter_loads_total == 0, "it has waited"
    live.run_dry(0, 1, 2, 3)
    for request_id, name in enumerate(names):
        assert live.tokens[request_id] == world.answers[name], (request_id, name)
    if at == "host":
        assert way_of(live, 0) is way, "the other's load may be over first"
        assert bool(live.handover.sent) == (way is Way.ASSIST)
    assert live.engine.stats(pages=False).cold.lost_rows == 0


def test_a_lost_answer_costs_its_own_row_a_step(world: World, live: ColdLive):
    """Helpers that hang or were killed in the middle of an errand, and what they take with them."""
    live.ways.clear()
    live.ways.add(Way.ASSIST)
    live.in_host(*world.cards.values())
    lost_slot: list[int] = []

    def fails(errand: object) -> bool:
        slot, sites = errand.slot, errand.sites  # pyright: ignore[reportAttributeAccessIssue]
        if not lost_slot and min(sites) > 8:  # in a later layer
            lost_slot.append(slot)
        return slot in lost_slot

    live.handover.fails = fails
    names = ("low", "base", "high")
    live.tell(*(world.submit(i, name) for i, name in enumerate(names)))
    live.run_until(lambda: bool(lost_slot))
    live.step()
    live.run_dry(0, 1, 2)
    for request_id, name in enumerate(names):
        assert live.tokens[request_id] == world.answers[name], name
    stats = live.engine.stats(pages=False).cold
    assert stats.lost_rows == 1, "one row was lost, and helpers were not asked for it again"


def test_without_a_helper_an_assisted_row_waits(world: World, live: ColdLive):
    """The last helper has died after the plan was made: once, and is not asked for it again."""
    live.ways.clear()
    live.ways.add(Way.ASSIST)
    live.in_host(*world.cards.values())
    live.handover.refuses = True
    live.tell(world.submit(0, "low"), world.submit(1, "base"))
    live.step()  # nothing crosses meanwhile
    live.run_dry(0, 1)
    assert live.tokens[0] == world.answers["low"] and live.tokens[1] == world.answers["base"]
    assert live.engine.stats(pages=False).cold.lost_rows == 1


def test_a_disk_that_fails_in_a_later_layer_ends_its_request_clearly(world: World, live: ColdLive):
    """Half an adapter in the pool, half a prompt computed with it: and then the answer goes on."""
    live.disk.gated = live.disk.breaks = True
    live.time.flow()
    live.board.on_wait = live.disk.gate.set
    free_before = live.pool.num_free
    live.tell(world.submit(0, "high"), world.submit(1, "base"))
    live.run_dry(0, 1)
    error = live.ended[0]
    assert isinstance(error, AdapterLoadFailed) and "high" in str(error)
    assert live.tokens[0] == [] and live.tokens[1] == world.answers["base"]
    assert live.engine.stats(pages=False).cold.lost_rows == 1, "it never began"
    assert live.pool.num_free + live.pool.stats().num_cached == free_before
    assert live.host_tier.stats().bytes == 0, "what was read of it stays"
    live.disk.gated = False
    live.tell(world.submit(2, "high"))
    live.run_dry(2)
    assert live.tokens[2] == world.answers["high"], "the file is whole again"


@COLD
@pytest.mark.parametrize("gone", ["cancelled", "deleted", "replaced"])
def test_whoever_goes_in_the_middle_of_a_start(world: World, live: ColdLive, way: Way, gone: str):
    """Pages of an adapter on its way given to others while it still lands in them; or an answer by
    the version that was uploaded meanwhile."""
    live.ways.clear()
    live.ways.add(way)
    live.in_host(*world.cards.values())
    card = world.cards["low"]
    newer = replace(world.cards["high"], key=replace(card.key, version=2, content_hash="other"))
    commands = {
        "cancelled": [Cancel(0)],
        "deleted": [Forget(card.key)],
        "replaced": [
            Forget(card.key),
            replace(world.submit(2, "high"), adapter=newer),
        ],
    }[gone]
    hears = list[str]()

    def in_the_middle() -> None:
        hears.append(gone)
        live.tell(*(commands if len(hears) == 1 else ()))
        live.time.flow()

    live.tell(world.submit(0, "low", tpot_s=100.0), world.submit(1, "base"))
    if way is Way.ASSIST:
        live.run_until(lambda: bool(live.tokens[0]))
        live.tell(*commands)
        live.step()
    else:
        live.board.on_wait = in_the_middle  # of a step, which waits for a layer
        live.run_until(lambda: bool(hears))
    live.run_dry(*{"cancelled": (1,), "deleted": (0, 1), "replaced": (0, 1, 2)}[gone])
    assert live.tokens[1] == world.answers["base"]
    if gone != "cancelled":
        assert live.tokens[0] == world.answers["low"]
        live.run_until(lambda: live.released == ["low"])
    if gone == "replaced":
        assert live.tokens[2] == world.answers["high"]


def test_a_request_that_joins_a_load_that_was_given_up_is_answered(world: World, live: ColdLive):
    """It began on a load that nobody needed any more, and waited for ever for an adapter that was
    never ordered again."""
    live.ways.clear()
    live.ways.add(Way.ASSIST)
    live.in_host(*world.cards.values())
    live.tell(world.submit(0, "low", tpot_s=100.0))
    live.run_until(lambda: bool(live.tokens[0]))
    live.tell(Cancel(0), world.submit(1, "low"))
    live.run_dry(1)
    assert live.tokens[1] == world.answers["low"]


@pytest.fixture
def helped(world: World) -> Iterator[InProcess]:
    """As a server wires it: one helper, on a link that takes longer than a helped prompt."""
    memory = replace(world.config.memory, link_bytes_per_s=2e5, prefetch=False)
    config = replace(world.config, memory=memory, cold=ColdConfig("assist", 1), debug=True)
    end = LocalEnd()
    made = InProcess(build_engine(end, world.runner, config.checked()), end, world.runner)
    yield made
    made.tell([Shutdown()])
    made.engine.run()
    for slot in range(len(world.cards)):
        world.runner.detach(slot)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="no core beside the device's")
def test_a_helper_is_a_process_that_may_be_killed(world: World, helped: InProcess) -> None:
    """What is wired by hand above, wired by the server: helpers that never help, answers laid out
    for another site, or an engine that hangs on a dead process, or ends with it.
    """
    engine, helpers = helped.engine, helped.engine.cold.helpers
    assert isinstance(helpers, Helpers) and "1 helper" in engine.cold.why
    prices = engine.cold.prices()
    assert prices.ways == {Way.ASSIST} and prices.help.num_calls > 0
    assert 0.0 < prices.help.call_s < 1.0
    helped.tell([Prefetch(i, card, to_pool=False) for i, card in enumerate(world.cards.values())])
    page_bytes = world.runner.info().page_bytes
    whole_bytes = page_bytes * sum(card.num_pages for card in world.cards.values())
    while engine.stats(pages=False).host_bytes < whole_bytes:
        engine.step(0.01)
    assert helped.ask([world.submit(0, "low")]) == [world.answers["low"]]
    start = helped.finished[0].start
    assert start is not None and start.way is Way.ASSIST
    assert engine.stats(pages=False).cold.helpers_up == 1
    (pid,) = helpers.crew.pids
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert helped.ask([world.submit(1, "high")]) == [world.answers["high"]]
    assert helped.finished[1].start is not None
