"""The store under many hands: commits at once, purges between, any order of operations."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from lorry.adapters.errors import AdapterNotFound
from lorry.adapters.image_file import read_image
from lorry.adapters.key import AdapterKey
from lorry.adapters.resolve import PeftResolver
from lorry.adapters.store import AdapterStore
from lorry.tests.adapters_builders import (
    LIMITS,
    TENANT,
    FakeWallClock,
    blobs,
    content,
    make_spec,
    make_store,
    upload,
)


def test_uploads_at_once_all_arrive(store: AdapterStore) -> None:
    """Two commits of one content, or of one name, would lose one of them."""
    names = [f"n{index % 6}" for index in range(24)]
    with ThreadPoolExecutor(6) as threads:
        stored = list(
            threads.map(
                lambda item: upload(store, item[1], files=content(item[0] % 3)), enumerate(names)
            )
        )
    assert store.count() == 6
    for name in set(names):
        card = store.get(TENANT, name)
        assert read_image(card.image_path).layout.num_pages == card.num_pages
    keys = [result.card.key for result in stored if result.created]
    assert len(keys) == len(set(keys))


def test_purge_spares_a_commit_under_way(tmp_path: Path, resolver: PeftResolver) -> None:
    """The files of the same content would go between their move and their row."""
    moved, purged = threading.Event(), threading.Event()

    def at(step: str) -> None:
        if step == "synced" and threading.current_thread().name.startswith("late"):
            moved.set()
            assert purged.wait(10)

    store = make_store(tmp_path / "store", resolver, at=at)
    upload(store, "first")
    with ThreadPoolExecutor(1, thread_name_prefix="late") as threads:
        late = threads.submit(upload, store, "second")
        assert moved.wait(10)
        store.purge(store.delete(TENANT, "first"))
        purged.set()
        card = late.result().card
    assert read_image(card.image_path).layout.num_pages == card.num_pages
    assert card.key.content_hash in blobs(tmp_path / "store")
    store.close()


def test_a_purge_between_look_and_claim_is_seen(tmp_path: Path, resolver: PeftResolver) -> None:
    """The files were gone when the card was made: the client heard of a bug of ours."""

    class Interrupted(AdapterStore):
        interrupt = False

        def _need_row(self, tenant, name):  # type: ignore[no-untyped-def]
            row = super()._need_row(tenant, name)
            if self.interrupt:
                self.interrupt = False
                self.purge(self.delete(tenant, name))
                if name == "again":
                    upload(self, name, files=content(1))
            return row

    root = tmp_path / "store"
    store = Interrupted(root, LIMITS, resolver, unix_now_s=FakeWallClock())
    store.configure(make_spec())
    for name in ("once", "again"):
        upload(store, name)
    store.interrupt = True
    with pytest.raises(AdapterNotFound):
        store.get(TENANT, "once")
    store.interrupt = True
    card = store.get(TENANT, "again")
    assert card.key.version == 2
    assert read_image(card.image_path).layout.num_pages == card.num_pages
    store.close()


def test_many_registrations_share_one_injection(tmp_path: Path, resolver: PeftResolver) -> None:
    """Thousands of adapters would take minutes to register."""
    asked: list[object] = []

    class Counting(PeftResolver):
        def _inject(self, applied):  # type: ignore[no-untyped-def]
            asked.append(applied)
            return super()._inject(applied)

    counting = Counting(resolver._model)
    store = make_store(tmp_path / "store", counting)
    for index in range(20):
        upload(store, f"n{index}", files=content(index))
    assert len(asked) == 1
    store.close()


class StoreMachine(RuleBasedStateMachine):
    """The store against a dict of names and a set of keys that may still be loaded."""

    names = st.sampled_from(["a", "b"])
    seeds = st.integers(0, 2)

    def __init__(self, root: Path, resolver: PeftResolver) -> None:
        super().__init__()
        self.root, self.resolver = root, resolver
        self.store = make_store(root, resolver)
        self.live: dict[str, AdapterKey] = {}
        self.last: dict[str, int] = {}
        self.retired: list[AdapterKey] = []

    @rule(name=names, seed=seeds)
    def upload(self, name: str, seed: int) -> None:
        stored = upload(self.store, name, files=content(seed))
        old = self.live.get(name)
        if old is not None and old.content_hash == stored.card.key.content_hash:
            assert (stored.card.key, stored.created) == (old, False)
            return
        assert stored.replaced == old
        assert stored.card.key.version == self.last.get(name, 0) + 1
        if old is not None:
            self.retired.append(old)
        self.last[name] = stored.card.key.version
        self.live[name] = stored.card.key

    @rule(name=names)
    def delete(self, name: str) -> None:
        if name in self.live:
            assert self.store.delete(TENANT, name) == self.live[name]
            self.retired.append(self.live.pop(name))
        else:
            with pytest.raises(AdapterNotFound):
                self.store.delete(TENANT, name)

    @rule()
    def purge(self) -> None:
        if self.retired:
            self.store.purge(self.retired.pop(0))

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = make_store(self.root, self.resolver)

    @rule()
    def sweep(self) -> None:
        self.store.sweep(self.retired[1:])
        del self.retired[:1]

    @invariant()
    def names_and_files_agree(self) -> None:
        assert {card.key.name: card.key for card in self.store.list(TENANT).cards} == self.live
        wanted = {key.content_hash for key in [*self.live.values(), *self.retired]}
        assert blobs(self.root) == wanted
        assert {p.stem for p in (self.root / "images").glob("*/*")} <= wanted

    def teardown(self) -> None:
        self.store.close()


def test_any_order_of_operations(
    tmp_path_factory: pytest.TempPathFactory, resolver: PeftResolver
) -> None:
    """Some order of upload, delete, purge and restart would lose or keep the wrong files."""
    run_state_machine_as_test(
        lambda: StoreMachine(tmp_path_factory.mktemp("machine"), resolver),
        settings=settings(max_examples=8, stateful_step_count=15, deadline=None, derandomize=True),
    )
