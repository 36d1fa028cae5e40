"""The life of a server: start the front end and its two children, keep them up, stop them.

Owns the order of start and drain and the lines an operator reads; keeper.py keeps each child up.
What can be refused before a process is started (no model, a store in use) is. Knows neither
handlers nor plans. `serve` is called by the CLI; the process it is called in
becomes the front end.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..adapters.store_files import StoreInUse, StoreLock
from .children import Child, log_to_stderr, spawn_engine, spawn_store
from .clock import Clock, MonotonicClock
from .config import MIB, ServerConfig
from .errors import ConfigError, LorryError, ModelRefused
from .keeper import CHILD_PATIENCE_S, Keeper, Outside
from .rpc.front import Front
from .rpc.service import RpcServer, bracketed
from .rpc.text import Text, find_model, load_text
from .step_log import drop_empty_log
from .watchdog import Watched, watch

if TYPE_CHECKING:
    from .metrics import MetricsEndpoint

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_REFUSED = 2  # the operator has to change something

LAST_WORDS_S = 2.0  # for the answers of a drain's end to reach their clients
HURRY_S = 0.2  # the same, once a second signal has come


@dataclass(frozen=True, slots=True)
class Parts:
    """What a supervisor touches of the world; tests bring their own."""

    spawn_engine: Callable[[], Child]
    spawn_store: Callable[[], Child]
    load_text: Callable[[], Text]  # blocks; called on a thread
    say: Callable[[str], None]  # one line for the operator
    clock: Clock
    sleep: Callable[[float], Awaitable[None]]


@dataclass(slots=True)
class _Stop:
    """How far the end has come."""

    asked: bool = False  # a signal came
    hurried: bool = False  # a second one
    code: asyncio.Future[int] = field(default_factory=asyncio.Future[int])
    drain: asyncio.Task[None] | None = None


class Supervisor:
    """Made on its event loop; `run` is its whole life."""

    def __init__(self, config: ServerConfig, parts: Parts) -> None:
        self.config = config
        self.front = Front(config, parts.clock, on_change=self._changed)
        self.port = 0  # once it listens
        self._parts = parts
        self._rpc = RpcServer(self.front)
        outside = Outside(parts.clock, parts.sleep, parts.say)
        self._engine = Keeper(
            "engine",
            parts.spawn_engine,
            self.front.engine.run,
            outside,
            on_restart=self._count_restart,
        )
        self._store = Keeper("store", parts.spawn_store, self.front.store.run, outside)
        self.front.engine.outlook = self._engine.outlook
        self.front.store.outlook = self._store.outlook
        self._stop = _Stop()
        self._announced = False

    async def run(self) -> int:
        """The exit code."""
        try:
            self.port = await self._rpc.start(self.config.service)
            metrics = self._serve_metrics()
        except ConfigError as error:
            self._parts.say(f"refused: {error}")
            return EXIT_REFUSED
        self._parts.say(
            f"lorry {__version__} listening on {self._address()}, loading {self.config.model.model}"
        )
        if metrics is not None:
            host = bracketed(self.config.service.metrics_host)
            self._parts.say(f"metrics on http://{host}:{metrics.port}/metrics")
        for note in self._rpc.notes:
            self._parts.say(f"note: {note}")
        keepers = [asyncio.create_task(self._keep(one)) for one in (self._engine, self._store)]
        watching = asyncio.create_task(watch(self._watched(), self._parts.sleep))
        tasks = [*keepers, asyncio.create_task(self._load_text()), watching]
        for task in tasks:
            task.add_done_callback(self._fail_with)
        try:
            return await self._stop.code
        finally:
            await self._finish(tasks)
            if metrics is not None:
                metrics.close()

    def signalled(self) -> None:
        """The first asks for a drain, the second for the end."""
        if not self._stop.asked:
            self._stop.asked = True
            # Whose child dies now has answered who was open; nobody new is let in.
            self._keepers_rest()
            self._stop.drain = asyncio.ensure_future(self._drain())
            self._stop.drain.add_done_callback(self._fail_with)
            return
        self._stop.hurried = True
        self.front.answer_rest()  # before the children's end is the reason they hear
        self._kill_children()
        self._end(EXIT_FAILED)

    # Up

    async def _keep(self, keeper: Keeper) -> None:
        hopeless = await keeper.run()
        if hopeless is not None:
            self._refuse(hopeless)

    def _count_restart(self) -> None:
        self.front.engine_restarts += 1

    def _keepers_rest(self) -> None:
        self._engine.rests = self._store.rests = True

    def _watched(self) -> list[Watched]:
        front = self.front
        return [
            Watched(
                child=lambda: self._engine.child,
                is_up=lambda: front.engine.info is not None,
                num_heard=lambda: front.engine.num_heard,
                ask=front.engine.ask_for_life,
                set_quiet=front.set_quiet,
                give_up=partial(self._give_up, self._engine),
            ),
            Watched(
                child=lambda: self._store.child,
                is_up=lambda: front.store.ready,
                num_heard=lambda: front.store.num_heard,
                ask=front.store.ask_for_life,
                set_quiet=lambda quiet: None,  # who asks it waits; requests do without it
                give_up=partial(self._give_up, self._store),
            ),
        ]

    def _give_up(self, keeper: Keeper, quiet_s: float) -> None:
        self._parts.say(f"the {keeper.name} has said nothing for {quiet_s:g} s and is killed")
        keeper.kill()

    async def _load_text(self) -> None:
        try:
            self.front.set_text(await asyncio.to_thread(self._parts.load_text))
        except LorryError as error:
            self._refuse(error)

    def _refuse(self, error: LorryError) -> None:
        line = " ".join(str(error).split())  # some libraries' reasons have many
        self._parts.say(f"refused: {line}")
        operators = isinstance(error, (ModelRefused, ConfigError))
        self._end(EXIT_REFUSED if operators else EXIT_FAILED)

    def _changed(self) -> None:
        self._rpc.state_changed()
        if self.front.engine.info is not None:
            self._engine.came_up()
        if self.front.store.ready:
            self._store.came_up()
        if self.front.storing and not self._announced:
            self._announced = True
            self._announce()

    def _announce(self) -> None:
        info = self.front.engine.require()
        say = self._parts.say
        say(
            f"model {self.config.model.model} ({info.architecture}), {info.dtype} on "
            f"{info.device}, context of {info.max_model_len} tokens"
        )
        say(
            f"pool of {info.num_pages} pages of {info.page_bytes / 1024:g} KiB "
            f"({info.num_pages * info.page_bytes / MIB:.1f} MiB), "
            f"{info.tokens_per_page} tokens a page"
        )
        say(f"self-proof: {info.self_proof}")
        say(f"adapters in {self.config.service.store}")
        say(f"lorry ready on {self._address()}")

    def _serve_metrics(self) -> MetricsEndpoint | None:
        """None when none are asked for."""
        service = self.config.service
        if service.metrics_port < 0:
            return None
        try:
            from .metrics import serve_metrics
        except ImportError as error:
            raise ConfigError(
                f"--metrics-port is {service.metrics_port}, which needs prometheus-client: {error}",
                field="--metrics-port",
            ) from error
        loop = asyncio.get_running_loop()
        return serve_metrics(self.front, loop, host=service.metrics_host, port=service.metrics_port)

    def _address(self) -> str:
        return f"{bracketed(self.config.service.host)}:{self.port}"

    # Down

    async def _drain(self) -> None:
        grace_s = self.config.service.drain_s
        self._parts.say(f"draining: no new work; open requests have {grace_s:g} s")
        if not await self.front.drain(grace_s):
            self._parts.say("the grace is over; what is still open is told so")
        await self.front.close_rest(LAST_WORDS_S)
        self._end(EXIT_OK)

    async def _finish(self, tasks: list[asyncio.Task[None]]) -> None:
        """The engine first: what it lets go of is purged by the store before that ends."""
        self._keepers_rest()
        self.front.draining = True
        engine_task, store_task, *_ = tasks
        try:
            await self._rpc.stop(HURRY_S if self._stop.hurried else LAST_WORDS_S)
            if self.front.engine.info is not None:
                self.front.engine.shut_down()
            else:
                self._engine.kill()  # it starts, and would not hear us before it is up
            await self._until_ended(self._engine, engine_task)
            self.front.store.hang_up()
            await self._until_ended(self._store, store_task)
        finally:
            self._kill_children()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_ended(self, keeper: Keeper, task: asyncio.Task[None]) -> None:
        if keeper.child is None:
            task.cancel()  # it waits to start the next one
        await asyncio.wait([task], timeout=CHILD_PATIENCE_S)

    def _kill_children(self) -> None:
        self._engine.kill()
        self._store.kill()

    def _end(self, code: int) -> None:
        if not self._stop.code.done():
            self._stop.code.set_result(code)

    def _fail_with(self, task: asyncio.Task[None]) -> None:
        """A task of ours that breaks is a bug: the server ends and says so."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._stop.code.done():
            self._stop.code.set_exception(error)


def serve(config: ServerConfig) -> int:
    """Serves until stopped by a signal; the exit code.

    Raises:
        ConfigError: the model is not there, or the store is another server's; nothing was started.
    """
    log_to_stderr()
    _do_without_torch()
    find_model(config.model.model)
    _try_store(config.service.store)
    _try_step_log(config.cost.step_log)
    try:
        return asyncio.run(_serve(config))
    finally:
        drop_empty_log(config.cost.step_log)


def _do_without_torch() -> None:
    """For transformers to read a tokenizer, which needs none: two seconds and 350 MB less.

    This process computes nothing; its children are interpreters of their own.
    """
    if "torch" in sys.modules:
        return  # somebody else's process
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    no_news = "PyTorch was not found"
    logging.getLogger("transformers").addFilter(lambda record: no_news not in record.getMessage())


def _try_store(root: Path) -> None:
    """The store worker takes the lock for good; this only spares the load of a model."""
    try:
        StoreLock(root).close()
    except StoreInUse as error:
        raise ConfigError(f"--store: {error}", field="--store") from error
    except OSError as error:
        raise ConfigError(
            f"--store is {root}, which cannot be used: {error.strerror} ({error.filename})",
            field="--store",
        ) from error


def _try_step_log(path: Path | None) -> None:
    """The engine appends to it, also after a restart: older steps were another server's."""
    if path is None:
        return
    try:
        path.open("x").close()
    except OSError as error:
        raise ConfigError(
            f"--step-log is {path}, which cannot be made: {error.strerror}", field="--step-log"
        ) from error


async def _serve(config: ServerConfig) -> int:
    supervisor = Supervisor(
        config,
        Parts(
            spawn_engine=partial(spawn_engine, config),
            spawn_store=partial(spawn_store, config),
            load_text=partial(load_text, config.model.model),
            say=_say,
            clock=MonotonicClock(),
            sleep=asyncio.sleep,
        ),
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.signalled)
    return await supervisor.run()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
