"""Names, versions, contents and their files over the store's life."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorry.adapters.errors import (
    AdapterNotFound,
    AdapterTooLarge,
    NotConfigured,
)
from lorry.adapters.image_file import read_image
from lorry.adapters.key import AdapterKey
from lorry.adapters.resolve import PeftResolver
from lorry.adapters.store import AdapterStore
from lorry.adapters.store_files import StoreFiles, StoreInUse
from lorry.tests.adapters_builders import (
    LIMITS,
    TENANT,
    FakeWallClock,
    blobs,
    content,
    make_config,
    make_files,
    make_spec,
    make_store,
    make_tensors,
    upload,
)


def test_a_card_tells_what_was_stored(store: AdapterStore) -> None:
    """Admission counts pages by the card; a wrong number overfills the pool."""
    tensors = make_tensors(rank=16)
    config = make_config(r=4, rank_pattern={"q_proj": 16, "v_proj": 16}, lora_alpha=4)
    files = make_files(config | {"base_model_name_or_path": "org/other"}, tensors)
    card = upload(store, files=files).card
    assert card.key == AdapterKey(TENANT, "cat", 1, card.key.content_hash)
    assert card.size_bytes == len(files[1])
    assert card.max_rank == 16
    assert card.weight_bytes == 4 * sum(tensor.numel() for tensor in tensors.values())
    assert card.target_modules == ("q_proj", "v_proj")
    assert card.rounding_error == 0.0
    assert any("org/other" in note for note in card.notes)
    image = read_image(card.image_path)
    assert image.pages.shape == (card.num_pages, make_spec().page_elements)
    assert {tiles.scale for tiles in image.layout.sites} == {4 / 16}
    assert store.get(TENANT, "cat") == card == store.ready(TENANT, "cat")


def test_the_upload_is_kept_byte_for_byte(store: AdapterStore, tmp_path: Path) -> None:
    """The image could not be packed again for another layout."""
    files = make_files()
    key = upload(store, files=files).card.key
    blob = tmp_path / "store" / "blobs" / key.content_hash
    assert (blob / "adapter_config.json").read_bytes() == files[0]
    assert (blob / "adapter_model.safetensors").read_bytes() == files[1]


def test_both_spellings_of_names_are_read(store: AdapterStore) -> None:
    """PEFT loads files with its adapter's name inside; refusing them would surprise."""
    plain = upload(store, "plain").card
    spelled = {name.replace(".weight", ".default.weight"): t for name, t in make_tensors().items()}
    other = upload(store, "spelled", files=make_files(tensors=spelled)).card
    pages = [read_image(card.image_path).pages for card in (plain, other)]
    assert torch.equal(pages[0], pages[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_uploads_are_exact_in_fp32(store: AdapterStore, dtype: torch.dtype) -> None:
    """A second rounding would change tokens against PEFT."""
    card = upload(store, files=make_files(tensors=make_tensors(dtype=dtype))).card
    assert card.rounding_error == 0.0


def test_new_content_under_a_name_is_a_new_version(store: AdapterStore, tmp_path: Path) -> None:
    """New content would meet the old weights (vllm#42125), or a running request lose its own."""
    first = upload(store, files=content(1))
    second = upload(store, files=content(2))
    assert first.created and second.created
    assert second.replaced == first.card.key
    assert second.card.key.version == 2
    assert store.get(TENANT, "cat") == second.card
    assert first.card.image_path.exists()
    assert len(blobs(tmp_path / "store")) == 2


def test_the_same_content_again_changes_nothing(store: AdapterStore) -> None:
    """A client that repeats an upload would evict what is loaded."""
    first = upload(store)
    again = upload(store)
    assert again.card == first.card
    assert not again.created
    assert again.replaced is None


def test_a_version_is_never_used_twice(store: AdapterStore) -> None:
    """Old KV keyed by name and version would be met again after a delete."""
    versions = [upload(store, files=content(1)).card.key.version]
    for seed in (2, 1):
        key = store.delete(TENANT, "cat")
        store.purge(key)
        versions.append(upload(store, files=content(seed)).card.key.version)
    assert versions == [1, 2, 3]


def test_foo_and_foo_2_are_two_adapters(store: AdapterStore) -> None:
    """A name cut by a rule loads another tenant's or version's weights."""
    upload(store, "foo", files=content(1))
    upload(store, "foo-2", files=content(2))
    store.delete(TENANT, "foo")
    assert store.get(TENANT, "foo-2").key.name == "foo-2"
    with pytest.raises(AdapterNotFound) as caught:
        store.get(TENANT, "foo")
    assert caught.value.name == "foo"


def test_another_tenants_name_is_unknown(store: AdapterStore) -> None:
    """One tenant could use or delete another's adapter."""
    upload(store, tenant="a")
    with pytest.raises(AdapterNotFound):
        store.get("b", "cat")
    with pytest.raises(AdapterNotFound):
        store.delete("b", "cat")
    assert store.list("b").cards == ()
    assert store.count("a") == 1


def test_deleted_files_stay_until_purge(store: AdapterStore, tmp_path: Path) -> None:
    """A running request that has to load again would fail, or the disk never be freed."""
    card = upload(store).card
    key = store.delete(TENANT, "cat")
    assert key == card.key
    assert card.image_path.exists()
    store.purge(key)
    assert not card.image_path.exists()
    assert blobs(tmp_path / "store") == set()
    store.purge(key)


def test_purge_spares_content_that_others_use(store: AdapterStore) -> None:
    """Deleting one name would take the files from under another's."""
    upload(store, tenant="a")
    card = upload(store, tenant="b").card
    store.purge(store.delete("a", "cat"))
    assert store.get("b", "cat") == card
    assert read_image(card.image_path).layout.num_pages == card.num_pages


def test_a_live_version_is_not_purged(store: AdapterStore) -> None:
    """A late message of the engine would delete what is in use."""
    card = upload(store).card
    store.purge(card.key)
    assert store.get(TENANT, "cat") == card


def test_list_pages_by_name(store: AdapterStore) -> None:
    """Names would be missed or seen twice between two pages."""
    for index, name in enumerate(["b", "a", "ab", "ab-1", "abc", "B", "ac"]):
        upload(store, name, files=content(index))
    seen: list[str] = []
    after = ""
    while True:
        page = store.list(TENANT, prefix="a", limit=2, after=after)
        assert page.total == 5
        seen += [card.key.name for card in page.cards]
        after = page.next_after
        if not after:
            break
    assert seen == ["a", "ab", "ab-1", "abc", "ac"]
    assert store.list(TENANT, prefix="zz").cards == ()
    assert store.list(TENANT, prefix="ab%").total == 0
    assert store.count() == 7


def test_restart_keeps_names_and_sweeps_the_rest(tmp_path: Path, resolver: PeftResolver) -> None:
    """Adapters would be lost with the process, or deleted ones fill the disk for ever."""
    root = tmp_path / "store"
    store = make_store(root, resolver)
    upload(store, "old", files=content(1))
    card = upload(store, "old", files=content(2)).card
    upload(store, "gone", files=content(3))
    store.delete(TENANT, "gone")
    opened = store.begin(
        tenant=TENANT, name="x", config_json=make_files()[0], size_bytes=9, sha256="0" * 64
    )
    opened.write(b"123")
    store.close()
    store = make_store(root, resolver)
    assert store.get(TENANT, "old") == card
    store.sweep(())
    assert blobs(root) == {card.key.content_hash}
    assert list((root / "incoming").iterdir()) == []
    assert store.count() == 1
    opened.abort()
    store.close()


def test_a_rank_nobody_wrote_down_is_checked(tmp_path: Path, resolver: PeftResolver) -> None:
    """A config without `r` gets PEFT's 8 and passed a limit of 4."""
    store = make_store(tmp_path / "store", resolver, limits=replace(LIMITS, max_rank=4))
    config = make_config()
    del config["r"]
    with pytest.raises(AdapterTooLarge) as caught:
        upload(store, files=make_files(config, make_tensors(rank=8)))
    assert (caught.value.field, caught.value.value, caught.value.limit) == ("r", 8, 4)
    store.close()


def test_more_pages_than_the_pool_gives_is_refused_before_any_byte(
    tmp_path: Path, resolver: PeftResolver
) -> None:
    """Gigabytes would be sent, and loaded, for an adapter whose config says it cannot fit."""
    store = make_store(tmp_path / "store", resolver, max_pages=1)
    with pytest.raises(AdapterTooLarge) as caught:
        store.begin(
            tenant=TENANT,
            name="cat",
            config_json=make_files(make_config(r=16))[0],
            size_bytes=100,
            sha256="0" * 64,
        )
    assert (caught.value.unit, caught.value.limit) == ("pages", 1)
    assert caught.value.value > 1
    assert list((tmp_path / "store" / "incoming").iterdir()) == []
    store.close()


def test_nothing_is_packed_before_the_layout_is_known(
    tmp_path: Path, resolver: PeftResolver
) -> None:
    """An upload during a start would be packed for no pool."""
    store = AdapterStore(tmp_path / "store", LIMITS, resolver, unix_now_s=FakeWallClock())
    with pytest.raises(NotConfigured):
        upload(store)
    store.close()


def test_retired_versions_outlive_the_store_alone(tmp_path: Path, resolver: PeftResolver) -> None:
    """A store that restarted swept the images that the living engine had still to reload."""
    root = tmp_path / "store"
    store = make_store(root, resolver)
    old, gone = upload(store).card, upload(store, "gone", files=content(1)).card
    new = upload(store, files=content(2)).card
    store.delete(TENANT, "gone")
    store.close()
    store = make_store(root, resolver)
    assert read_image(old.image_path).pages.shape[0] == old.num_pages
    store.sweep([old.key, new.key])
    assert blobs(root) == {old.key.content_hash, new.key.content_hash}
    assert old.image_path.exists() and not gone.image_path.exists()
    store.purge(old.key)
    assert blobs(root) == {new.key.content_hash}
    assert store.get(TENANT, "cat") == new
    store.close()


def test_new_folders_are_on_the_disk_before_what_lies_in_them(
    tmp_path: Path, resolver: PeftResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power failure the whole store would be gone, with all it had acknowledged."""
    synced: list[str] = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    make_store(tmp_path / "a" / "b" / "store", resolver).close()
    assert {str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")} <= set(synced)


def test_a_second_store_on_the_directory_is_kept_out(store: AdapterStore, tmp_path: Path) -> None:
    """It would sweep the uploads of the first as left-overs."""
    with pytest.raises(StoreInUse, match="in use"):
        StoreFiles(tmp_path / "store")
