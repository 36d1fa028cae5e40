"""The life of a server: start the front end and its two children, keep them up, stop them.

Owns the order of start and drain, the backoff of restarts and the lines an operator reads.
What can be refused before a process is started (no model, a store in use) is. Knows neither
handlers nor plans. `serve` is called by the CLI; the process it is called in
becomes the front end.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..adapters.store_files import StoreInUse, StoreLock
from .children import Child, log_to_stderr, spawn_engine, spawn_store
from .clock import Clock, MonotonicClock
from .config import MIB, ServerConfig
from .errors import ConfigError, LorryError, ModelRefused
from .rpc.front import Front
from .rpc.link import Ended
from .rpc.service import RpcServer, bracketed
from .rpc.text import Text, find_model, load_text
from .watchdog import watch_engine

if TYPE_CHECKING:
    from .metrics import MetricsEndpoint

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_REFUSED = 2  # the operator has to change something

FIRST_DELAY_S = 0.1
MAX_DELAY_S = 30.0
STABLE_S = 60.0  # a child that lived this long starts again without a record
MAX_FAILED_STARTS = 3  # in a row, of a child that was never up: it will not come up

CHILD_PATIENCE_S = 10.0  # for a child to end by itself
LAST_WORDS_S = 2.0  # for the answers of a drain's end to reach their clients
HURRY_S = 0.2  # the same, once a second signal has come


def restart_delay_s(previous_s: float, lived_s: float) -> float:
    """Semantics: 0.1 s, doubled at each death up to 30 s; from the start after a stable life."""
    if previous_s == 0 or lived_s >= STABLE_S:
        return FIRST_DELAY_S
    return min(2 * previous_s, MAX_DELAY_S)


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
class _Role:
    """One of the two children, over all its lives."""

    name: str
    spawn: Callable[[], Child]
    serve: Callable[[Connection], Awaitable[Ended]]
    child: Child | None = None  # None: not yet, or between two lives
    ever_ready: bool = False
    num_failed_starts: int = 0
    started_s: float = 0.0  # of this life
    start_s: float = 1.0  # how long the last start took; a guess before the first
    delay_s: float = 0.0


@dataclass(slots=True)
class _Stop:
    """How far the end has come."""

    asked: bool = False  # a signal came
    hurried: bool = False  # a second one
    keepers_rest: bool = False  # a child that ends stays down
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
        self._engine = _Role("engine", parts.spawn_engine, self.front.engine.run)
        self._store = _Role("store", parts.spawn_store, self.front.store.run)
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
            host = bracketed(self.config.service.host)
            self._parts.say(f"metrics on http://{host}:{metrics.port}/metrics")
        for note in self._rpc.notes:
            self._parts.say(f"note: {note}")
        keepers = [asyncio.create_task(self._keep(role)) for role in (self._engine, self._store)]
        watch = watch_engine(self.front, self._parts.sleep, self._give_up_engine)
        tasks = [*keepers, asyncio.create_task(self._load_text()), asyncio.create_task(watch)]
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
            self._stop.drain = asyncio.ensure_future(self._drain())
            self._stop.drain.add_done_callback(self._fail_with)
            return
        self._stop.hurried = self._stop.keepers_rest = True
        self.front.answer_rest()  # before the children's end is the reason they hear
        self._kill_children()
        self._end(EXIT_FAILED)

    # Up

    async def _keep(self, role: _Role) -> None:
        """Starts the child again whenever it ends."""
        clock = self._parts.clock
        while not self._stop.keepers_rest:
            role.started_s = clock.now_s()
            child = role.child = role.spawn()
            ended = await role.serve(child.conn)
            exit_code = await asyncio.to_thread(child.end, CHILD_PATIENCE_S)
            role.child = None
            if self._stop.keepers_rest or not self._worth_restarting(role, ended, exit_code):
                return
            lived_s = clock.now_s() - role.started_s if ended.was_ready else 0.0
            role.delay_s = restart_delay_s(role.delay_s, lived_s)
            if role is self._engine:
                self.front.engine_restarts += 1
                self.front.engine.expect_back(role.delay_s + role.start_s)
            reason = ended.error or f"exit code {exit_code}"
            self._parts.say(
                f"the {role.name} ended ({reason}); it is started again in {role.delay_s:g} s"
            )
            await self._parts.sleep(role.delay_s)

    def _worth_restarting(self, role: _Role, ended: Ended, exit_code: int | None) -> bool:
        """Not a child that was never up and says why, or has died at start several times."""
        role.ever_ready |= ended.was_ready
        if role.ever_ready:
            return True
        if ended.error is not None:
            self._refuse(ended.error)
            return False
        role.num_failed_starts += 1
        if role.num_failed_starts >= MAX_FAILED_STARTS:
            self._parts.say(
                f"the {role.name} died {role.num_failed_starts} times before it was up, "
                f"at last with exit code {exit_code}; its own messages are above"
            )
            self._end(EXIT_FAILED)
            return False
        return True

    def _give_up_engine(self, quiet_s: float) -> None:
        self._parts.say(f"the engine has said nothing for {quiet_s:g} s and is killed")
        if self._engine.child is not None:
            self._engine.child.kill()

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
            # Told to whoever is cut off when this engine dies.
            self._engine.start_s = self.front.engine_up_s - self._engine.started_s
            self.front.engine.expect_back(FIRST_DELAY_S + self._engine.start_s)
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
        return serve_metrics(self.front, loop, host=service.host, port=service.metrics_port)

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
        self._stop.keepers_rest = True
        self.front.draining = True
        engine_task, store_task, *_ = tasks
        try:
            await self._rpc.stop(HURRY_S if self._stop.hurried else LAST_WORDS_S)
            if self.front.engine.info is not None:
                self.front.engine.shut_down()
            elif self._engine.child is not None:
                self._engine.child.kill()  # it starts, and would not hear us before it is up
            await self._until_ended(self._engine, engine_task)
            self.front.store.hang_up()
            await self._until_ended(self._store, store_task)
        finally:
            self._kill_children()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_ended(self, role: _Role, keeper: asyncio.Task[None]) -> None:
        if role.child is None:
            keeper.cancel()  # it waits to start the next one
        await asyncio.wait([keeper], timeout=CHILD_PATIENCE_S)

    def _kill_children(self) -> None:
        for role in (self._engine, self._store):
            if role.child is not None:
                role.child.kill()

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
    find_model(config.model.model)
    _try_store(config.service.store)
    return asyncio.run(_serve(config))


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
