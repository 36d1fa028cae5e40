"""Which images stay in host memory, and who reads the disk."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from lorry.adapters.errors import AdapterLoadFailed
from lorry.adapters.host_tier import HostImage, HostTier
from lorry.adapters.image import SiteRank, plan_image
from lorry.adapters.image_file import read_image, write_image
from lorry.adapters.key import AdapterCard
from lorry.tests.adapters_builders import PAGE_ELEMENTS, make_spec
from lorry.tests.fakes import make_card

IMAGE_BYTES = PAGE_ELEMENTS * 4


def make_stored(folder: Path, name: str = "cat") -> AdapterCard:
    """One page, filled with ones."""
    layout = plan_image(make_spec(), [SiteRank(0, 2, 1.0)])
    write_image(folder / name, layout, torch.ones(layout.num_pages, PAGE_ELEMENTS))
    return make_card(name, num_pages=1, image_path=folder / name)


def test_an_image_is_read_once_and_kept(tmp_path: Path) -> None:
    """Every load would wait for the disk."""
    tier = HostTier(10 * IMAGE_BYTES)
    card = make_stored(tmp_path)
    first = tier.fetch(card)
    card.image_path.unlink()
    assert tier.fetch(card) is first
    stats = tier.stats()
    assert (stats.bytes, stats.items, stats.hits, stats.misses) == (IMAGE_BYTES, 1, 1, 1)
    assert torch.equal(first.pages, torch.ones(1, PAGE_ELEMENTS))


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    """Host memory would grow with every adapter ever used, or the hot ones go."""
    tier = HostTier(2 * IMAGE_BYTES)
    cards = [make_stored(tmp_path, name) for name in "abc"]
    tier.fetch(cards[0])
    tier.fetch(cards[1])
    tier.fetch(cards[0])
    tier.fetch(cards[2])
    assert tier.stats().bytes == 2 * IMAGE_BYTES
    misses = tier.stats().misses
    tier.fetch(cards[0])
    assert tier.stats().misses == misses
    tier.fetch(cards[1])
    assert tier.stats().misses == misses + 1


def test_an_image_larger_than_the_budget_is_handed_out(tmp_path: Path) -> None:
    """A small budget would make a large adapter unusable."""
    tier = HostTier(IMAGE_BYTES - 1)
    assert tier.fetch(make_stored(tmp_path)).pages.shape[0] == 1
    assert tier.stats().bytes == 0


def test_forget_frees_at_once(tmp_path: Path) -> None:
    """A deleted adapter would keep its host memory (vllm#42633)."""
    tier = HostTier(10 * IMAGE_BYTES)
    card = make_stored(tmp_path)
    tier.fetch(card)
    tier.forget(card.key)
    tier.forget(card.key)
    assert (tier.stats().bytes, tier.stats().items) == (0, 0)


@pytest.mark.parametrize("damage", [None, b"", b"not an image"])
def test_a_lost_image_fails_its_own_adapter(tmp_path: Path, damage: bytes | None) -> None:
    """One bad file would end the engine, or leave others waiting for ever."""
    tier = HostTier(10 * IMAGE_BYTES)
    card = make_stored(tmp_path)
    if damage is None:
        card.image_path.unlink()
    else:
        card.image_path.write_bytes(damage)
    for _ in range(2):
        with pytest.raises(AdapterLoadFailed, match="default/cat@1") as caught:
            tier.fetch(card)
        assert caught.value.name == "cat"
    assert tier.fetch(make_stored(tmp_path, "dog")).pages.shape[0] == 1
    make_stored(tmp_path)
    assert tier.fetch(card).pages.shape[0] == 1


def test_fetches_at_once_share_one_read_and_forget_wins(tmp_path: Path) -> None:
    """Eight requests of a cold adapter would read it eight times, or a deleted one stay."""
    card = make_stored(tmp_path)
    reading, go = threading.Event(), threading.Event()
    reads: list[Path] = []

    def read(path: Path) -> HostImage:
        reads.append(path)
        reading.set()
        assert go.wait(10)
        return read_image(path)

    tier = HostTier(10 * IMAGE_BYTES, read=read)
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(tier.fetch, card)
        assert reading.wait(10)
        others = [threads.submit(tier.fetch, card) for _ in range(2)]
        while tier.stats().hits < 2:
            pass
        tier.forget(card.key)
        go.set()
        images = [fetch.result(10) for fetch in (first, *others)]
    assert images[1] is images[0] and images[2] is images[0]
    assert len(reads) == 1
    assert tier.stats().items == 0


def test_many_threads_keep_the_books(tmp_path: Path) -> None:
    """The count of bytes would drift until nothing is kept."""
    tier = HostTier(3 * IMAGE_BYTES)
    cards = [make_stored(tmp_path, f"n{index}") for index in range(6)]
    barrier = threading.Barrier(4)

    def work(offset: int) -> None:
        barrier.wait(10)
        for step in range(60):
            card = cards[(step * (offset + 1)) % 6]
            assert tier.fetch(card).pages.shape[0] == 1
            if step % 7 == offset:
                tier.forget(card.key)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    stats = tier.stats()
    assert stats.bytes == stats.items * IMAGE_BYTES <= 3 * IMAGE_BYTES
    assert stats.hits + stats.misses == 240
