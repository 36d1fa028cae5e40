"""Where the store's files lie, and when they are safe.

Owns the folders blobs/ (the uploads as they came, by content hash), images/ (derived, by
layout, then content hash) and incoming/ (nothing to rely on), the lock that keeps a second
store out, and fsync. Knows no names and no tensors; called by the store.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .upload import CONFIG_FILE, WEIGHTS_FILE


class StoreInUse(OSError):
    """Another process has this directory open."""


class StoreLock:
    """Makes the directory and holds it until `close` or the end of the process.

    Refuses at once: a store that is still finishing a commit for a server that was killed is
    one to start again after. Taken before anything slow, so that the operator need not wait.
    """

    def __init__(self, root: Path) -> None:
        make_folder(root)
        self._descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise StoreInUse(f"the store {root} is in use by another server") from None

    def close(self) -> None:
        """Harmless when called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class StoreFiles:
    """Open from construction to `close`; the lock is its own then."""

    def __init__(self, root: Path, lock: StoreLock | None = None) -> None:
        self._lock = StoreLock(root) if lock is None else lock
        self.blobs = root / "blobs"
        self.images = root / "images"
        self.incoming = root / "incoming"
        for folder in (self.blobs, self.images, self.incoming):
            folder.mkdir(exist_ok=True)
        self._syncers = ThreadPoolExecutor(4, thread_name_prefix="fsync")
        sync_path(root)

    def close(self) -> None:
        self._syncers.shutdown()
        self._lock.close()

    def sweep(self, contents: set[str]) -> None:
        """Drop what no row refers to: left by a crash."""
        for path in self.incoming.iterdir():
            remove(path)
        for path in self.blobs.iterdir():
            if path.name not in contents:
                remove(path)
        for path in self.images.glob("*/*"):
            if path.name.removesuffix(".safetensors") not in contents:
                remove(path)

    def blob(self, content_hash: str) -> Path:
        return self.blobs / content_hash

    def image(self, spec: str, content_hash: str) -> Path:
        return self.images / spec / f"{content_hash}.safetensors"

    def keep_blob(self, folder: Path, content_hash: str) -> None:
        """Move a finished upload in. It is safe only after `sync_blob`."""
        home = self.blob(content_hash)
        if home.is_symlink():
            remove(home)
        try:
            folder.rename(home)
        except OSError:
            if not home.is_dir():
                raise
            # The same content is there: under another name, or from another tenant. Its files
            # may have been damaged since, and these are known to be whole. They are on the disk
            # before they take the place of any, else a power failure could lose both.
            files = [folder / WEIGHTS_FILE, folder / CONFIG_FILE]
            self._sync_all(files)
            for path in files:
                path.replace(home / path.name)
            remove(folder)

    def sync_blob(self, content_hash: str) -> None:
        """On the disk with all that leads to it. At once, since each fsync waits for the disk."""
        blob = self.blob(content_hash)
        self._sync_all([blob / WEIGHTS_FILE, blob / CONFIG_FILE, blob, self.blobs])

    def keep_image(self, written: Path, spec: str, content_hash: str) -> Path:
        """Move a packed image in, without fsync: it proves itself by its checksum."""
        home = self.image(spec, content_hash)
        home.parent.mkdir(exist_ok=True)
        written.replace(home)
        return home

    def drop_content(self, content_hash: str) -> None:
        remove(self.blob(content_hash))
        for path in self.images.glob(f"*/{content_hash}.safetensors"):
            remove(path)

    def drop_images_but(self, spec: str) -> None:
        """Images of a layout that is no longer in use can be packed again."""
        for folder in self.images.iterdir():
            if folder.name != spec:
                remove(folder)

    def _sync_all(self, paths: Sequence[Path]) -> None:
        list(self._syncers.map(sync_path, paths))


def sync_path(path: Path) -> None:
    """A file's bytes, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """With its parents. Each is on the disk before anything is put into it: what is synced in a
    folder is lost with the folder.
    """
    if path.is_dir():
        return
    if path.parent != path:
        make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_path(path.parent)


def remove(path: Path) -> None:
    """A file, a link or a folder with all in it; what is gone already is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
