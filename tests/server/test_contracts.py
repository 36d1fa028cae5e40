"""What the fakes and the real things have in common: the same assertions over both.

A fake that is kinder than what it stands for lets the engine's tests pass on a broken engine.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pytest
import torch

from lorry.adapters.errors import AdapterError
from lorry.adapters.host_tier import HostTier
from lorry.adapters.image import ImageLayout
from lorry.adapters.image_file import write_image
from lorry.adapters.key import AdapterCard
from lorry.server.engine_parts import HostTier as EngineHostTier
from lorry.server.engine_parts import Runner as EngineRunner
from lorry.server.execution.batch import StepRow
from lorry.server.execution.cold_start.board import LandedBoard
from lorry.server.execution.link import PoolLink
from lorry.server.memory.link_records import (
    LayerLanded,
    Link,
    LinkEvent,
    Loaded,
    LoadFailed,
    LoadOrder,
    Opened,
)
from lorry.server.scheduling.sampling import SamplingParams
from lorry.tests.execution_builders import Bench, make_bench, random_peft, tiny_llama
from lorry.tests.fakes import (
    FakeHostTier,
    FakeLink,
    FakePages,
    FakeRunner,
    make_card,
    make_key,
    make_layout,
)
from lorry.tests.link_builders import make_image

PROMPT = (5, 6, 7, 8, 9)
NUM_IMAGE_PAGES = 5


class RunnerDesk(Protocol):
    """A runner, and what the engine and the link would do around it."""

    runner: EngineRunner

    def take(self, count: int) -> list[int]: ...

    def put_adapter(self, slot: int, number: int) -> None: ...


class FakeDesk:
    def __init__(self) -> None:
        self._pages, self._next = FakePages(), 0
        self.runner = FakeRunner(self._pages, tokens_per_page=16)

    def take(self, count: int) -> list[int]:
        self._next += count
        return list(range(self._next - count, self._next))

    def put_adapter(self, slot: int, number: int) -> None:
        pages = self.take(2)
        self._pages.write_image(make_key(f"a{number}"), pages)
        self.runner.attach(slot, make_layout(2), pages)


class RealDesk:
    def __init__(self) -> None:
        self._model = tiny_llama()
        self._bench: Bench = make_bench(self._model, num_pages=100)
        self.runner = self._bench.runner

    def take(self, count: int) -> list[int]:
        return self._bench.take(count)

    def put_adapter(self, slot: int, number: int) -> None:
        self._bench.put_adapter(slot, random_peft(self._model, rank=4, seed=number))


@pytest.fixture(params=[FakeDesk, RealDesk])
def desk(request: pytest.FixtureRequest) -> RunnerDesk:
    return request.param()


def step_row(
    row: int,
    token_ids: Sequence[int],
    pages: Sequence[int],
    *,
    start: int = 0,
    slot: int = -1,
    sample: bool = True,
) -> StepRow:
    return StepRow(
        row, token_ids, len(token_ids) or 1, start, pages, slot, sample, SamplingParams()
    )


def answer(desk: RunnerDesk, *, row: int = 0, slot: int = -1, count: int = 8) -> list[int]:
    """The prompt at once, then each token fed back on the device."""
    pages = desk.take(1)
    tokens = [desk.runner.run([step_row(row, PROMPT, pages, slot=slot)]).tokens[row]]
    while len(tokens) < count:
        start = len(PROMPT) + len(tokens) - 1
        result = desk.runner.run([step_row(row, (), pages, start=start, slot=slot)])
        tokens.append(result.tokens[row])
    return tokens


def test_only_rows_that_ask_get_a_token(desk: RunnerDesk) -> None:
    """A chunk in the middle of a prompt would be answered."""
    rows = [
        step_row(3, PROMPT, desk.take(1), sample=False),
        step_row(1, PROMPT, desk.take(1)),
        step_row(7, PROMPT, desk.take(1)),
    ]
    result = desk.runner.run(rows)
    assert result.tokens.keys() == {1, 7} and not result.not_finite
    assert desk.runner.run(rows[:1]).tokens == {}


def test_a_fed_token_is_the_rows_own_last(desk: RunnerDesk) -> None:
    """Decoding would go on from a token of somebody else, or of an earlier step."""
    tokens = answer(desk, row=2)
    known = [*PROMPT, *tokens]
    for count in range(1, len(tokens)):
        row = step_row(4, known[: len(PROMPT) + count], desk.take(1))
        assert desk.runner.run([row]).tokens == {4: tokens[count]}


def test_a_preempted_row_goes_on_with_its_last_token(desk: RunnerDesk) -> None:
    """All but the last token is computed again elsewhere; the last one is still on the device."""
    tokens = answer(desk, row=5)
    known, pages = [*PROMPT, *tokens], desk.take(1)
    answer(desk, row=6, count=2)
    desk.runner.run([step_row(5, known[:-1], pages, sample=False)])
    fed = desk.runner.run([step_row(5, (), pages, start=len(known) - 1)]).tokens[5]
    assert desk.runner.run([step_row(6, known, desk.take(1))]).tokens[6] == fed


def test_chunks_and_neighbours_change_nothing(desk: RunnerDesk) -> None:
    """An answer would depend on how the step was cut, or on who shares it."""
    desk.put_adapter(0, 1)
    first = answer(desk, count=1)[0]
    pages, other = desk.take(1), desk.take(1)
    desk.runner.run([step_row(0, PROMPT[:2], pages, sample=False)])
    rows = [
        step_row(0, PROMPT[2:], pages, start=2),
        step_row(1, PROMPT[::-1], other, slot=0),
    ]
    assert desk.runner.run(rows).tokens[0] == first


def test_a_step_may_be_launched_while_another_is_on_its_way(desk: RunnerDesk) -> None:
    """A step planned ahead fed with a token of before, or a result handed to the wrong step."""
    tokens = answer(desk, row=2, count=3)
    pages, other = desk.take(1), desk.take(1)
    start = len(PROMPT)
    first = desk.runner.launch([step_row(3, PROMPT, pages)])
    second = desk.runner.launch([step_row(3, (), pages, start=start), step_row(1, PROMPT, other)])
    assert first.wait().tokens == {3: tokens[0]}
    third = desk.runner.launch([step_row(3, (), pages, start=start + 1)])
    assert second.wait().tokens == {3: tokens[1], 1: tokens[0]}
    assert third.wait().tokens == {3: tokens[2]}
    assert first.wait().tokens == {3: tokens[0]}, "the same when asked again"


def test_a_slot_means_what_was_attached_last(desk: RunnerDesk) -> None:
    """Rows of a slot given anew would be answered by the adapter before."""
    desk.put_adapter(0, 1)
    desk.put_adapter(3, 2)
    one, two, base = answer(desk, slot=0), answer(desk, slot=3), answer(desk)
    assert one != two and base not in (one, two)
    desk.runner.detach(0)
    desk.put_adapter(0, 2)
    assert answer(desk, slot=0) == two


class LinkDesk(Protocol):
    """A link whose loads can be waited for; an adapter named "lost" has no image."""

    link: Link

    def settle(self, num_loads: int) -> list[LinkEvent]: ...

    def card(self, name: str) -> AdapterCard: ...

    def keep(self, card: AdapterCard) -> None:
        """Its image is in host memory."""


class FakeLinkDesk:
    def __init__(self, folder: Path) -> None:
        del folder
        self.link = FakeLink()

    def card(self, name: str) -> AdapterCard:
        return make_card(name, num_pages=NUM_IMAGE_PAGES)

    def keep(self, card: AdapterCard) -> None:
        self.link.images[card.key.name] = make_image(NUM_IMAGE_PAGES)

    def settle(self, num_loads: int) -> list[LinkEvent]:
        for order in list(self.link.orders.values())[:num_loads]:
            name = order.card.key.name
            if name != "lost" and name not in self.link.images:
                self.link.open(order.load_id, make_image(NUM_IMAGE_PAGES))
            (self.link.fail if name == "lost" else self.link.finish)(order.load_id)
        return self.link.poll()


class RealLinkDesk:
    def __init__(self, folder: Path) -> None:
        self._folder, self._woken = folder, threading.Semaphore(0)
        pool_PE = torch.full((40, 64), torch.nan)
        self._tier = HostTier(1 << 20)
        self.link = PoolLink(self._tier, pool_PE, self._woken.release, board=LandedBoard())

    def card(self, name: str) -> AdapterCard:
        path = self._folder / name
        if name != "lost":
            landed = (3, 3, 4, NUM_IMAGE_PAGES)
            layout = ImageLayout(NUM_IMAGE_PAGES, 16, (), landed, 0)
            write_image(path, layout, torch.ones(NUM_IMAGE_PAGES, 64))
        return make_card(name, num_pages=NUM_IMAGE_PAGES, image_path=path)

    def keep(self, card: AdapterCard) -> None:
        self._tier.let_go(self._tier.fetch(card))

    def settle(self, num_loads: int) -> list[LinkEvent]:
        events: list[LinkEvent] = []
        while sum(isinstance(event, Loaded | LoadFailed) for event in events) < num_loads:
            assert self._woken.acquire(timeout=20), f"nothing more after {events}"
            events += self.link.poll()
        return events


@pytest.fixture(params=[FakeLinkDesk, RealLinkDesk])
def link_desk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LinkDesk]:
    made = request.param(tmp_path)
    yield made
    made.link.close()


def start(desk: LinkDesk, load_id: int, name: str) -> LoadOrder:
    pages = tuple(range(5 * load_id, 5 * load_id + NUM_IMAGE_PAGES))
    order = LoadOrder(load_id, load_id, load_id, desk.card(name), pages)
    desk.link.start(order)
    return order


def test_a_load_lands_layer_by_layer_and_ends_once(link_desk: LinkDesk) -> None:
    """Residency would take an adapter as there that is not, or hear of its end twice."""
    for load_id, name in enumerate(("one", "two", "three")):
        start(link_desk, load_id, name)
    events = link_desk.settle(3)
    for load_id in range(3):
        opened, *landed, end = [event for event in events if event.load_id == load_id]
        assert isinstance(opened, Opened) and opened.image.layout.num_pages == NUM_IMAGE_PAGES
        link_desk.link.let_go(opened.image)
        layers = [event.layer for event in landed if isinstance(event, LayerLanded)]
        assert len(layers) == len(landed) > 0 and layers == sorted(set(layers))
        assert isinstance(end, Loaded) and end.layout.num_pages == NUM_IMAGE_PAGES
    assert link_desk.link.poll() == []


def test_what_is_in_host_memory_is_open_at_once_and_no_event_says_so_again(
    link_desk: LinkDesk,
) -> None:
    """A step would be lost before the first row; or the image be held twice, and let go of once."""
    card = link_desk.card("one")
    link_desk.keep(card)
    opened = link_desk.link.start(LoadOrder(0, 0, 0, card, tuple(range(NUM_IMAGE_PAGES))))
    assert opened is not None and opened.load_id == 0
    assert opened.image.layout.num_pages == len(opened.image.cells) == NUM_IMAGE_PAGES
    *landed, end = link_desk.settle(1)
    assert {type(event) for event in landed} == {LayerLanded} and isinstance(end, Loaded)
    link_desk.link.let_go(opened.image)  # after the load's end, as before it


def test_a_failed_load_names_its_adapter_and_leaves_the_next_alone(link_desk: LinkDesk) -> None:
    """The wrong requests would be answered, or the link be lost with one bad file."""
    start(link_desk, 0, "lost")
    (event,) = link_desk.settle(1)
    assert isinstance(event, LoadFailed) and event.load_id == 0
    assert isinstance(event.error, AdapterError) and "lost" in str(event.error)
    start(link_desk, 1, "good")
    assert isinstance(link_desk.settle(1)[-1], Loaded)


def test_a_closed_link_is_silent(link_desk: LinkDesk) -> None:
    """An engine that stops would hear of loads it has already heard of."""
    start(link_desk, 0, "one")
    link_desk.settle(1)
    link_desk.link.close()
    assert link_desk.link.poll() == []


@pytest.mark.parametrize("tier", [FakeHostTier(), HostTier(1000)], ids=["fake", "real"])
def test_forgetting_what_the_host_tier_never_held_is_no_error(tier: EngineHostTier) -> None:
    """The engine says goodbye to every forgotten adapter, also to one that was never loaded."""
    for _ in range(2):
        tier.forget(make_key())
    stats = tier.stats()
    assert (stats.bytes, stats.items, stats.hits, stats.misses) == (0, 0, 0, 0)
