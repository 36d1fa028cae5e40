"""The store's process, spoken to over its pipe."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import pickle
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from lorry.adapters.errors import (
    AdapterNotFound,
    AdapterRefused,
    AdapterTooLarge,
    UploadCorrupt,
)
from lorry.adapters.image_file import read_image
from lorry.adapters.key import AdapterKey, CardPage, Stored
from lorry.adapters.limits import StoreLimits
from lorry.adapters.resolve import PeftResolver
from lorry.adapters.store import AdapterStore
from lorry.server.errors import (
    ConfigError,
    EngineUnavailable,
    InternalError,
    Overloaded,
)
from lorry.server.store_messages import (
    AbortUpload,
    BeginUpload,
    CommitUpload,
    Configure,
    CountCards,
    DeleteAdapter,
    Failed,
    GetCard,
    ListCards,
    Ok,
    PurgeAdapter,
    StoreFailed,
    StoreReady,
    Sweep,
    Unproven,
    UploadChunk,
)
from lorry.server.store_worker import StoreWorker, run_store_worker
from lorry.tests.adapters_builders import (
    TENANT,
    make_config,
    make_files,
    make_llama_config,
    make_meta_model,
    make_spec,
    make_store,
    make_tensors,
)

LIMITS = StoreLimits(max_upload_bytes=1 << 20, max_rank=64, max_open_uploads=3)


class Desk:
    """The front end's side: asks one thing at a time and waits for its answer."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.ids = itertools.count(1)

    def hear(self) -> object:
        assert self.conn.poll(30), "the store said nothing"
        return self.conn.recv()

    def ask(self, kind: type, *args: object, **fields: object) -> object:
        """The value of Ok; raises what Failed holds."""
        request_id = next(self.ids)
        self.conn.send(kind(request_id, *args, **fields))
        answer = self.hear()
        assert isinstance(answer, Ok | Failed)
        assert answer.id == request_id
        if isinstance(answer, Failed):
            raise answer.error
        return answer.value

    def begin(self, files: tuple[bytes, bytes], name: str = "cat", **fields: object) -> object:
        sha256 = hashlib.sha256(files[1]).hexdigest()
        return self.ask(BeginUpload, TENANT, name, files[0], len(files[1]), sha256, **fields)

    def upload(self, files: tuple[bytes, bytes], name: str = "cat") -> Stored:
        upload_id = self.begin(files, name)
        for start in range(0, len(files[1]), 3000):
            self.ask(UploadChunk, upload_id, files[1][start : start + 3000])
        stored = self.ask(CommitUpload, upload_id)
        assert isinstance(stored, Stored)
        return stored


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    make_llama_config().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def desk(tmp_path: Path, model_dir: str) -> Iterator[Desk]:
    """A worker in a thread; the real process runs the very same function."""
    ours, theirs = multiprocessing.Pipe()
    root = tmp_path / "store"
    thread = threading.Thread(target=run_store_worker, args=(theirs, root, model_dir, LIMITS))
    thread.start()
    desk = Desk(ours)
    assert desk.hear() == StoreReady(0)
    yield desk
    ours.close()
    thread.join(30)
    assert not thread.is_alive()
    theirs.close()


@pytest.fixture
def open_desk(desk: Desk) -> Desk:
    desk.ask(Configure, make_spec())
    return desk


def test_life_of_an_adapter(open_desk: Desk) -> None:
    """Upload, show, list, replace, delete, purge: one of them would not work over the pipe."""
    desk = open_desk
    first = desk.upload(make_files())
    assert first.created and first.card.key.version == 1
    assert desk.ask(GetCard, TENANT, "cat") == first.card
    assert desk.ask(ListCards, TENANT) == CardPage((first.card,), "", 1)
    second = desk.upload(make_files(tensors=make_tensors(seed=1)))
    assert second.replaced == first.card.key
    assert desk.ask(CountCards) == 1
    desk.ask(PurgeAdapter, first.card.key)
    assert not first.card.image_path.exists()
    assert desk.ask(DeleteAdapter, TENANT, "cat") == second.card.key
    with pytest.raises(AdapterNotFound):
        desk.ask(GetCard, TENANT, "cat")
    desk.ask(PurgeAdapter, second.card.key)
    assert not second.card.image_path.exists()


def test_uploads_before_the_engine_is_up_hear_so(desk: Desk) -> None:
    """They would be packed for no layout, or wait without a word."""
    with pytest.raises(EngineUnavailable, match="not up"):
        desk.begin(make_files())
    desk.ask(Configure, make_spec())
    assert desk.upload(make_files()).created


def test_refusals_arrive_with_their_fields(open_desk: Desk) -> None:
    """The client would hear that something is wrong, but not what."""
    with pytest.raises(AdapterRefused) as refused:
        open_desk.begin(make_files(make_config(use_dora=True)))
    assert refused.value.field == "use_dora"
    with pytest.raises(AdapterTooLarge) as too_large:
        open_desk.begin(make_files(make_config(r=65)))
    assert (too_large.value.value, too_large.value.limit) == (65, 64)
    open_desk.ask(Configure, make_spec(), fingerprint="bb")
    with pytest.raises(AdapterRefused) as wrong_base:
        open_desk.begin(make_files(), base_fingerprint="aa")
    assert wrong_base.value.field == "base_fingerprint"
    assert open_desk.begin(make_files(), base_fingerprint="bb")


def test_too_many_bytes_end_the_upload(open_desk: Desk) -> None:
    """A client could go on filling the disk."""
    files = make_files()
    upload_id = open_desk.begin(files)
    with pytest.raises(UploadCorrupt, match="announced"):
        open_desk.ask(UploadChunk, upload_id, files[1] + b"x")
    open_desk.begin(make_files(), "second")
    open_desk.begin(make_files(), "third")
    open_desk.begin(make_files(), "last")


def test_an_upload_of_before_a_restart_is_unknown(open_desk: Desk) -> None:
    """The new process counted from 1 again: bytes of one upload were committed as another."""
    open_desk.ids = itertools.count(71)
    assert open_desk.begin(make_files()) == 71
    for request in (UploadChunk(1000, 1, b"x"), CommitUpload(1000, 1)):
        open_desk.conn.send(request)
        answer = open_desk.hear()
        assert isinstance(answer, Failed) and answer.id == 1000
        assert isinstance(answer.error, EngineUnavailable)
        assert "send it again" in answer.error.message
        assert answer.error.retry_after_s > 0


def test_a_lost_image_heals_and_retired_versions_go_when_told(open_desk: Desk) -> None:
    """The front end's two words after a loss would change nothing."""
    desk = open_desk
    old = desk.upload(make_files()).card
    new = desk.upload(make_files(tensors=make_tensors(seed=1))).card
    new.image_path.write_bytes(b"cut short")
    desk.ask(Unproven, new.key)
    assert desk.ask(GetCard, TENANT, "cat") == new
    assert read_image(new.image_path).layout.num_pages == new.num_pages
    desk.ask(Sweep, (old.key,))
    assert old.image_path.exists()
    desk.ask(Sweep, ())
    assert not old.image_path.exists()
    assert new.image_path.exists()


def test_open_uploads_are_bounded_and_abort_frees_them(open_desk: Desk) -> None:
    """Clients that begin and go away would use up the process's files."""
    opened = [open_desk.begin(make_files(), f"n{index}") for index in range(3)]
    with pytest.raises(Overloaded, match="limit is 3"):
        open_desk.begin(make_files(), "n3")
    open_desk.ask(AbortUpload, opened[0])
    open_desk.ask(AbortUpload, opened[0])
    open_desk.begin(make_files(), "n3")


def test_a_slow_commit_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Packing one adapter would stall every request that only asks for a card."""
    packed, go = threading.Event(), threading.Event()

    def at(step: str) -> None:
        if step == "packed" and packed.is_set():
            assert go.wait(30)

    ours, theirs = multiprocessing.Pipe()
    store = make_store(tmp_path / "store", PeftResolver(make_meta_model()), at=at)
    thread = threading.Thread(target=StoreWorker(theirs, store, max_open_uploads=3).serve)
    thread.start()
    desk = Desk(ours)
    card = desk.upload(make_files()).card
    packed.set()
    files = make_files(tensors=make_tensors(seed=1))
    upload_id = desk.begin(files, "slow")
    desk.ask(UploadChunk, upload_id, files[1])
    ours.send(CommitUpload(1000, upload_id))
    assert desk.ask(GetCard, TENANT, "cat") == card
    go.set()
    answer = desk.hear()
    assert isinstance(answer, Ok) and answer.id == 1000
    ours.close()
    thread.join(30)
    assert not thread.is_alive()
    store.close()
    theirs.close()


class SlowToJudge(AdapterStore):
    """Patterns of a hostile config, tried for seconds."""

    go: threading.Event
    judging: threading.Semaphore

    def begin(self, **announced):  # type: ignore[no-untyped-def]
        self.judging.release()
        assert self.go.wait(30)
        return super().begin(**announced)


@pytest.fixture
def slow_desk(tmp_path: Path) -> Iterator[tuple[Desk, SlowToJudge]]:
    ours, theirs = multiprocessing.Pipe()
    resolver = PeftResolver(make_meta_model())
    store = SlowToJudge(tmp_path / "store", LIMITS, resolver, unix_now_s=lambda: 0.0)
    store.go, store.judging = threading.Event(), threading.Semaphore(0)
    store.configure(make_spec())
    thread = threading.Thread(target=StoreWorker(theirs, store, max_open_uploads=9).serve)
    thread.start()
    yield Desk(ours), store
    store.go.set()
    ours.close()
    thread.join(30)
    assert not thread.is_alive()
    store.close()
    theirs.close()


def test_slow_uploads_keep_no_look_and_no_list_waiting(
    slow_desk: tuple[Desk, SlowToJudge],
) -> None:
    """Four hostile configs at once stopped every list and every first look at an adapter."""
    desk, store = slow_desk
    store.go.set()
    card = desk.upload(make_files()).card
    store.go.clear()
    store.unproven(card.key)
    files = make_files(tensors=make_tensors(seed=1))
    for index in range(9):
        desk.conn.send(BeginUpload(100 + index, TENANT, f"n{index}", files[0], 10, "0" * 64))
    assert desk.ask(ListCards, TENANT) == CardPage((card,), "", 1)
    assert desk.ask(GetCard, TENANT, "cat") == card


def test_an_upload_aborted_while_it_is_judged_leaves_nothing(
    slow_desk: tuple[Desk, SlowToJudge], tmp_path: Path
) -> None:
    """It would hold its place, and its open file, for ever."""
    desk, store = slow_desk
    files = make_files()
    desk.conn.send(BeginUpload(100, TENANT, "cat", files[0], 10, "0" * 64))
    assert store.judging.acquire(timeout=30)
    desk.ask(AbortUpload, 100)
    store.go.set()
    assert desk.hear() == Ok(100, 100)
    assert list((tmp_path / "store" / "incoming").iterdir()) == []
    with pytest.raises(EngineUnavailable):
        desk.ask(UploadChunk, 100, b"x")


def test_a_failing_disk_is_told_without_paths(
    open_desk: Desk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Clients would read how the server's disk is laid out."""
    (tmp_path / "store" / "incoming").rmdir()
    with pytest.raises(InternalError, match="No such file") as caught:
        open_desk.begin(make_files())
    assert str(tmp_path) not in caught.value.message
    assert str(tmp_path) in caplog.text
    assert not any(record.exc_info for record in caplog.records)


def test_a_bug_is_an_answer_and_the_worker_lives(
    open_desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """One bad message would leave every later request without an answer."""
    with pytest.raises(InternalError, match="TypeError"):
        open_desk.ask(UploadChunk, open_desk.begin(make_files()), "text")
    assert "a bug in the store" in caplog.text
    assert open_desk.ask(CountCards) == 0


@pytest.mark.slow
def test_the_process_ends_with_its_pipe_and_keeps_what_it_said(
    tmp_path: Path, model_dir: str
) -> None:
    """A killed front end would leave a process behind that holds the store's lock."""
    context = multiprocessing.get_context("forkserver")
    # The same list as in tests/adapters: whoever comes first starts the server for both.
    context.set_forkserver_preload(["lorry.tests.adapters.crash_child"])
    ours, theirs = context.Pipe()
    root = tmp_path / "store"
    process = context.Process(target=run_store_worker, args=(theirs, root, model_dir, LIMITS))
    process.start()
    theirs.close()
    desk = Desk(ours)
    assert desk.hear() == StoreReady(0)
    desk.ask(Configure, make_spec())
    card = desk.upload(make_files()).card
    desk.begin(make_files(tensors=make_tensors(seed=1)), "half")
    ours.close()
    process.join(30)
    assert process.exitcode == 0
    process.close()
    store = make_store(root, PeftResolver(make_meta_model()))
    assert store.get(TENANT, "cat") == card
    assert store.count() == 1
    assert read_image(card.image_path).layout.num_pages == card.num_pages
    store.close()


def test_messages_cross_by_pickle() -> None:
    """A message with something unpicklable would end the process that sends it."""
    key = AdapterKey(TENANT, "cat", 1, "0" * 64)
    messages = [
        Configure(1, make_spec(), 5, "bb"),
        BeginUpload(2, TENANT, "cat", b"{}", 1, "0"),
        PurgeAdapter(3, key),
        Unproven(3, key),
        Sweep(3, (key,)),
        Ok(4, CardPage((), "", 0)),
        StoreFailed(ConfigError("x", field="store")),
    ]
    for message in messages[:-1]:
        assert pickle.loads(pickle.dumps(message)) == message
    assert pickle.loads(pickle.dumps(messages[-1])).error.field == "store"
