"""The host tier as a cold start sees it: layers as they are read, and cells that others can map."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lorry.adapters.errors import AdapterLoadFailed
from lorry.adapters.host_tier import HeldImage, HostTier
from lorry.adapters.image_file import write_image
from lorry.adapters.key import AdapterCard
from lorry.adapters.slab import Slab
from lorry.tests.fakes import make_card
from lorry.tests.link_builders import LANDED, make_image

PAGE_BYTES = 64 * 4
IMAGE_BYTES = 5 * PAGE_BYTES
LAYERS = [0, 2, 3, 4]  # that are there, each time a reader tells: two land together
PARENT, CHILD = 77.0, 55.0


def make_stored(folder: Path, name: str = "a", *, damaged: bool = False) -> AdapterCard:
    image = make_image()
    write_image(folder / name, image.layout, image.pages)
    if damaged:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    return make_card(name, num_pages=5, image_path=folder / name)


def make_tier(num_images: int) -> HostTier:
    return HostTier(num_images * IMAGE_BYTES, like=torch.zeros(1, 64))


@pytest.mark.parametrize("num_images", [2, 0], ids=["kept", "loose"])
@pytest.mark.parametrize("ahead", [False, True], ids=["read", "ahead"])
def test_a_reader_tells_of_each_layer_when_it_is_there(
    tmp_path: Path, num_images: int, ahead: bool
) -> None:
    """A load could not cross before the whole file is read, or would cross what is not there."""
    tier, card, wanted = make_tier(num_images), make_stored(tmp_path), make_image().pages
    told: list[tuple[HeldImage, int]] = []

    def hear(image: HeldImage, num_layers: int) -> None:
        told.append((image, num_layers))
        there = LANDED[num_layers - 1] if num_layers else 0
        assert torch.equal(image.pages[:there], wanted[:there])
        assert not tier.contains(card.key) and tier.hold(card.key) is None

    read = tier.read_ahead(card, (), hear) if ahead else tier.read(card, hear)
    if ahead and not num_images:
        assert read is None and told == []  # without room nobody hears of it
        return
    assert read is not None and told == [(read, count) for count in LAYERS]
    assert tier.contains(card.key) == (num_images > 0)
    tier.let_go(read)


@pytest.mark.parametrize("num_images", [1, 0], ids=["slab", "loose"])
def test_what_fails_midway_stays_until_the_last_has_let_go(tmp_path: Path, num_images: int) -> None:
    """It was freed at once: its cells went to the next image while somebody still read them."""
    tier, shares = make_tier(num_images), list[HeldImage]()

    def hear(image: HeldImage, num_layers: int) -> None:
        if not num_layers:
            tier.share(image)
            shares.append(image)

    with pytest.raises(AdapterLoadFailed, match="layer 3"):
        tier.read(make_stored(tmp_path, damaged=True), hear)
    assert tier.stats().bytes == IMAGE_BYTES and tier.stats().items == 0
    other = tier.read(make_stored(tmp_path, "b"))
    assert other.is_loose
    assert torch.equal(shares[0].pages[:3], make_image().pages[:3])
    for image in (other, shares[0]):
        tier.let_go(image)
    assert tier.stats().bytes == 0
    assert tier.read(make_stored(tmp_path, "b")).is_loose == (num_images == 0)


def test_an_adapter_deleted_while_it_is_read_stays_for_whoever_uses_it(tmp_path: Path) -> None:
    """The other way round: a share taken midway must not bring it back."""
    tier, card = make_tier(1), make_stored(tmp_path)

    def hear(image: HeldImage, num_layers: int) -> None:
        if num_layers == 2:
            tier.share(image)
            tier.forget(card.key)

    image = tier.read(card, hear)
    tier.let_go(image)
    assert tier.stats().bytes == IMAGE_BYTES and not tier.contains(card.key)
    tier.let_go(image)
    assert tier.stats().bytes == 0


def test_another_process_sees_the_cells_and_what_comes_into_them_later() -> None:
    """A helper would compute with an empty image, or with a copy that never changes."""
    tier = HostTier(4 * PAGE_BYTES + 9, like=torch.zeros(1, 64), shared=True)
    fd, cells = tier.shared_fd, tier.cells
    assert fd is not None and cells is not None and cells.shape == (4, 64)
    cells[3, 63] = PARENT
    child = (
        "import mmap, struct, sys\n"
        "fd, num_bytes = int(sys.argv[1]), int(sys.argv[2])\n"
        "memory = mmap.mmap(fd, num_bytes)\n"
        "print(struct.unpack_from('f', memory, num_bytes - 4)[0])\n"
        f"struct.pack_into('f', memory, 0, {CHILD})\n"
    )
    num_bytes = cells.numel() * cells.element_size()
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", child, str(fd), str(num_bytes)],
        pass_fds=(fd,),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert float(done.stdout) == PARENT and cells[0, 0] == CHILD


def test_a_mapping_outlives_the_slab_s_own_end() -> None:
    """A slab's end would leave its file open for good, one for each engine that was started."""
    slab = Slab(PAGE_BYTES, 64, torch.float32, shared=True)
    fd, cells = slab.fd, slab.cells
    assert fd is not None
    seen = mmap.mmap(fd, PAGE_BYTES)
    del slab
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(fd)
    cells[0, 0] = PARENT
    assert torch.frombuffer(seen, dtype=torch.float32)[0] == PARENT


@pytest.mark.parametrize("lacks", ["call", "memory"])
def test_without_shared_memory_the_tier_is_an_ordinary_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lacks: str
) -> None:
    """A system that forbids it would not serve at all."""

    def refuse(name: str) -> int:
        raise OSError(38, "Function not implemented")

    if lacks == "call":
        monkeypatch.delattr(os, "memfd_create")
    else:
        monkeypatch.setattr(os, "memfd_create", refuse)
    tier = HostTier(4 * PAGE_BYTES, like=torch.zeros(1, 64), shared=True)
    assert tier.shared_fd is None and tier.cells is not None and tier.cells.shape == (4, 64)
    assert "cannot be shared" in caplog.text


@pytest.mark.parametrize("num_bytes", [1 << 62, 1 << 63, 1 << 80], ids=["much", "long", "longer"])
def test_shared_memory_is_not_promised_beyond_what_there_is(num_bytes: int) -> None:
    """The system gives a file of any length: the process would die at the page too many."""
    with pytest.raises(MemoryError, match=f"no {num_bytes} bytes of host memory"):
        Slab(num_bytes, 256, torch.float32, shared=True)


def test_an_empty_tier_shares_nothing() -> None:
    """A mapping of no bytes is an error."""
    assert HostTier(0, like=torch.zeros(1, 64), shared=True).shared_fd is None
    assert HostTier(PAGE_BYTES, shared=True).shared_fd is None
