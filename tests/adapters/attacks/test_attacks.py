"""Every hostile upload is refused with a sentence that names the place, and leaves nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from lorry.adapters.errors import AdapterError, AdapterRefused, AdapterTooLarge, UploadCorrupt
from lorry.adapters.store import AdapterStore
from lorry.tests.adapters.attacks.files import ATTACKS, Attack
from lorry.tests.adapters_builders import TENANT, make_files, make_spec, upload

BAD_NAMES = [
    "",
    ".",
    "..",
    "../cat",
    "a/b",
    "/etc/passwd",
    "a\0b",
    "a\nb",
    "cat\n",
    "-rf",
    ".hidden",
    "ä",
    "a b",
    "a" * 129,
    "C:\\cat",
]


def files_below(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name.replace(" ", "-"))
def test_hostile_files_are_refused_by_field(
    store: AdapterStore, tmp_path: Path, attack: Attack
) -> None:
    """Read further, the file would crash the store, fill its memory or give wrong tokens."""
    with pytest.raises((AdapterRefused, AdapterTooLarge), match=attack.words) as caught:
        upload(store, files=attack.make())
    assert caught.value.field == attack.field
    assert store.count() == 0
    for folder in ("blobs", "images", "incoming"):
        assert files_below(tmp_path / "store" / folder) == []


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_a_name_that_could_be_a_path_is_refused(
    store: AdapterStore, tmp_path: Path, name: str
) -> None:
    """A file outside the store could be written or shown."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AdapterRefused) as caught:
        upload(store, name)
    assert caught.value.field == "name"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["a", "a" * 128, "foo-2", "v1.5_x", "_x", "7b"])
def test_plain_names_are_taken(store: AdapterStore, name: str) -> None:
    """A rule stricter than it says would refuse names in use."""
    assert upload(store, name).card.key.name == name


def test_cut_short_is_refused(store: AdapterStore) -> None:
    """Half a file would be kept as a whole one."""
    config, weights = make_files()
    with pytest.raises(UploadCorrupt, match=f"{len(weights)}") as caught:
        upload(store, files=(config, weights[:-1]), size_bytes=len(weights))
    assert caught.value.field == "size_bytes"


def test_more_than_announced_is_refused_before_it_is_written(
    store: AdapterStore, tmp_path: Path
) -> None:
    """A client that announces 1 byte could fill the disk."""
    opened = store.begin(
        tenant=TENANT, name="cat", config_json=make_files()[0], size_bytes=100, sha256="0" * 64
    )
    opened.write(bytes(100))
    with pytest.raises(UploadCorrupt, match="100") as caught:
        opened.write(bytes(1 << 20))
    assert caught.value.field == "size_bytes"
    assert all(path.stat().st_size <= 100 for path in files_below(tmp_path / "store/incoming"))
    opened.abort()
    assert files_below(tmp_path / "store" / "incoming") == []


def test_other_bytes_than_announced_are_refused(store: AdapterStore) -> None:
    """Bytes changed on the way would be served."""
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(UploadCorrupt, match=other) as caught:
        upload(store, sha256=other)
    assert caught.value.field == "sha256"


@pytest.mark.parametrize(
    ("size_bytes", "sha256", "field"),
    [
        (0, "0" * 64, "size_bytes"),
        (-1, "0" * 64, "size_bytes"),
        ((1 << 20) + 1, "0" * 64, "size_bytes"),
        (1 << 80, "0" * 64, "size_bytes"),
        (100, "0" * 63, "sha256"),
        (100, "x" * 64, "sha256"),
    ],
)
def test_an_announcement_that_cannot_be_is_refused(
    store: AdapterStore, size_bytes: int, sha256: str, field: str
) -> None:
    """The limit would be felt only once the disk is full."""
    with pytest.raises(AdapterError) as caught:
        upload(store, size_bytes=size_bytes, sha256=sha256)
    assert caught.value.field == field


def test_another_base_is_refused(store: AdapterStore) -> None:
    """An adapter of another base fits by shape and answers nonsense."""
    store.configure(make_spec(), base_fingerprint="bb")
    with pytest.raises(AdapterRefused, match=r"'aa'.*'bb'") as caught:
        store.begin(
            tenant=TENANT,
            name="cat",
            config_json=make_files()[0],
            size_bytes=100,
            sha256="0" * 64,
            base_fingerprint="aa",
        )
    assert caught.value.field == "base_fingerprint"


def test_links_in_the_store_are_not_followed(store: AdapterStore, tmp_path: Path) -> None:
    """Sweeping or purging through a link would delete what is outside."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    stored = upload(store)
    blob = tmp_path / "store" / "blobs" / stored.card.key.content_hash
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(outside)
    store.purge(store.delete(TENANT, "cat"))
    assert not blob.exists()
    assert (outside / "precious").read_text() == "x"
