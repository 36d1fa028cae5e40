"""The cost model's start: timed steps from a file of an earlier start, or timed now and kept.

Owns the file: one for each model on each machine under each setting that changes the times, in the
store's folder `calibration`. A file that is broken, or of something else, is made again, aloud.
Knows neither which steps are timed (execution/calibrate.py) nor what is learnt from them
(scheduling/cost_fit.py). Called once, by engine_process.py.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from .clock import Clock
from .config import ServerConfig
from .execution.calibrate import DESIGN, time_steps
from .execution.runner import Runner
from .scheduling.cost_fit import MIN_STEPS, CostFit
from .scheduling.step_work import StepWork, TimedStep

FOLDER = "calibration"
CPU_INFO = Path("/proc/cpuinfo")

_log = logging.getLogger(__name__)


class BadCalibration(Exception):
    """The file cannot be used; says why."""


@dataclass(frozen=True, slots=True)
class CalibrationKey:
    """Everything that changes how long a designed step takes, or how many of them are timed."""

    design: int
    calibrate_s: float  # who gives more time, or another try, is not answered from the file
    model: str  # fingerprint of the weights
    architecture: str
    dtype: str
    device: str  # its name, not its number
    num_threads: int
    kernels: str  # as asked for
    cuda_graphs: bool
    compile_layers: bool
    page_bytes: int
    tokens_per_page: int
    max_running: int
    max_step_tokens: int
    max_model_len: int
    max_rank: int
    torch: str  # versions
    lorry: str

    @property
    def file_name(self) -> str:
        told = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16] + ".json"


def calibrated_fit(runner: Runner, config: ServerConfig, clock: Clock) -> CostFit:
    """Knows nothing where the configuration gives no time. Of a machine too slow for the time that
    it gives, what was timed is learnt, but nothing is predicted until enough steps were seen.
    """
    budget_s = config.cost.calibrate_s
    if not budget_s:
        return CostFit()
    key = key_of(runner, config)
    path = config.service.store / FOLDER / key.file_name
    try:
        steps = read_calibration(path, key)
    except FileNotFoundError:
        pass
    except (BadCalibration, OSError) as error:
        _log.warning("the calibration %s is made again: %s", path, error)
    else:
        _log.info("step times: %d calibrated steps from %s", len(steps), path)
        return CostFit(steps, source="cached")
    began_s = clock.now_s()
    steps = time_steps(runner, clock, budget_s=budget_s)
    took = f"{len(steps)} steps timed in {clock.now_s() - began_s:.1f} s"
    if len(steps) < MIN_STEPS:
        _log.warning(
            "step times: %s are too few to predict by, %d are needed; --calibrate is %g s",
            took,
            MIN_STEPS,
            budget_s,
        )
        return CostFit(steps)
    _log.info("step times: %s", took)
    try:
        write_calibration(path, key, steps)
    except OSError as error:
        _log.warning("the calibration is not kept: %s: %s", path, error.strerror)
    return CostFit(steps, source="calibrated")


def key_of(runner: Runner, config: ServerConfig) -> CalibrationKey:
    info, limits = runner.info(), runner.limits
    return CalibrationKey(
        design=DESIGN,
        calibrate_s=config.cost.calibrate_s,
        model=info.fingerprint,
        architecture=info.architecture,
        dtype=info.dtype,
        device=_device_name(torch.device(info.device)),
        num_threads=torch.get_num_threads(),
        kernels=config.model.kernels,
        cuda_graphs=config.model.cuda_graphs,
        compile_layers=config.model.compile_layers,
        page_bytes=info.page_bytes,
        tokens_per_page=info.tokens_per_page,
        max_running=limits.max_running,
        max_step_tokens=limits.max_step_tokens,
        max_model_len=limits.max_model_len,
        max_rank=limits.max_rank,
        torch=torch.__version__,
        lorry=__version__,
    )


def read_calibration(path: Path, key: CalibrationKey) -> list[TimedStep]:
    """Raises:
    FileNotFoundError, OSError: there is none, or it cannot be read.
    BadCalibration: it is broken, or was not made for this key.
    """
    try:
        document: Any = json.loads(path.read_bytes())
        found, rows = dict[str, Any](document["key"]), document["steps"]
        steps = [TimedStep(StepWork(*map(int, work)), float(seconds)) for *work, seconds in rows]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise BadCalibration(f"it is broken: {type(error).__name__}: {error}") from error
    if found != asdict(key):
        others = [name for name, value in asdict(key).items() if found.get(name) != value]
        raise BadCalibration(f"it was made for another {', '.join(others) or 'server'}")
    if len(steps) < MIN_STEPS or not all(_is_sound(step) for step in steps):
        raise BadCalibration(
            f"it is broken: {len(steps)} steps, at least {MIN_STEPS} are needed, with durations "
            "above 0 and no amount below 0"
        )
    return steps


def write_calibration(path: Path, key: CalibrationKey, steps: Sequence[TimedStep]) -> None:
    """Whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [[*step.work, step.seconds] for step in steps]
    document = {"key": asdict(key), "columns": [*StepWork._fields, "seconds"], "steps": rows}
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(document) + "\n")
    unfinished.replace(path)


def _is_sound(step: TimedStep) -> bool:
    return 0.0 < step.seconds < math.inf and min(step.work) >= 0


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
