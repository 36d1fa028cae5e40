"""What lets requests start before their adapter is in the pool: helpers, prices, what is foretold.

Owns the order in which these are made. Does not choose ways (by flags:
cold_choice.py; for a request: scheduling/cold_start.py) and computes nothing. Called by
engine_process.py, between the link and the rooms of memory.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from ..adapters.host_tier import HostTier
from .clock import MonotonicClock
from .cold_choice import ColdChoice
from .cold_prices import CallsShare, HelpNow, NewestPrices
from .engine_parts import ColdParts
from .errors import ConfigError
from .execution.cold_start.board import LandedBoard
from .execution.cold_start.crew import SharedCells
from .execution.cold_start.device_handover import DeviceHelpers
from .execution.cold_start.helpers import Helpers
from .execution.cold_start.speed import calibrate
from .execution.runner import Runner
from .memory.cold import ColdFacts
from .scheduling.cost_model import CostModel
from .scheduling.starts import HelpCosts, Way

START_PATIENCE_S = 20.0  # helpers import torch

_log = logging.getLogger(__name__)


class ColdRooms(NamedTuple):
    parts: ColdParts
    facts: ColdFacts | None  # None: every load is waited for


def join_cold(
    choice: ColdChoice,
    runner: Runner,
    host_tier: HostTier,
    board: LandedBoard | None,
    *,
    model: Callable[[], CostModel],
) -> ColdRooms:
    """`board`: of the link, None where every load is waited for; `model`: of steps and loads, now.

    Raises:
        ConfigError: helpers were asked for, and cannot be had.
    """
    if board is None:
        return ColdRooms(ColdParts(why=choice.why), None)
    helpers, costs = None, HelpCosts()
    if choice.cores.helpers:
        choice, helpers, costs = _start_helpers(choice, runner, host_tier, board)
    runner.use_cold(board=board, handover=helpers)
    num_layers = _num_layers(runner)
    # What comes after the layers is of none of them.
    heads = {
        site.name.rpartition(".")[2]
        for site in runner.info().image_spec.sites
        if site.layer >= num_layers
    }
    prices = NewestPrices(choice.ways, model, help_costs=costs, num_layers=num_layers)
    facts = ColdFacts(
        model=model,
        in_host=host_tier.contains,
        can_help=HelpNow(helpers, heads),
        calls_share=CallsShare(runner.info().image_spec.sites, runner.input_groups),
    )
    cores = choice.cores.others if helpers else ()
    parts = ColdParts(
        runner.attach_cold,
        prices,
        helped=prices.helped,
        helpers=helpers,
        why=choice.why,
        cores=cores,
    )
    return ColdRooms(parts, facts)


def _start_helpers(
    choice: ColdChoice, runner: Runner, host_tier: HostTier, board: LandedBoard
) -> tuple[ColdChoice, Helpers | None, HelpCosts]:
    """None: auto does without, and the choice says why."""
    fd, cells = host_tier.shared_fd, host_tier.cells
    if fd is None or cells is None:
        return _without(choice, "host memory cannot be shared with other processes")
    clock = MonotonicClock()
    began_s = clock.now_s()
    try:
        helpers = _make_helpers(runner, SharedCells(fd, cells), choice.cores.helpers, board)
    except (OSError, RuntimeError) as error:
        return _without(choice, f"helpers cannot be started: {error}")
    num_up = helpers.crew.await_up(START_PATIENCE_S)
    with helpers.waiting() if isinstance(helpers, DeviceHelpers) else nullcontext():
        costs = calibrate(
            helpers,
            runner.info().image_spec,
            runner.input_groups,
            clock=clock,
            max_tokens=runner.limits.max_step_tokens,
            max_rank=runner.limits.max_rank,
        )
    if costs is None:
        helpers.stop()
        return _without(choice, f"{num_up} of {len(choice.cores.helpers)} helpers came up")
    _log.info(
        "helpers: %d up and timed in %.1f s: %.3g s a hand-over, %.3g s a token and MB",
        num_up,
        clock.now_s() - began_s,
        costs.call_s,
        costs.token_byte_s * 1e6,
    )
    return choice, helpers, costs


def _make_helpers(
    runner: Runner, cells: SharedCells, cores: Sequence[int], board: LandedBoard
) -> Helpers:
    """Raises OSError, or RuntimeError of CUDA: there is no memory, or no process to be had."""
    sites, device = runner.info().image_spec.sites, runner.pool_PE.device
    num_layers, max_tokens = _num_layers(runner), runner.limits.max_step_tokens
    if device.type == "cuda":
        return DeviceHelpers(
            cells,
            sites,
            cores,
            num_layers=num_layers,
            max_tokens=max_tokens,
            device=device,
            board=board,
        )
    return Helpers(cells, sites, cores, num_layers=num_layers, max_tokens=max_tokens, board=board)


def _num_layers(runner: Runner) -> int:
    """Of decoders: the head is in none."""
    return int(runner.model.config.get_text_config().num_hidden_layers)


def _without(choice: ColdChoice, why: str) -> tuple[ColdChoice, None, HelpCosts]:
    if Way.WAIT not in choice.ways:
        raise ConfigError(f"--cold-start is 'assist': {why}", field="--cold-start")
    _log.warning("nobody helps at cold starts: %s", why)
    return choice.without_help(why), None, HelpCosts()


def own_threads() -> list[int]:
    """Of this process, as the system knows them."""
    return [int(task.name) for task in Path("/proc/self/task").iterdir()]


def keep_to(cores: Collection[int], threads: Iterable[int]) -> None:
    """So that whoever computes leaves the helpers' cores to them."""
    for thread in threads:
        try:
            os.sched_setaffinity(thread, cores)
        except OSError as error:  # it has ended
            _log.debug("thread %d keeps its cores: %s", thread, error)
