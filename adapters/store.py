"""The durable store: what was acknowledged is there after any crash, what was not is nowhere.

Owns the order of a commit: bytes checked, files read and packed, original moved to its content
hash and synced, and last the row that makes it visible. Which content may go is decided here:
nothing a row or a commit under way refers to. Does not know who is resident or running; called
by server/store_worker.py from its loop and its commit threads.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from pathlib import Path

from .cards import Setup, check_base, check_usable, listed_card, make_card
from .errors import (
    AdapterLoadFailed,
    AdapterNotFound,
    NotConfigured,
)
from .format import read_config
from .image import ImageSpec
from .image_file import ImageDamaged, read_image
from .index import ImageFacts, Index, Row
from .intake import AdapterPlan, check_announcement, pack_adapter, plan_adapter
from .key import AdapterCard, AdapterKey, CardPage, Stored
from .limits import StoreLimits
from .names import check_name, shown
from .resolve import PeftResolver
from .store_files import StoreFiles, StoreLock, remove
from .upload import CONFIG_FILE, WEIGHTS_FILE, Upload, hash_of

MAX_PAGE_ROWS = 1000


class AdapterStore:
    """Every method may be called from any thread, but each Upload from one at a time.

    `at` is told the name of each step of a commit just after it: tests stop the process there.
    """

    def __init__(
        self,
        root: Path,
        limits: StoreLimits,
        resolver: PeftResolver,
        *,
        unix_now_s: Callable[[], float],
        at: Callable[[str], None] = lambda step: None,
        lock: StoreLock | None = None,
    ) -> None:
        self._limits = limits
        self._resolver = resolver
        self._unix_now_s = unix_now_s
        self._at = at
        self._setup: Setup | None = None
        self._lock = threading.Lock()
        self._claims: Counter[str] = Counter()  # contents that a thread is working on
        self._proven: set[str] = set()  # contents whose image file this process wrote or checked
        self._numbers = itertools.count()
        self._files = StoreFiles(root, lock)
        try:
            self._index = Index(root / "index.sqlite")
        except BaseException:
            self._files.close()
            raise
        self._index.drop_stray_facts()
        self._files.sweep(self._index.contents())

    def close(self) -> None:
        self._index.close()
        self._files.close()

    def configure(
        self, spec: ImageSpec, *, base_fingerprint: str = "", max_pages: int | None = None
    ) -> None:
        """Pack for this layout from now on; images of other layouts go, being only a cache."""
        setup = Setup(spec, spec.fingerprint, base_fingerprint, self._limits, max_pages)
        if setup == self._setup:
            return
        with self._lock:
            self._proven.clear()
            self._setup = setup
        self._index.drop_facts(keep_spec=setup.layout)
        self._files.drop_images_but(setup.layout)

    def sweep(self, keep: Collection[AdapterKey]) -> None:
        """Forget every deleted or replaced version but these, which may still be running.

        Not done by opening: the store may have died alone, and the engine lives on.
        """
        gone = self._index.drop_retired(frozenset(keep))
        with self._lock:
            for key in gone:
                self._drop_if_unused(key.content_hash)

    def begin(
        self,
        *,
        tenant: str,
        name: str,
        config_json: bytes,
        size_bytes: int,
        sha256: str,
        base_fingerprint: str = "",
    ) -> Upload:
        """An upload to write to, once all that can be judged before its bytes has been: the
        modules, ranks and pages its config means, too.

        Raises:
            AdapterRefused, AdapterTooLarge: naming the field.
            NotConfigured: it could not be packed.
        """
        setup = self._need_setup()
        check_name(name)
        check_announcement(size_bytes, sha256, self._limits)
        check_base(base_fingerprint, setup)
        self._plan(setup, config_json)
        return Upload(
            self._files.incoming / f"upload-{next(self._numbers)}",
            tenant=tenant,
            name=name,
            config_json=config_json,
            size_bytes=size_bytes,
            sha256=sha256,
            base_fingerprint=base_fingerprint,
        )

    def commit(self, upload: Upload) -> Stored:
        """Durable when this returns; invisible when it raises.

        Raises:
            UploadCorrupt, AdapterRefused, AdapterTooLarge: naming the field.
        """
        try:
            content_hash = upload.finish()
            self._at("received")
            with self._claim(content_hash):
                return self._store(upload, content_hash)
        finally:
            upload.abort()

    def get(self, tenant: str, name: str) -> AdapterCard:
        """The card of what `name` means now; its image is there and whole.

        Raises:
            AdapterNotFound: no such name in this tenant.
            AdapterRefused, AdapterTooLarge: it was stored for another base or under other
                limits, and does not fit this one or these.
            AdapterLoadFailed: the files it was uploaded with are lost or damaged.
        """
        while True:
            row = self._need_row(tenant, name)
            with self._claim(row.key.content_hash):
                # Before the claim it may have been deleted or replaced, and its files purged.
                if self._need_row(tenant, name) == row:
                    return self._ensure_card(row)

    def ready(self, tenant: str, name: str) -> AdapterCard | None:
        """Like `get`, but None where that would have to read or pack an image first."""
        setup = self._need_setup()
        row = self._need_row(tenant, name)
        if not self._is_proven(setup, row.key.content_hash):
            return None
        facts = self._facts(setup, row.key.content_hash)
        return None if facts is None else self._card(row, setup, facts)

    def list(
        self, tenant: str, *, prefix: str = "", limit: int = MAX_PAGE_ROWS, after: str = ""
    ) -> CardPage:
        """By name, from what is known: no image is read or packed for it.

        One that is not packed yet, or cannot be used, is listed with a note that says so.
        """
        setup = self._need_setup()
        limit = min(max(limit, 1), MAX_PAGE_ROWS)
        rows = self._index.page(tenant, prefix=prefix, after=after, limit=limit + 1)
        more = len(rows) > limit
        cards = tuple(
            listed_card(
                row,
                setup,
                self._facts(setup, row.key.content_hash),
                self._image(setup, row.key.content_hash),
            )
            for row in rows[:limit]
        )
        total = self._index.count(tenant, prefix=prefix)
        return CardPage(cards, cards[-1].key.name if more else "", total)

    def count(self, tenant: str | None = None) -> int:
        return self._index.count(tenant)

    def delete(self, tenant: str, name: str) -> AdapterKey:
        """The name is free at once; the files stay for running requests until `purge`.

        Raises:
            AdapterNotFound: no such name in this tenant.
        """
        key = self._index.retire(tenant, name)
        if key is None:
            raise _not_found(name)
        return key

    def purge(self, key: AdapterKey) -> None:
        """No running request needs this deleted or replaced version any more."""
        if not self._index.drop(key):
            return
        with self._lock:
            self._drop_if_unused(key.content_hash)

    def unproven(self, key: AdapterKey) -> None:
        """The engine could not load this image: read it again, or pack it, at the next look."""
        with self._lock:
            self._proven.discard(key.content_hash)

    def _store(self, upload: Upload, content_hash: str) -> Stored:
        setup = self._need_setup()
        facts = self._facts(setup, content_hash)
        if facts is None or not self._is_proven(setup, content_hash):
            facts = self._pack(setup, content_hash, upload.config_json, upload.weights_path)
        check_usable(upload.base_fingerprint, facts, setup)
        self._at("packed")
        self._files.keep_blob(upload.folder, content_hash)
        self._at("moved")
        self._files.sync_blob(content_hash)
        self._at("synced")
        added = self._index.add(
            tenant=upload.tenant,
            name=upload.name,
            content_hash=content_hash,
            size_bytes=upload.size_bytes,
            created_unix_s=self._unix_now_s(),
            base_given=upload.base_fingerprint,
            base_served=setup.base,
            spec=setup.layout,
            facts=facts,
        )
        self._at("committed")
        card = make_card(added.row, setup, facts, self._image(setup, content_hash))
        return Stored(card, added.replaced, added.created)

    def _pack(
        self, setup: Setup, content_hash: str, config_json: bytes, weights_path: Path
    ) -> ImageFacts:
        plan = self._plan(setup, config_json)
        draft = self._files.incoming / f"image-{next(self._numbers)}"
        try:
            facts = pack_adapter(plan, weights_path, self._resolver, image_path=draft)
            self._files.keep_image(draft, setup.layout, content_hash)
        finally:
            remove(draft)
        with self._lock:
            if setup is self._setup:
                self._proven.add(content_hash)
        return facts

    def _plan(self, setup: Setup, config_json: bytes) -> AdapterPlan:
        config = read_config(config_json, self._limits)
        return plan_adapter(
            config, setup.spec, self._resolver, self._limits, max_pages=setup.max_pages
        )

    def _ensure_card(self, row: Row) -> AdapterCard:
        """The caller holds a claim."""
        setup = self._need_setup()
        check_base(row.base_given, setup)
        facts = self._facts(setup, row.key.content_hash)
        if facts is None or not self._prove(setup, row.key.content_hash):
            facts = self._pack_again(setup, row.key)
        return self._card(row, setup, facts)

    def _card(self, row: Row, setup: Setup, facts: ImageFacts) -> AdapterCard:
        check_usable(row.base_given, facts, setup)
        return make_card(row, setup, facts, self._image(setup, row.key.content_hash))

    def _is_proven(self, setup: Setup, content_hash: str) -> bool:
        """Whether this process knows the image, and it has not been deleted from outside."""
        return content_hash in self._proven and self._image(setup, content_hash).is_file()

    def _prove(self, setup: Setup, content_hash: str) -> bool:
        """Whether the image file is whole; read once, unless it becomes `unproven`."""
        if self._is_proven(setup, content_hash):
            return True
        try:
            read_image(self._image(setup, content_hash))
        except ImageDamaged:
            return False
        with self._lock:
            if setup is self._setup:
                self._proven.add(content_hash)
        return True

    def _pack_again(self, setup: Setup, key: AdapterKey) -> ImageFacts:
        blob = self._files.blob(key.content_hash)
        try:
            found = hash_of(blob)
            config_json = (blob / CONFIG_FILE).read_bytes()
        except OSError as error:
            raise AdapterLoadFailed(
                f"adapter {key} cannot be read from the store: {error.strerror}; upload it again",
                name=key.name,
            ) from error
        # Damaged weights can be as finite as good ones, and would be served.
        if found != key.content_hash:
            raise AdapterLoadFailed(
                f"the files kept of adapter {key} are no longer those that were uploaded; upload "
                "them again",
                name=key.name,
            )
        facts = self._pack(setup, key.content_hash, config_json, blob / WEIGHTS_FILE)
        self._index.put_facts(key.content_hash, setup.layout, facts)
        return facts

    def _facts(self, setup: Setup, content_hash: str) -> ImageFacts | None:
        """None too when it brought base weights, and they were compared with another base's."""
        facts = self._index.facts(content_hash, setup.layout)
        if facts and facts.base_seen and facts.base_seen != setup.spec.base_fingerprint:
            return None
        return facts

    def _image(self, setup: Setup, content_hash: str) -> Path:
        return self._files.image(setup.layout, content_hash)

    def _need_setup(self) -> Setup:
        if self._setup is None:
            raise NotConfigured
        return self._setup

    def _need_row(self, tenant: str, name: str) -> Row:
        row = self._index.live(tenant, name)
        if row is None:
            raise _not_found(name)
        return row

    @contextmanager
    def _claim(self, content_hash: str) -> Generator[None]:
        """Keep a content's files while they are worked on, though no row may name them yet."""
        with self._lock:
            self._claims[content_hash] += 1
        try:
            yield
        finally:
            with self._lock:
                self._claims[content_hash] -= 1
                self._drop_if_unused(content_hash)

    def _drop_if_unused(self, content_hash: str) -> None:
        """The caller holds the lock."""
        if self._claims[content_hash]:
            return
        del self._claims[content_hash]
        if self._index.is_referenced(content_hash):
            return
        self._proven.discard(content_hash)
        if self._files.blob(content_hash).exists():
            self._index.drop_facts(content_hash=content_hash)
        self._files.drop_content(content_hash)


def _not_found(name: str) -> AdapterNotFound:
    return AdapterNotFound(f"there is no adapter {shown(name)}", name=name)
