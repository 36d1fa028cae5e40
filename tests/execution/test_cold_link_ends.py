"""A load that is ordered just as the read that it would join comes to nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import torch

from lorry.adapters.errors import AdapterLoadFailed
from lorry.adapters.host_tier import HeldImage, HostTier, Told
from lorry.adapters.image_file import write_image
from lorry.adapters.key import AdapterCard, AdapterKey
from lorry.server.execution.cold_start.board import LandedBoard
from lorry.server.execution.link import PoolLink
from lorry.server.memory.link_records import LoadOrder, Opened
from lorry.tests.fakes import FakeClock, make_card
from lorry.tests.link_builders import PAGES, Waiter, make_image, names_of

NUM_PAGES = len(PAGES)


class FailingTier(HostTier):
    """`meanwhile` happens when a read ahead has failed, before anybody hears of it."""

    meanwhile: Callable[[], object]

    def read_ahead(
        self, card: AdapterCard, spare: Collection[AdapterKey], told: Told = lambda *_: None
    ) -> HeldImage | None:
        try:
            return super().read_ahead(card, spare, told)
        except AdapterLoadFailed:
            self.meanwhile()
            raise


def make_stored(folder: Path, name: str, *, damaged: bool = False) -> AdapterCard:
    image, path = make_image(), folder / name
    write_image(path, image.layout, image.pages)
    if damaged:
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    return make_card(name, num_pages=NUM_PAGES, image_path=path)


def test_cells_of_a_read_that_failed_are_given_back_once(tmp_path: Path) -> None:
    """Twice, and two adapters would lie in the same cells: one would answer with the other's."""
    pool_PE, waiter, heard = torch.zeros(NUM_PAGES, 64), Waiter(), list[Opened]()
    tier = FailingTier(2 * pool_PE.nbytes, like=pool_PE)
    link = PoolLink(tier, pool_PE, waiter.wake, board=LandedBoard(), clock=FakeClock())
    card = make_stored(tmp_path, "a", damaged=True)

    def order() -> None:
        opened = link.start(LoadOrder(1, 0, 0, card, PAGES))
        heard.extend([] if opened is None else [opened])

    tier.meanwhile = order
    link.want([card])
    assert names_of(waiter.collect(link, 1)) == [(1, "LoadFailed")]
    for opened in heard:
        link.let_go(opened.image)
    link.close()
    assert tier.stats().bytes == 0
    images = [tier.fetch(make_stored(tmp_path, name)) for name in "bc"]
    assert len({cell for image in images for cell in image.cells}) == 2 * NUM_PAGES
