"""What was stored before meets another layout, base or limit, or a disk that lost some of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorry.adapters.errors import AdapterLoadFailed, AdapterRefused, AdapterTooLarge
from lorry.adapters.image_file import ImageDamaged, read_image
from lorry.adapters.resolve import PeftResolver
from lorry.adapters.store import AdapterStore
from lorry.tests.adapters_builders import (
    LIMITS,
    SITES,
    TENANT,
    content,
    make_config,
    make_files,
    make_old_image,
    make_spec,
    make_store,
    make_tensors,
    upload,
)


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "old"])
def test_a_damaged_image_is_packed_again(
    tmp_path: Path, resolver: PeftResolver, damage: str
) -> None:
    """Images are not synced: after a power failure one may be cut short."""
    root = tmp_path / "store"
    store = make_store(root, resolver)
    card = upload(store).card
    whole = card.image_path.read_bytes()
    image = read_image(card.image_path)
    store.close()
    if damage == "missing":
        card.image_path.unlink()
    elif damage == "cut":
        card.image_path.write_bytes(whole[: len(whole) // 2])
    elif damage == "old":
        make_old_image(card.image_path)
    else:
        card.image_path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 4]) + whole[-2:])
    store = make_store(root, resolver)
    assert store.ready(TENANT, "cat") is None
    assert store.get(TENANT, "cat") == card
    again = read_image(card.image_path)
    assert again.layout == image.layout
    assert torch.equal(again.pages, image.pages)
    store.close()


def test_another_layout_packs_again(tmp_path: Path, resolver: PeftResolver) -> None:
    """Pages of the old size or dtype would be copied into the new pool."""
    root = tmp_path / "store"
    store = make_store(root, resolver)
    first = upload(store).card
    store.configure(make_spec(dtype="bfloat16", page_elements=1024))
    second = store.get(TENANT, "cat")
    assert second.key == first.key
    assert second.weight_bytes == first.weight_bytes // 2
    assert second.rounding_error > 0
    assert read_image(second.image_path).pages.dtype == torch.bfloat16
    assert not first.image_path.exists()
    store.close()


def test_a_list_packs_nothing(store: AdapterStore) -> None:
    """After a change of dtype one list would pack a thousand adapters before it answers."""
    upload(store)
    store.configure(make_spec(dtype="bfloat16"))
    (card,) = store.list(TENANT).cards
    assert "not packed yet" in card.notes[0]
    assert not card.image_path.exists()
    assert store.get(TENANT, "cat").num_pages > 0
    assert store.list(TENANT).cards == (store.get(TENANT, "cat"),)


def test_an_adapter_of_other_sites_is_refused_with_the_reason(store: AdapterStore) -> None:
    """It would be served without some of its modules, or hide the adapters that fit."""
    upload(store)
    k_proj = make_files(make_config(target_modules=["k_proj"]), make_tensors(targets=("k_proj",)))
    upload(store, "k", files=k_proj)
    sites = tuple(site for site in SITES if not site.name.endswith("q_proj"))
    store.configure(make_spec(sites=sites))
    with pytest.raises(AdapterRefused, match="q_proj"):
        store.get(TENANT, "cat")
    assert store.get(TENANT, "k").num_pages > 0
    assert [card.key.name for card in store.list(TENANT).cards] == ["cat", "k"]


def test_another_base_of_the_same_shape_is_refused(tmp_path: Path, resolver: PeftResolver) -> None:
    """Weights trained on one base were served on another after a restart, without a word."""
    root = tmp_path / "store"
    store = make_store(root, resolver, base_fingerprint="aa")
    upload(store, "said", base_fingerprint="aa")
    upload(store, "silent", files=content(1))
    store.close()
    store = make_store(root, resolver, base_fingerprint="bb")
    for look in (store.get, store.ready):
        with pytest.raises(AdapterRefused, match=r"'aa'.*'bb'") as caught:
            look(TENANT, "said")
            store.get(TENANT, "said")
        assert caught.value.field == "base_fingerprint"
    assert "'aa'" in store.get(TENANT, "silent").notes[0]
    listed = {card.key.name: card.notes[0] for card in store.list(TENANT).cards}
    assert "cannot be used" in listed["said"]
    assert "another base" in listed["silent"]
    # Whoever uploads them now knows what is served now.
    again = [upload(store, "said"), upload(store, "silent", files=content(1))]
    assert not any(stored.created for stored in again)
    assert [store.get(TENANT, name).notes for name in ("said", "silent")] == [(), ()]
    store.close()


def test_limits_of_now_hold_for_what_was_stored_before(
    tmp_path: Path, resolver: PeftResolver
) -> None:
    """The engine is built for ranks and pages that an old card may exceed."""
    root = tmp_path / "store"
    store = make_store(root, resolver)
    card = upload(store).card
    store.configure(make_spec(), max_pages=card.num_pages - 1)
    with pytest.raises(AdapterTooLarge, match="pages"):
        store.get(TENANT, "cat")
    store.close()
    store = make_store(root, resolver, limits=replace(LIMITS, max_rank=3))
    with pytest.raises(AdapterTooLarge, match="rank 4"):
        store.get(TENANT, "cat")
    assert "cannot be used" in store.list(TENANT).cards[0].notes[0]
    store.close()


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_an_image_lost_under_a_running_server_heals(store: AdapterStore, damage: str) -> None:
    """Every request would fail until a restart, and a new upload change nothing."""
    card = upload(store).card
    whole = read_image(card.image_path).pages
    if damage == "missing":
        card.image_path.unlink()
        assert store.ready(TENANT, "cat") is None
    else:
        card.image_path.write_bytes(card.image_path.read_bytes()[:-9])
        store.unproven(card.key)
    assert store.get(TENANT, "cat") == card
    assert torch.equal(read_image(card.image_path).pages, whole)
    card.image_path.unlink()
    assert upload(store).card == card
    assert torch.equal(read_image(card.image_path).pages, whole)


def test_a_lost_image_is_told_without_its_path(tmp_path: Path) -> None:
    """The engine passes the reason on to clients."""
    with pytest.raises(ImageDamaged) as caught:
        read_image(tmp_path / "gone.safetensors")
    assert str(tmp_path) not in str(caught.value)


def test_a_damaged_original_is_not_packed_and_heals(store: AdapterStore, tmp_path: Path) -> None:
    """A flipped bit gives weights that are finite and wrong; the good file was thrown away."""
    card = upload(store).card
    image = read_image(card.image_path)
    weights = tmp_path / "store/blobs" / card.key.content_hash / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    card.image_path.unlink()
    with pytest.raises(AdapterLoadFailed, match="no longer") as caught:
        store.get(TENANT, "cat")
    assert caught.value.name == "cat"
    again = upload(store)
    assert (again.card, again.created) == (card, False)
    assert weights.read_bytes() == whole
    card.image_path.unlink()
    assert torch.equal(read_image(store.get(TENANT, "cat").image_path).pages, image.pages)


def test_lost_files_fail_their_adapter_only(store: AdapterStore, tmp_path: Path) -> None:
    """One lost file would take the whole store down."""
    card = upload(store, files=content(1)).card
    upload(store, "dog", files=content(2))
    (tmp_path / "store/blobs" / card.key.content_hash / "adapter_config.json").unlink()
    store.configure(make_spec(dtype="float16"))
    with pytest.raises(AdapterLoadFailed) as caught:
        store.get(TENANT, "cat")
    assert caught.value.name == "cat"
    assert store.get(TENANT, "dog").num_pages > 0
