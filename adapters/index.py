"""The table of adapters: which content each name means, now and until its last user is gone.

Owns the SQLite file (write-ahead log, synchronous=FULL: a returned call is on the disk) and
the versions, which are never given twice. Knows no files but its own. Called by the store from
any thread; one connection behind one lock.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Collection, Generator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

from .key import AdapterKey

SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE names (
    tenant TEXT NOT NULL, name TEXT NOT NULL, last_version INTEGER NOT NULL,
    PRIMARY KEY (tenant, name)
) WITHOUT ROWID;
CREATE TABLE adapters (
    tenant TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL,
    content_hash TEXT NOT NULL, size_bytes INTEGER NOT NULL, created_unix_s REAL NOT NULL,
    base_given TEXT NOT NULL, base_served TEXT NOT NULL, live INTEGER NOT NULL,
    PRIMARY KEY (tenant, name, version)
) WITHOUT ROWID;
CREATE UNIQUE INDEX live_names ON adapters (tenant, name) WHERE live;
CREATE INDEX adapters_by_content ON adapters (content_hash);
CREATE TABLE images (
    content_hash TEXT NOT NULL, spec TEXT NOT NULL, facts TEXT NOT NULL,
    PRIMARY KEY (content_hash, spec)
) WITHOUT ROWID;
"""
_COLUMNS = (
    "tenant, name, version, content_hash, size_bytes, created_unix_s, base_given, base_served"
)
_DROP = "DELETE FROM adapters WHERE tenant = ? AND name = ? AND version = ? AND NOT live"


@dataclass(frozen=True, slots=True)
class Row:
    """One stored adapter."""

    key: AdapterKey
    size_bytes: int
    created_unix_s: float
    base_given: str  # fingerprint of the base the client says it is for; empty: not said
    base_served: str  # fingerprint of the base served at its last upload


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known of one content's image under one layout."""

    num_pages: int
    weight_bytes: int
    max_rank: int
    target_modules: tuple[str, ...]
    rounding_error: float
    notes: tuple[str, ...]
    # The base's weights that those in the file were found equal to (ImageSpec.base_fingerprint);
    # empty: it brought none.
    base_seen: str = ""


@dataclass(frozen=True, slots=True)
class Added:
    row: Row
    replaced: AdapterKey | None
    created: bool  # False: the name meant this very content already


class Index:
    """The form of another version is refused, never migrated in silence."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found == 0:
            self._db.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;"
            )
        elif found != SCHEMA_VERSION:
            self._db.close()
            raise ValueError(
                f"{path} has the form {found} of the index; this version reads {SCHEMA_VERSION}"
            )

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def add(
        self,
        *,
        tenant: str,
        name: str,
        content_hash: str,
        size_bytes: int,
        created_unix_s: float,
        base_given: str,
        base_served: str,
        spec: str,
        facts: ImageFacts,
    ) -> Added:
        """Make `name` mean this content from now on; the version it meant before is retired.

        The same content again is a new word on its base, and nothing else.
        """
        with self._transaction() as db:
            old = self._live(tenant, name)
            _put_facts(db, content_hash, spec, facts)
            if old is not None and old.key.content_hash == content_hash:
                db.execute(
                    "UPDATE adapters SET base_given = ?, base_served = ? "
                    "WHERE live AND tenant = ? AND name = ?",
                    (base_given, base_served, tenant, name),
                )
                row = replace(old, base_given=base_given, base_served=base_served)
                return Added(row, None, created=False)
            (version,) = db.execute(
                "INSERT INTO names VALUES (?, ?, 1) ON CONFLICT DO UPDATE "
                "SET last_version = last_version + 1 RETURNING last_version",
                (tenant, name),
            ).fetchone()
            self._retire(tenant, name)
            row = Row(
                AdapterKey(tenant, name, version, content_hash),
                size_bytes,
                created_unix_s,
                base_given,
                base_served,
            )
            db.execute(
                f"INSERT INTO adapters ({_COLUMNS}, live) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1)",
                (*astuple(row.key), *astuple(row)[1:]),
            )
            return Added(row, None if old is None else old.key, created=True)

    def live(self, tenant: str, name: str) -> Row | None:
        with self._lock:
            return self._live(tenant, name)

    def page(self, tenant: str, *, prefix: str, after: str, limit: int) -> list[Row]:
        """Live rows by name, greater than `after`."""
        with self._lock:
            found = self._db.execute(
                f"SELECT {_COLUMNS} FROM adapters WHERE live AND tenant = ? AND name > ? "
                "AND name >= ? AND name < ? ORDER BY name LIMIT ?",
                (tenant, after, prefix, _past(prefix), limit),
            ).fetchall()
        return [_row(values) for values in found]

    def count(self, tenant: str | None = None, *, prefix: str = "") -> int:
        """Live adapters; of all tenants when none is named."""
        query = "SELECT count(*) FROM adapters WHERE live AND name >= ? AND name < ?"
        values: tuple[str, ...] = (prefix, _past(prefix))
        if tenant is not None:
            query, values = f"{query} AND tenant = ?", (*values, tenant)
        with self._lock:
            (found,) = self._db.execute(query, values).fetchone()
        return int(found)

    def retire(self, tenant: str, name: str) -> AdapterKey | None:
        """The name means nothing from now on; its content stays until `drop`."""
        with self._transaction():
            old = self._live(tenant, name)
            self._retire(tenant, name)
        return None if old is None else old.key

    def drop(self, key: AdapterKey) -> bool:
        """Forget a retired version; False when there is none such."""
        with self._transaction() as db:
            return db.execute(_DROP, (key.tenant, key.name, key.version)).rowcount == 1

    def drop_retired(self, keep: Collection[AdapterKey]) -> list[AdapterKey]:
        """Forget every retired version but these; the forgotten ones."""
        with self._transaction() as db:
            found = db.execute(f"SELECT {_COLUMNS} FROM adapters WHERE NOT live").fetchall()
            gone = [key for key in (_row(values).key for values in found) if key not in keep]
            db.executemany(_DROP, [(key.tenant, key.name, key.version) for key in gone])
        return gone

    def drop_stray_facts(self) -> None:
        """Of contents no version has: a crash came between the one and the other."""
        with self._transaction() as db:
            db.execute(
                "DELETE FROM images WHERE content_hash NOT IN (SELECT content_hash FROM adapters)"
            )

    def is_referenced(self, content_hash: str) -> bool:
        """Whether a live or retired version has this content."""
        with self._lock:
            query = "SELECT 1 FROM adapters WHERE content_hash = ? LIMIT 1"
            return self._db.execute(query, (content_hash,)).fetchone() is not None

    def contents(self) -> set[str]:
        with self._lock:
            return {value for (value,) in self._db.execute("SELECT content_hash FROM adapters")}

    def facts(self, content_hash: str, spec: str) -> ImageFacts | None:
        with self._lock:
            found = self._db.execute(
                "SELECT facts FROM images WHERE content_hash = ? AND spec = ?",
                (content_hash, spec),
            ).fetchone()
        return None if found is None else _read_facts(found[0])

    def put_facts(self, content_hash: str, spec: str, facts: ImageFacts) -> None:
        with self._transaction() as db:
            _put_facts(db, content_hash, spec, facts)

    def drop_facts(self, *, content_hash: str | None = None, keep_spec: str | None = None) -> None:
        """Of one content under every layout, or of every layout but one."""
        with self._transaction() as db:
            if content_hash is not None:
                db.execute("DELETE FROM images WHERE content_hash = ?", (content_hash,))
            if keep_spec is not None:
                db.execute("DELETE FROM images WHERE spec != ?", (keep_spec,))

    def _live(self, tenant: str, name: str) -> Row | None:
        query = f"SELECT {_COLUMNS} FROM adapters WHERE live AND tenant = ? AND name = ?"
        found = self._db.execute(query, (tenant, name)).fetchone()
        return None if found is None else _row(found)

    def _retire(self, tenant: str, name: str) -> None:
        self._db.execute(
            "UPDATE adapters SET live = 0 WHERE live AND tenant = ? AND name = ?", (tenant, name)
        )

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


def _row(values: tuple[str, str, int, str, int, float, str, str]) -> Row:
    return Row(AdapterKey(*values[:4]), *values[4:])


def _past(prefix: str) -> str:
    """The first text after all names that begin with `prefix`: names are letters below DEL."""
    return prefix + "\x7f"


def _put_facts(db: sqlite3.Connection, content_hash: str, spec: str, facts: ImageFacts) -> None:
    db.execute(
        "INSERT OR REPLACE INTO images VALUES (?, ?, ?)",
        (content_hash, spec, json.dumps(asdict(facts))),
    )


def _read_facts(text: str) -> ImageFacts:
    value = json.loads(text)
    value["target_modules"] = tuple(value["target_modules"])
    value["notes"] = tuple(value["notes"])
    return ImageFacts(**value)
