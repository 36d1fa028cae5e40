"""The store's process: one pipe to the front end, one AdapterStore behind it.

Owns the open uploads and which work is slow: reading or packing an image for a card, and lists,
run on a few threads; what uploads cost runs on others, so that a bad one keeps no request
waiting. Takes the store's lock before torch is imported: who is refused hears it at once. Ends
when the pipe does. Knows no gRPC and no engine; spoken to in `store_messages`.
"""

from __future__ import annotations

import logging
import signal
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from ..adapters.errors import AdapterError, NotConfigured
from ..adapters.limits import StoreLimits
from ..adapters.store_files import StoreInUse, StoreLock
from ..adapters.upload import Upload
from .clock import unix_now_s
from .errors import (
    ConfigError,
    EngineUnavailable,
    InternalError,
    LorryError,
    ModelRefused,
    Overloaded,
)
from .store_messages import (
    AbortUpload,
    BeginUpload,
    CommitUpload,
    Configure,
    CountCards,
    DeleteAdapter,
    Failed,
    GetCard,
    ListCards,
    Message,
    Ok,
    PurgeAdapter,
    Request,
    Response,
    StoreFailed,
    StoreReady,
    Sweep,
    Unproven,
    UploadChunk,
    Value,
)

if TYPE_CHECKING:
    from ..adapters.resolve import PeftResolver
    from ..adapters.store import AdapterStore

# Mostly waiting for the disk, or in torch without the interpreter's lock.
READ_THREADS = 4
UPLOAD_THREADS = 4
RETRY_S = 1.0
_LOG = logging.getLogger(__name__)


def run_store_worker(conn: Connection, root: Path, model_dir: str, limits: StoreLimits) -> None:
    """The process's whole life. `model_dir`: what the engine loads; only its shape is read."""
    if threading.current_thread() is threading.main_thread():
        # A Ctrl-C or a service manager reaches the whole group; the front end still has uploads
        # to finish while it drains, and ends us by closing the pipe.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        store = _open(root, model_dir, limits)
    except LorryError as error:
        _say(conn, StoreFailed(error))
        return
    except Exception as error:
        _LOG.exception("the store cannot open")
        reason = f"{type(error).__name__} while the store opened: {error}"
        _say(conn, StoreFailed(InternalError(reason)))
        return
    try:
        _say(conn, StoreReady(store.count()))
        StoreWorker(conn, store, max_open_uploads=limits.max_open_uploads).serve()
    finally:
        store.close()


class StoreWorker:
    """Reads requests in order; answers each exactly once."""

    def __init__(self, conn: Connection, store: AdapterStore, *, max_open_uploads: int) -> None:
        self._conn = conn
        self._store = store
        self._max_open_uploads = max_open_uploads
        # None: it is being judged, and not open to bytes yet.
        self._uploads: dict[int, Upload | None] = {}
        self._uploads_lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._reads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="store-read")
        self._writes = ThreadPoolExecutor(UPLOAD_THREADS, thread_name_prefix="store-upload")

    def serve(self) -> None:
        """Until the pipe ends; commits under way are finished, open uploads dropped."""
        try:
            while True:
                try:
                    request: Request = self._conn.recv()
                except (EOFError, OSError):
                    return
                self._handle(request)
        finally:
            # What is under way ends well; what only waits was asked by nobody who still listens.
            self._reads.shutdown(wait=True, cancel_futures=True)
            self._writes.shutdown(wait=True, cancel_futures=True)
            for upload in self._uploads.values():
                if upload is not None:
                    upload.abort()

    def _handle(self, request: Request) -> None:
        match request:
            case BeginUpload():
                found = self._attempt(request.id, lambda: self._reserve(request))
                if isinstance(found, Failed):
                    self._send(found)
                else:
                    self._later(self._writes, request.id, lambda: self._begin(request))
            case CommitUpload(upload_id=upload_id):
                upload = self._take(upload_id)
                self._later(self._writes, request.id, lambda: self._commit(upload, upload_id))
            case ListCards():
                self._later(self._reads, request.id, lambda: self._list(request))
            case GetCard():
                self._get(request)
            case _:
                self._send(self._attempt(request.id, lambda: self._do(request)))

    def _get(self, request: GetCard) -> None:
        """At once when its image is known to be whole: every request for an adapter asks."""
        found = self._attempt(request.id, lambda: self._store.ready(request.tenant, request.name))
        if found == Ok(request.id, None):
            work = partial(self._store.get, request.tenant, request.name)
            self._later(self._reads, request.id, work)
        else:
            self._send(found)

    def _do(self, request: Request) -> Value:
        """The quick requests."""
        match request:
            case Configure():
                return self._store.configure(
                    request.image_spec,
                    base_fingerprint=request.fingerprint,
                    max_pages=request.max_pages,
                )
            case UploadChunk():
                return self._write(request)
            case AbortUpload():
                upload = self._take(request.upload_id)
                return None if upload is None else upload.abort()
            case CountCards():
                return self._store.count(request.tenant)
            case DeleteAdapter():
                return self._store.delete(request.tenant, request.name)
            case PurgeAdapter():
                return self._store.purge(request.key)
            case Unproven():
                return self._store.unproven(request.key)
            case Sweep():
                return self._store.sweep(request.keep)
            case _:
                raise TypeError(f"no quick answer to {type(request).__name__}")

    def _reserve(self, request: BeginUpload) -> None:
        with self._uploads_lock:
            if len(self._uploads) >= self._max_open_uploads:
                raise Overloaded(
                    f"{len(self._uploads)} uploads are open, the limit is {self._max_open_uploads}",
                    field="uploads",
                )
            self._uploads[request.id] = None

    def _begin(self, request: BeginUpload) -> int:
        try:
            upload = self._store.begin(
                tenant=request.tenant,
                name=request.name,
                config_json=request.config_json,
                size_bytes=request.size_bytes,
                sha256=request.sha256,
                base_fingerprint=request.base_fingerprint,
            )
        except BaseException:
            self._take(request.id)
            raise
        with self._uploads_lock:
            wanted = request.id in self._uploads
            if wanted:
                self._uploads[request.id] = upload
        if not wanted:  # aborted meanwhile
            upload.abort()
        return request.id

    def _write(self, request: UploadChunk) -> None:
        with self._uploads_lock:
            upload = self._uploads.get(request.upload_id)
        upload = _opened(upload, request.upload_id)
        try:
            upload.write(request.data)
        except BaseException:
            self._take(request.upload_id)
            upload.abort()
            raise

    def _commit(self, upload: Upload | None, upload_id: int) -> Value:
        return self._store.commit(_opened(upload, upload_id))

    def _take(self, upload_id: int) -> Upload | None:
        with self._uploads_lock:
            return self._uploads.pop(upload_id, None)

    def _list(self, request: ListCards) -> Value:
        return self._store.list(
            request.tenant, prefix=request.prefix, limit=request.limit, after=request.after
        )

    def _later(
        self, threads: ThreadPoolExecutor, request_id: int, work: Callable[[], Value]
    ) -> None:
        threads.submit(lambda: self._send(self._attempt(request_id, work)))

    def _send(self, message: Response) -> None:
        with self._send_lock:
            _say(self._conn, message)

    def _attempt(self, request_id: int, work: Callable[[], Value]) -> Response:
        try:
            return Ok(request_id, work())
        except (AdapterError, LorryError) as error:
            return Failed(request_id, error)
        except NotConfigured:
            return Failed(request_id, EngineUnavailable("the engine is not up yet"))
        except (OSError, sqlite3.Error) as error:
            _LOG.error("the store's disk failed: %s", error)
            # An OSError's own text has the path in it, which is no client's business.
            reason = error.strerror if isinstance(error, OSError) else error
            return Failed(request_id, InternalError(f"the store's disk failed: {reason}"))
        except Exception as error:
            _LOG.exception("a bug in the store")
            return Failed(request_id, InternalError(f"{type(error).__name__} in the store"))


def _opened(upload: Upload | None, upload_id: int) -> Upload:
    if upload is None:
        raise EngineUnavailable(
            f"upload {upload_id} is not open: the store restarted; send it again",
            field="upload_id",
            retry_after_s=RETRY_S,
        )
    return upload


def _open(root: Path, model_dir: str, limits: StoreLimits) -> AdapterStore:
    """Raises ConfigError or ModelRefused for what an operator can mend."""
    try:
        lock = StoreLock(root)
    except StoreInUse as error:
        raise ConfigError(str(error), field="store") from error
    except OSError as error:
        raise ConfigError(f"the store {root} cannot be opened: {error}", field="store") from error
    try:
        resolver = _read_shape(model_dir)
        from ..adapters.store import AdapterStore

        return AdapterStore(root, limits, resolver, unix_now_s=unix_now_s, lock=lock)
    except (OSError, sqlite3.Error, ValueError) as error:
        lock.close()
        raise ConfigError(f"the store {root} cannot be opened: {error}", field="store") from error
    except BaseException:
        lock.close()
        raise


def _read_shape(model_dir: str) -> PeftResolver:
    path = Path(model_dir)
    # An id of the Hub is `name` or `owner/name`; asking the Hub about anything else gives an
    # error about ids, to an operator who has mistyped a path.
    if not path.is_dir() and (
        path.is_absolute() or len(path.parts) > 2 or model_dir[:1] in (".", "~")
    ):
        raise ConfigError(f"--model {model_dir}: there is no such directory", field="model")
    import torch

    from ..adapters.resolve import PeftResolver

    if threading.current_thread() is threading.main_thread():
        torch.set_num_threads(1)  # the cores are the engine's
    try:
        return PeftResolver.of_model(model_dir)
    except (OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelRefused(
            f"the model {model_dir} cannot be read: {lines[0][:300]}", field="model"
        ) from error


def _say(conn: Connection, message: Message) -> None:
    """Whoever asked may be gone; then the next read ends the process."""
    try:
        conn.send(message)
    except OSError:
        _LOG.info("nobody is left to hear %s", type(message).__name__)
