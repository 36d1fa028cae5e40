"""The engine's process: builds the rooms from a configuration, says what it serves, runs.

First message up is `EngineInfo`, or `StartFailed` with the reason. Exits when told to, or when
the pipe to the front end ends. Signals and logging were set up by children.py.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from ..adapters.host_tier import HostTier
from .calibration import calibrated_fit
from .clock import MonotonicClock
from .cold_choice import ColdChoice, choose_cold
from .cold_rooms import join_cold, keep_to, own_threads
from .config import SchedulingConfig, ServerConfig
from .engine import Engine
from .engine_parts import EngineParts
from .errors import ConfigError, LorryError
from .execution.cold_start.board import LandedBoard
from .execution.info import EngineInfo
from .execution.link import PoolLink
from .execution.runner import Runner
from .execution.start import load_runner
from .intake import Gate
from .memory.pool import Pool
from .memory_rooms import join_memory
from .overlap import choose_overlap
from .scheduling.policies import POLICIES
from .scheduling.records import StepLimits
from .scheduling.state import SchedulerState
from .seam import EngineEnd, StartFailed
from .seam_ends import PipeEnd
from .step_log import StepLog
from .step_meter import MeteredStep, StepMeter

# The kernels' table has a line per slot; more adapters than this in the pool at once would
# mean pages far smaller than any model has.
MAX_SLOTS = 4096

_log = logging.getLogger(__name__)


def run_engine(conn: Connection, config: ServerConfig) -> None:
    """Main of the engine's process."""
    with ExitStack() as stack:
        try:
            log = _open_step_log(config.cost.step_log, stack)
            runner = load_runner(config)
            fit = calibrated_fit(runner, config, MonotonicClock())
            threads = own_threads()  # not the link's, who may run anywhere
            engine = build_engine(PipeEnd(conn), runner, config, meter=StepMeter(fit, log=log))
        except LorryError as error:
            conn.send(StartFailed(error))
            return
        if engine.cold.cores:
            keep_to(engine.cold.cores, threads)
        conn.send(replace(runner.info(), cold_start=engine.cold.why))
        _log.info("the engine is up in process %d", os.getpid())
        engine.run()


def _open_step_log(path: Path | None, stack: ExitStack) -> Callable[[MeteredStep], None] | None:
    """Closed when the engine ends."""
    if path is None:
        return None
    try:
        return stack.enter_context(closing(StepLog(path))).write
    except OSError as error:
        raise ConfigError(
            f"--step-log is {path}, which cannot be written: {error.strerror}", field="--step-log"
        ) from error


def build_engine(
    end: EngineEnd, runner: Runner, config: ServerConfig, *, meter: StepMeter | None = None
) -> Engine:
    """Joins the rooms around a runner; tests hand in an in-process end, and time nothing."""
    meter = meter or StepMeter()
    info = runner.info()
    pool = Pool(info.num_pages, on_free=runner.poison if config.debug else _keep)
    if config.debug:
        runner.poison(range(info.num_pages))
    choice = _choose_cold(config, info.device, learns=meter.learns)
    shared = bool(choice.cores.helpers)
    host_tier = _make_host_tier(config.memory.host_bytes, runner, shared=shared)
    board = LandedBoard() if choice.is_cold else None
    cold = join_cold(choice, runner, host_tier, board, model=meter.model)
    _log.info("cold starts: %s", cold.parts.why)
    link = PoolLink(
        host_tier,
        runner.pool_PE,
        end.wake,
        bytes_per_s=config.memory.link_bytes_per_s,
        board=board,
    )
    link = meter.metered(link)
    rooms = join_memory(
        pool,
        link,
        tokens_per_page=info.tokens_per_page,
        max_slots=min(info.num_pages, MAX_SLOTS),
        memory=config.memory,
        cost=meter.model,
        in_host=host_tier.contains,
        cold=cold.facts,
    )
    overlaps, why = choose_overlap(config.scheduling.overlap, device=info.device)
    _log.info("the loop %s: %s", "overlaps" if overlaps else "is plain", why)
    return Engine(
        EngineParts(
            end=end,
            state=_make_state(config.scheduling),
            pool=pool,
            prefixes=rooms.prefixes,
            residency=rooms.residency,
            link=link,
            host_tier=host_tier,
            runner=runner,
            limits=_step_limits(config, info.num_pages),
            gate=_gate(info, config),
            clock=MonotonicClock(),
            audits=config.debug,
            overlaps=overlaps,
            meter=meter,
            model=info.fingerprint,
            share_prefixes=config.memory.share_prefixes,
            cold=cold.parts,
        )
    )


def _choose_cold(config: ServerConfig, device: str, *, learns: bool) -> ColdChoice:
    return choose_cold(
        config,
        device=device,
        available=os.sched_getaffinity(0),
        num_threads=torch.get_num_threads(),
        learns=learns,
    )


def _make_state(scheduling: SchedulingConfig) -> SchedulerState:
    policy = POLICIES[scheduling.policy]
    return SchedulerState(scheduling.max_running, scheduling.max_waiting, policy=policy)


def _make_host_tier(host_bytes: int, runner: Runner, *, shared: bool) -> HostTier:
    try:
        return HostTier(host_bytes, like=runner.pool_PE, shared=shared)
    except MemoryError as error:
        raise ConfigError(
            f"--host-bytes is {host_bytes}, and the system does not give that much: {error}",
            field="--host-bytes",
        ) from error


def _keep(pages: list[int]) -> None:
    """Freed pages keep their bytes: whoever leases them next writes before reading."""


def _step_limits(config: ServerConfig, num_pages: int) -> StepLimits:
    memory, scheduling = config.memory, config.scheduling
    return StepLimits(
        max_running=scheduling.max_running,
        max_step_tokens=scheduling.max_step_tokens,
        max_bypass_s=scheduling.max_bypass_s,
        adapter_share_pages=memory.adapter_share_pages(num_pages),
        max_tenant_pages=memory.max_tenant_pages(num_pages),
    )


def _gate(info: EngineInfo, config: ServerConfig) -> Gate:
    return Gate(
        num_pages=info.num_pages,
        tokens_per_page=info.tokens_per_page,
        max_model_len=info.max_model_len,
        max_rank=config.memory.max_rank,
        adapter_share_pages=config.memory.adapter_share_pages(info.num_pages),
        max_tenant_pages=config.memory.max_tenant_pages(info.num_pages),
    )
