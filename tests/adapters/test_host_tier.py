"""Which images stay in host memory, where they lie, and who may still read them."""

from __future__ import annotations

import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from lorry.adapters.errors import AdapterLoadFailed
from lorry.adapters.host_tier import HeldImage, HostTier
from lorry.adapters.image import ImageLayout, SiteRank, plan_image
from lorry.adapters.image_file import OpenImage, open_image, write_image
from lorry.adapters.key import AdapterCard
from lorry.adapters.slab import Slab, _pin, runs_of
from lorry.tests.adapters_builders import PAGE_ELEMENTS, make_spec
from lorry.tests.fakes import make_card

IMAGE_BYTES = PAGE_ELEMENTS * 4


def make_stored(folder: Path, name: str = "cat") -> AdapterCard:
    """One page, filled with ones."""
    layout = plan_image(make_spec(), [SiteRank(0, 2, 1.0)])
    write_image(folder / name, layout, torch.ones(layout.num_pages, PAGE_ELEMENTS))
    return make_card(name, num_pages=1, image_path=folder / name)


def make_large(folder: Path, num_pages: int, value: float, name: str = "") -> AdapterCard:
    """Its pages hold `value`, `value` + 1 and so on."""
    name = name or f"n{value}"
    pages = torch.arange(num_pages).view(-1, 1).expand(-1, PAGE_ELEMENTS) + value
    layout = ImageLayout(num_pages, 16, (), (num_pages,), 0)
    write_image(folder / name, layout, pages.contiguous())
    return make_card(name, num_pages=num_pages, image_path=folder / name)


def fetch_and_go(tier: HostTier, card: AdapterCard) -> None:
    tier.let_go(tier.fetch(card))


def test_an_image_is_read_once_and_kept(tmp_path: Path) -> None:
    """Every load would wait for the disk."""
    tier = HostTier(10 * IMAGE_BYTES)
    card = make_stored(tmp_path)
    assert not tier.contains(card.key)
    first = tier.fetch(card)
    card.image_path.unlink()
    assert tier.fetch(card) is first and tier.contains(card.key)
    stats = tier.stats()
    assert (stats.bytes, stats.items, stats.hits, stats.misses) == (IMAGE_BYTES, 1, 1, 1)
    assert torch.equal(first.pages, torch.ones(1, PAGE_ELEMENTS))


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    """Host memory would grow with every adapter ever used, or the hot ones go."""
    tier = HostTier(3 * IMAGE_BYTES - 1)
    cards = [make_stored(tmp_path, name) for name in "abcd"]
    fetch_and_go(tier, cards[0])
    fetch_and_go(tier, cards[1])
    fetch_and_go(tier, cards[0])
    fetch_and_go(tier, cards[2])
    assert [tier.contains(card.key) for card in cards] == [True, False, True, False]
    assert tier.touch(cards[0].key) and not tier.touch(cards[1].key)
    fetch_and_go(tier, cards[3])
    assert [tier.contains(card.key) for card in cards] == [True, False, False, True]
    assert tier.stats().bytes == tier.stats().peak_bytes == 2 * IMAGE_BYTES


def test_what_a_copy_holds_stays_where_it_is(tmp_path: Path) -> None:
    """A load would bring another adapter's weights: evicted, or deleted, under its copy."""
    tier = HostTier(2 * IMAGE_BYTES)
    held = tier.fetch(make_large(tmp_path, 1, 10.0))
    gone = make_large(tmp_path, 1, 20.0)
    deleted = tier.fetch(gone)
    tier.forget(gone.key)
    assert not tier.contains(gone.key)
    third = tier.fetch(make_large(tmp_path, 1, 30.0))
    assert third.is_loose and tier.stats().bytes == 3 * IMAGE_BYTES
    found = [float(image.pages[0, 0]) for image in (held, deleted, third)]
    assert found == [10.0, 20.0, 30.0]
    for image in (deleted, third):
        tier.let_go(image)
    assert tier.stats().bytes == IMAGE_BYTES
    fetch_and_go(tier, make_large(tmp_path, 1, 40.0))
    assert tier.stats().bytes == 2 * IMAGE_BYTES and float(held.pages[0, 0]) == 10.0


def test_an_image_has_as_many_holders_as_loads(tmp_path: Path) -> None:
    """The first of two loads that ends would pull the image from under the other."""
    tier, card = HostTier(IMAGE_BYTES), make_stored(tmp_path)
    image = tier.fetch(card)
    tier.share(image)
    tier.let_go(image)
    assert tier.read(make_stored(tmp_path, "dog")).is_loose
    tier.let_go(image)
    assert not tier.read(make_stored(tmp_path, "cow")).is_loose


def test_two_reads_of_one_adapter_leave_one_image(tmp_path: Path) -> None:
    """The first one's cells would be lost for good."""
    tier, card = HostTier(3 * IMAGE_BYTES), make_stored(tmp_path)
    first, second = tier.read(card), tier.read(card)
    assert tier.stats().bytes == 2 * IMAGE_BYTES
    for image in (second, first):
        tier.let_go(image)
    assert tier.stats().bytes == IMAGE_BYTES
    tier.forget(card.key)
    assert tier.stats().bytes == 0


def test_an_image_larger_than_the_budget_is_handed_out(tmp_path: Path) -> None:
    """A small budget would make a large adapter unusable; others would go for nothing."""
    tier = HostTier(2 * IMAGE_BYTES)
    small = make_stored(tmp_path)
    fetch_and_go(tier, small)
    image = tier.fetch(make_large(tmp_path, 3, 5.0))
    assert image.pages[:, 0].tolist() == [5.0, 6.0, 7.0]
    assert tier.contains(small.key) and tier.stats().bytes == 4 * IMAGE_BYTES
    tier.let_go(image)
    assert tier.stats().bytes == IMAGE_BYTES and tier.stats().peak_bytes == 4 * IMAGE_BYTES
    assert HostTier(0).fetch(small).is_loose


def test_an_image_of_another_pool_does_not_take_the_slab(tmp_path: Path) -> None:
    """The first image read may be the odd one; all others would never be kept."""
    pool_PE = torch.zeros(1, PAGE_ELEMENTS // 2)
    tier = HostTier(8 * IMAGE_BYTES, like=pool_PE)
    assert tier.fetch(make_stored(tmp_path)).is_loose


def test_reading_ahead_costs_nobody_who_is_needed(tmp_path: Path) -> None:
    """The last of many hints would throw out what the first one brought."""
    tier = HostTier(2 * IMAGE_BYTES)
    cards = [make_stored(tmp_path, name) for name in "abc"]
    for count, card in enumerate(cards):
        image = tier.read_ahead(card, {other.key for other in cards[:count]})
        assert (image is None) == (count == 2)
        if image is not None:
            tier.let_go(image)
    again = tier.read_ahead(cards[0], {cards[1].key})
    assert again is not None and not again.is_loose
    assert tier.read_ahead(cards[2], {cards[1].key}) is None  # one is held, one spared
    tier.let_go(again)
    assert tier.read_ahead(cards[2], {cards[1].key}) is not None
    assert (tier.stats().hits, tier.stats().misses) == (0, 0)  # no load has asked


def test_forget_frees_at_once(tmp_path: Path) -> None:
    """A deleted adapter would keep its host memory (vllm#42633)."""
    tier = HostTier(10 * IMAGE_BYTES)
    card = make_stored(tmp_path)
    fetch_and_go(tier, card)
    tier.forget(card.key)
    tier.forget(card.key)
    assert (tier.stats().bytes, tier.stats().items) == (0, 0)


@pytest.mark.parametrize("damage", [None, b"", b"not an image", "page"])
def test_a_lost_image_fails_its_own_adapter(tmp_path: Path, damage: bytes | str | None) -> None:
    """One bad file would end the engine, keep its memory, or leave others waiting for ever."""
    tier = HostTier(10 * IMAGE_BYTES)
    card = make_stored(tmp_path)
    if damage is None:
        card.image_path.unlink()
    elif damage == "page":
        whole = card.image_path.read_bytes()
        card.image_path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    else:
        assert isinstance(damage, bytes)
        card.image_path.write_bytes(damage)
    for _ in range(2):
        with pytest.raises(AdapterLoadFailed, match="default/cat@1") as caught:
            tier.fetch(card)
        assert caught.value.name == "cat"
        assert tier.stats().bytes == 0
    none = HostTier(0)
    with pytest.raises(AdapterLoadFailed):
        none.fetch(card)
    assert none.stats().bytes == 0
    assert tier.fetch(make_stored(tmp_path, "dog")).pages.shape[0] == 1
    make_stored(tmp_path)
    assert tier.fetch(card).pages.shape[0] == 1


def test_forget_wins_over_a_read_under_way(tmp_path: Path) -> None:
    """A deleted adapter would come back into host memory, and stay; asking would wait for it."""
    card = make_stored(tmp_path)
    reading, go = threading.Event(), threading.Event()

    @contextmanager
    def opened(path: Path) -> Generator[OpenImage]:
        with open_image(path) as file:
            yield SlowFile(file)

    class SlowFile:
        def __init__(self, file: OpenImage) -> None:
            self._file = file

        def __getattr__(self, name: str) -> object:
            if name == "read_groups":
                reading.set()
                assert go.wait(10)
            return getattr(self._file, name)

    tier = HostTier(10 * IMAGE_BYTES, open_file=opened)
    with ThreadPoolExecutor(1) as threads:
        fetch = threads.submit(tier.fetch, card)
        assert reading.wait(10)
        assert tier.hold(card.key) is None and not tier.contains(card.key)
        tier.forget(card.key)
        go.set()
        image = fetch.result(10)
    assert torch.equal(image.pages, torch.ones(1, PAGE_ELEMENTS))
    assert (tier.stats().items, tier.stats().bytes) == (0, IMAGE_BYTES)
    tier.let_go(image)
    assert tier.stats().bytes == 0


def test_many_threads_keep_the_books(tmp_path: Path) -> None:
    """The count of bytes would drift until nothing is kept, or two images share a cell."""
    tier = HostTier(3 * IMAGE_BYTES)
    cards = [make_large(tmp_path, 1, float(index)) for index in range(6)]
    barrier = threading.Barrier(4)

    def work(offset: int) -> None:
        barrier.wait(10)
        for step in range(60):
            index = (step * (offset + 1)) % 6
            image = tier.fetch(cards[index])
            assert float(image.pages[0, -1]) == index
            if step % 7 == offset:
                tier.forget(cards[index].key)
            assert float(image.pages[0, 0]) == index
            tier.let_go(image)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    stats = tier.stats()
    assert stats.bytes == stats.items * IMAGE_BYTES <= 3 * IMAGE_BYTES
    assert stats.hits + stats.misses == 240


class TierMachine(RuleBasedStateMachine):
    """The tier against a list of who holds what: every image reads as it was written for as long
    as it is held, and the bytes are those of images kept or held."""

    folder: Path
    sizes = (1, 1, 2, 3, 4, 6)

    def __init__(self) -> None:
        super().__init__()
        self.cards = [
            make_large(self.folder, size, 100.0 * index) for index, size in enumerate(self.sizes)
        ]
        self.tier = HostTier(5 * IMAGE_BYTES, like=torch.zeros(1, PAGE_ELEMENTS))
        self.held: list[tuple[int, HeldImage]] = []

    @rule(index=st.integers(0, 5))
    def fetch(self, index: int) -> None:
        self.held.append((index, self.tier.fetch(self.cards[index])))

    @rule(index=st.integers(0, 5), spare=st.sets(st.integers(0, 5)))
    def read_ahead(self, index: int, spare: set[int]) -> None:
        safe = [at for at in spare if self.tier.contains(self.cards[at].key)]
        image = self.tier.read_ahead(self.cards[index], {self.cards[at].key for at in spare})
        if image is not None:
            self.held.append((index, image))
        assert all(self.tier.contains(self.cards[at].key) for at in safe)

    @rule(index=st.integers(0, 5))
    def forget(self, index: int) -> None:
        self.tier.forget(self.cards[index].key)
        assert not self.tier.contains(self.cards[index].key)

    @rule(which=st.integers(0, 99))
    def let_go(self, which: int) -> None:
        if self.held:
            self.tier.let_go(self.held.pop(which % len(self.held))[1])

    @invariant()
    def holds(self) -> None:
        for index, image in self.held:
            wanted = [100.0 * index + page for page in range(self.sizes[index])]
            assert image.memory[list(image.cells), 0].tolist() == wanted
        images = {id(image): image for _, image in self.held}
        images |= {id(image): image for image in self.tier._kept.values()}
        kept = sum(image.size_bytes for image in self.tier._kept.values())
        assert self.tier.stats().bytes == sum(image.size_bytes for image in images.values())
        assert kept <= 5 * IMAGE_BYTES
        cells = [cell for image in images.values() if not image.is_loose for cell in image.cells]
        slab = self.tier._slab
        assert slab is not None and len(cells) == len(set(cells)) == slab.num_cells - slab.num_free


def test_the_tier_obeys_its_laws(tmp_path: Path) -> None:
    """Wrong weights under a right name, or memory that is lost for good."""

    class Machine(TierMachine):
        folder = tmp_path

    run_state_machine_as_test(
        Machine, settings=settings(max_examples=25, stateful_step_count=30, deadline=None)
    )


def test_cells_are_given_lowest_first_and_never_twice() -> None:
    """Long stretches are few copies, and high cells cost no memory before they are needed."""
    slab = Slab(10 * 64 + 63, 16, torch.float32)
    assert (slab.num_cells, slab.cell_bytes) == (10, 64)
    first, second = slab.take(3), slab.take(4)
    slab.give(first)
    assert (first, second, slab.num_free) == ((0, 1, 2), (3, 4, 5, 6), 6)
    assert slab.take(5) == (0, 1, 2, 7, 8)
    assert list(runs_of((0, 1, 2, 7, 8, 4, 3))) == [(0, 3), (7, 2), (4, 1), (3, 1)]
    assert list(runs_of(())) == []


@pytest.mark.parametrize("num_bytes", [1 << 62, 1 << 63, 1 << 80], ids=["much", "long", "longer"])
def test_more_than_the_system_has_is_said_in_one_way(num_bytes: int) -> None:
    """A size past 63 bits was an OverflowError, and the engine died of it again and again."""
    with pytest.raises(MemoryError, match=f"no {num_bytes} bytes of host memory"):
        Slab(num_bytes, 256, torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_memory_that_cannot_be_pinned_fails_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """The error stayed with CUDA, and the next kernel was told of it as of its own."""
    slab = Slab(1 << 20, 256, torch.float32, pinned=True)
    assert slab.cells.is_pinned() and not caplog.text
    _pin(slab.cells)  # a second time: CUDA refuses
    assert "could not be pinned" in caplog.text
    assert torch.ones(3, device="cuda").sum().item() == 3.0
