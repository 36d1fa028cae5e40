"""An engine and a store to talk to: fakes at the other end of real pipes, and small records.

The fake engine speaks the seam and answers when told to; the fake store keeps cards in a dict
and speaks the worker's messages. Neither knows a model or a file.
"""

from __future__ import annotations

import asyncio
import math
import os
import queue
import socket
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import MISSING, dataclass, field, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc.aio
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from lorry.adapters.errors import AdapterNotFound
from lorry.adapters.image import ImageSpec, Site
from lorry.adapters.key import AdapterCard, AdapterKey
from lorry.server.clock import Clock, MonotonicClock
from lorry.server.config import ModelConfig, ServerConfig, ServiceConfig
from lorry.server.errors import EngineUnavailable
from lorry.server.rpc.front import Front
from lorry.server.rpc.service import RpcServer
from lorry.server.rpc.text import Text
from lorry.server.scheduling.records import RowTimings
from lorry.server.seam import (
    AdapterResidency,
    AskResidency,
    AskStats,
    EngineInfo,
    EngineStats,
    Event,
    Finish,
    Forget,
    PageRunStats,
    Prefetch,
    Progress,
    Released,
    Report,
    ResidencyAnswer,
    ResidentStats,
    Shutdown,
    StatsAnswer,
    Submit,
)
from lorry.server.store_messages import (
    BeginUpload,
    CardPage,
    CommitUpload,
    CountCards,
    DeleteAdapter,
    Failed,
    GetCard,
    ListCards,
    Ok,
    Stored,
    StoreReady,
    UploadChunk,
)

BOS_ID = 0
EOS_ID = 1
VOCAB = 259
PATIENCE_S = 30.0  # of a test that waits for what must come


def make_text() -> Text:
    """One token a byte, `<bos>` in front."""
    vocab = {"<bos>": BOS_ID, "<eos>": EOS_ID, "<pad>": 2}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab.update({letter: idx + 3 for idx, letter in enumerate(alphabet)})
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens(["<bos>", "<eos>", "<pad>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", BOS_ID)]
    )
    return Text(tokenizer)


def make_byte_fallback(*, num_stripped: int = 1, decoder: Any = None) -> Text:
    """As Llama 2's: words, and `<0x..>` tokens whose runs decode as a whole or not at all."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["\u2581", "a", "b", "\u2581a", "\u2581b", "\u00e9", "\ufffd"]
    vocab = {word: idx for idx, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    strip = [decoders.Strip(" ", num_stripped, 0)] if num_stripped else []
    tokenizer.decoder = decoder or decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return Text(tokenizer)


def make_info(**overrides: Any) -> EngineInfo:
    values: dict[str, Any] = {
        "architecture": "LlamaForCausalLM",
        "dtype": "float32",
        "device": "cpu",
        "fingerprint": "base",
        "max_model_len": 64,
        "num_pages": 32,
        "page_bytes": 4096,
        "tokens_per_page": 16,
        "image_spec": ImageSpec(1024, "float32", (Site("model.layers.0.q_proj", 0, 8, 8),)),
        "self_proof": "equal",
        "eos_ids": (EOS_ID,),
        "vocab_size": VOCAB,
    }
    return EngineInfo(**(values | overrides))


def make_card(name: str = "upper", version: int = 1) -> AdapterCard:
    return AdapterCard(
        key=AdapterKey("default", name, version, f"hash-{version}"),
        size_bytes=10,
        max_rank=4,
        num_pages=2,
        weight_bytes=100,
        target_modules=("q_proj",),
        created_unix_s=1.0,
        rounding_error=0.0,
        notes=("a note",),
        image_path=Path("image"),
    )


def make_stats(**overrides: Any) -> EngineStats:
    fields = EngineStats.__dataclass_fields__.values()
    values: dict[str, Any] = {field.name: 0 for field in fields if field.default is MISSING}
    values |= {"residents": (), "page_runs": ()}
    return EngineStats(**(values | overrides))


def make_residency(key: AdapterKey | None = None, **overrides: Any) -> AdapterResidency:
    """On disk, and nobody has asked for it."""
    values: dict[str, Any] = dict.fromkeys(AdapterResidency.__dataclass_fields__, 0)
    values |= {"key": key or make_card().key, "place": "disk", "pinned": False, "load_s": math.nan}
    return AdapterResidency(**(values | overrides))


def make_config(**service: Any) -> ServerConfig:
    return ServerConfig(
        model=ModelConfig(model="tiny"), service=ServiceConfig(port=0, **service)
    ).checked()


def cut(conn: Connection) -> None:
    """Ends a pipe as the death of its owner does; the thread that reads it closes it."""
    with socket.socket(fileno=os.dup(conn.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)


class FakeEngine:
    """Reads commands on a thread; what it does with a Submit is the test's choice.

    echo: answers with the prompt's own tokens, one an event, then Finish.
    silent: accepts and says nothing until the test does.
    """

    def __init__(
        self,
        *,
        behaviour: str = "echo",
        info: EngineInfo | None = None,
        stats: EngineStats | None = None,
    ) -> None:
        self.front_end, self._conn = Pipe()
        self.behaviour = behaviour
        resident = ResidentStats(make_card().key, 2, False, 1)
        self.stats = stats or make_stats(pages_total=32, residents=(resident,))
        self.page_runs = (PageRunStats("kv", 2, "7"), PageRunStats("free", 30, ""))
        self.releases = True  # whether a Forget is answered at once
        self.places: dict[AdapterKey, AdapterResidency] = {}  # else on disk
        self.tells_places = True  # whether questions for them are answered at all
        self.commands: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._conn.send(info or make_info())
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def say(self, *events: Event) -> None:
        self._conn.send(Report(events))

    async def heard(self, kind: type[Any]) -> Any:
        """The next command of this kind; others before it are dropped."""
        while True:
            command = await asyncio.to_thread(self.commands.get, timeout=PATIENCE_S)
            if isinstance(command, kind):
                return command

    def die(self) -> None:
        if self._thread.is_alive():
            cut(self._conn)

    def _run(self) -> None:
        try:
            while True:
                for command in self._conn.recv():
                    self.commands.put(command)
                    self._obey(command)
                    if isinstance(command, Shutdown):
                        return
        except (EOFError, OSError):
            pass
        finally:
            self._conn.close()

    def _obey(self, command: Any) -> None:
        match command:
            case Submit() if self.behaviour == "echo":
                ids = command.prompt_ids[: command.max_new_tokens]
                self.say(*(Progress(command.request_id, (token,)) for token in ids))
                self.say(make_finish(command, len(ids)))
            case Forget(key) if self.releases:
                self.say(Released(key))
            case AskStats(query_id, pages):
                stats = replace(self.stats, page_runs=self.page_runs if pages else ())
                self.say(StatsAnswer(query_id, stats))
            case AskResidency(query_id, keys) if self.tells_places:
                found = tuple(self.places.get(key) or make_residency(key) for key in keys)
                self.say(ResidencyAnswer(query_id, found))
            case Prefetch(query_id, card) if self.tells_places:
                self.places[card.key] = self._prefetched(command)
                self.say(ResidencyAnswer(query_id, (self.places[card.key],)))
            case _:
                pass

    def _prefetched(self, command: Prefetch) -> AdapterResidency:
        old = self.places.get(command.card.key) or make_residency(command.card.key)
        pinned = old.pinned if command.pinned is None else command.pinned
        if command.pinned is False:
            return replace(old, pinned=False)
        return replace(old, place="loading" if command.to_pool else "host", pinned=pinned)


def make_finish(submit: Submit, num_new_tokens: int) -> Finish:
    return Finish(
        submit.request_id,
        "length",
        len(submit.prompt_ids),
        num_new_tokens,
        RowTimings(queue_s=0.5, load_s=0.25, prefill_s=0.125, decode_s=3.0, num_preemptions=2),
        num_cached_tokens=1,
    )


class FakeStore:
    """The worker's messages over a dict of cards; every request is kept in `asked`."""

    def __init__(self, *names: str) -> None:
        self.front_end, self._conn = Pipe()
        self.cards = {name: make_card(name) for name in names}
        self.asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.before_answer: dict[type[Any], threading.Event] = {}
        self.uploads: dict[int, BeginUpload] = {}
        self.received: dict[int, bytes] = {}
        self._conn.send(StoreReady(len(self.cards)))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    async def heard(self, kind: type[Any]) -> Any:
        while True:
            request = await asyncio.to_thread(self.asked.get, timeout=PATIENCE_S)
            if isinstance(request, kind):
                return request

    def die(self) -> None:
        if self._thread.is_alive():
            cut(self._conn)

    def _run(self) -> None:
        try:
            while True:
                request = self._conn.recv()
                self.asked.put(request)
                answer = self._answer(request)
                gate = self.before_answer.get(type(request))
                if gate is not None:
                    gate.wait(PATIENCE_S)
                self._conn.send(answer)
        except (EOFError, OSError):
            pass
        finally:
            self._conn.close()

    def _answer(self, request: Any) -> Ok | Failed:
        match request:
            case GetCard(call_id, _, name) | DeleteAdapter(call_id, _, name):
                if name not in self.cards:
                    missing = AdapterNotFound(f"no adapter {name!r}", name=name)
                    return Failed(call_id, missing)
                if isinstance(request, DeleteAdapter):
                    return Ok(call_id, self.cards.pop(name).key)
                return Ok(call_id, self.cards[name])
            case ListCards(call_id, _, prefix, limit, after):
                named = sorted(n for n in self.cards if n.startswith(prefix) and n > after)
                page = tuple(self.cards[name] for name in named[:limit])
                more = named[limit - 1] if len(named) > limit else ""
                return Ok(call_id, CardPage(page, more, len(self.cards)))
            case CountCards(call_id):
                return Ok(call_id, len(self.cards))
            case BeginUpload(call_id):
                self.uploads[call_id] = request
                self.received[call_id] = b""
                return Ok(call_id, call_id)
            case UploadChunk(call_id, upload_id) | CommitUpload(call_id, upload_id):
                if upload_id not in self.uploads:
                    return Failed(call_id, EngineUnavailable("the store restarted, send again"))
                if isinstance(request, UploadChunk):
                    self.received[upload_id] += request.data
                    return Ok(call_id, None)
                return Ok(call_id, self._stored(self.uploads[upload_id].name))
            case _:
                return Ok(request.id, None)

    def _stored(self, name: str) -> Stored:
        old = self.cards.get(name)
        card = self.cards[name] = make_card(name, 1 if old is None else old.key.version + 1)
        return Stored(card, None if old is None else old.key, True)


@dataclass
class Service:
    """A front end that listens, with a fake on each pipe."""

    front: Front
    server: RpcServer
    channel: grpc.aio.Channel
    engine: FakeEngine
    store: FakeStore
    port: int
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    def attach_engine(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.tasks.append(asyncio.create_task(self.front.engine.run(engine.front_end)))

    def attach_store(self, store: FakeStore) -> None:
        self.store = store
        self.tasks.append(asyncio.create_task(self.front.store.run(store.front_end)))


@asynccontextmanager
async def running_service(
    *,
    engine: FakeEngine | None = None,
    store: FakeStore | None = None,
    config: ServerConfig | None = None,
    clock: Clock | None = None,
    up: bool = True,
) -> AsyncGenerator[Service]:
    """`up=False`: no engine yet."""
    config = config or make_config()
    front = Front(config, clock or MonotonicClock())
    server = RpcServer(front)
    changed = asyncio.Condition()

    async def tell() -> None:
        async with changed:
            changed.notify_all()

    def on_change() -> None:
        server.state_changed()
        told = asyncio.ensure_future(tell())
        front_tasks.append(told)

    front_tasks: list[Any] = []
    front.on_change = on_change
    port = await server.start(config.service)
    front.set_text(make_text())
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    service = Service(
        front, server, channel, engine or FakeEngine(), store or FakeStore("upper", "rot13"), port
    )
    service.attach_store(service.store)
    if up:
        service.attach_engine(service.engine)
    async with asyncio.timeout(PATIENCE_S), changed:
        await changed.wait_for(lambda: front.store.ready and (front.serving or not up))
    try:
        yield service
    finally:
        await channel.close()
        await server.stop(0)
        front.engine.hang_up()
        front.store.hang_up()
        await asyncio.gather(*service.tasks, *front_tasks)
