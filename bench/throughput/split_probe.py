"""Times the parts of an engine's steps under workload W, in one process and without gRPC.

Runs the real engine over the real runner and puts stopwatches around what it joins: the runner's
`run`, the model's forward, its linears and the attention function that transformers calls. What
happens inside those is not its business, so a new kernel needs no change here. Runs in a child
process, because it changes the model it times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AttentionInterface, PreTrainedModel

from ...adapters.key import AdapterCard
from ...server.config import MemoryConfig, ModelConfig, SchedulingConfig, ServerConfig
from ...server.engine_process import build_engine
from ...server.execution.interface import NAME as ATTENTION_NAME
from ...server.execution.interface import attention_forward
from ...server.execution.runner import Runner
from ...server.execution.start import load_runner
from ...server.scheduling.sampling import SamplingParams
from ...server.seam import Finish, Reject, Shutdown, Submit
from ...server.seam_ends import LocalEnd
from .cards import make_cards
from .service import POOL_BYTES
from .split import OUTER, StepSplit, TimedStep, is_decode, is_prefill, split_base, split_lora
from .stopwatch import Stopwatch
from .workload import Place, Workload
from .workload_files import WorkloadFiles

ATTENTION: Any = AttentionInterface


class SplitFailed(Exception):
    """The engine did not answer the load, or a part was never seen."""


class SplitProbe:
    """An engine that has answered the load once, with every adapter in its pool."""

    def __init__(self, files: WorkloadFiles, workload: Workload, place: Place, home: Path) -> None:
        """`home`: a folder for the packed adapters, kept by whoever calls."""
        config = ServerConfig(
            ModelConfig(str(files.base), place.device, place.dtype, num_threads=place.num_threads),
            # The same load again and again, and every time its prompts are to be computed.
            MemoryConfig(pool_bytes=POOL_BYTES, prefix_cache=False),
            # Only of a step that is waited for can be said what its parts took.
            SchedulingConfig(overlap=False),
        ).checked()
        self._workload = workload
        self._max_step_tokens = config.scheduling.max_step_tokens
        self._watch = Stopwatch(_now_s(place.device))
        self._steps: list[TimedStep] = []
        self._runner = _WatchedRunner(load_runner(config), self._watch)
        self._end = LocalEnd()
        self._engine = build_engine(self._end, cast(Runner, self._runner), config)
        self._cards = make_cards(files, self._runner.image_spec, home)
        self._next_id = 0
        self._play(mixed=True)

    def measure(self) -> dict[str, dict[str, StepSplit]]:
        """By load (base, lora), then by kind of step (decode, prefill)."""
        untimed = {mixed: self._play(mixed=mixed) for mixed in (False, True)}
        with timed_parts(self._runner.model, self._runner.site_names, self._watch):
            timed = {mixed: self._play(mixed=mixed) for mixed in (False, True)}
        splits: dict[str, dict[str, StepSplit]] = {"base": {}, "lora": {}}
        for kind, belongs in self._kinds().items():
            steps = {
                (clock, mixed): [step for step in runs[mixed] if belongs(step)]
                for clock, runs in (("timed", timed), ("untimed", untimed))
                for mixed in (False, True)
            }
            if not all(steps.values()):
                continue
            base = split_base(steps["timed", False], steps["untimed", False])
            _check_seen(base, kind)
            splits["base"][kind] = base
            splits["lora"][kind] = split_lora(base, steps["timed", True], steps["untimed", True])
        return splits

    def close(self) -> None:
        """Ends the engine and its loaders."""
        self._end.commands.put(Shutdown())
        self._engine.run()

    def _kinds(self) -> Mapping[str, Callable[[TimedStep], bool]]:
        num_requests, most = self._workload.num_requests, self._max_step_tokens
        return {
            "decode": lambda step: is_decode(step, num_requests),
            "prefill": lambda step: is_prefill(step, most),
        }

    def _play(self, *, mixed: bool) -> list[TimedStep]:
        """The whole load, step by step; every step as it was timed."""
        workload = self._workload
        open_ids: set[int] = set()
        for prompt, name in zip(workload.prompts(), workload.names(mixed=mixed), strict=True):
            self._next_id += 1
            open_ids.add(self._next_id)
            card = self._cards[name] if name else None
            self._end.commands.put(_submit(self._next_id, card, prompt, workload.num_new_tokens))
        steps: list[TimedStep] = []
        self._watch.take()
        patience_s = 0.0
        while open_ids:
            patience_s = self._watch.timed(OUTER, self._engine.step)(patience_s)
            num_tokens, num_rows = self._runner.take_counts()
            steps.append(TimedStep(num_tokens, num_rows, self._watch.take()))
            open_ids -= self._hear()
        return steps

    def _hear(self) -> set[int]:
        """Requests that ended."""
        ended: set[int] = set()
        while not self._end.reports.empty():
            for event in self._end.reports.get().events:
                if isinstance(event, Reject):
                    raise SplitFailed(f"a request was refused: {event.error}")
                if isinstance(event, Finish):
                    ended.add(event.request_id)
        return ended


class _WatchedRunner:
    """The runner, with its steps counted and charged apart from the engine's own work."""

    def __init__(self, runner: Runner, watch: Stopwatch) -> None:
        self._runner = runner
        self._counts = (0, 0)
        self._run = watch.timed("python", runner.run)

    def run(self, rows: Any) -> Any:
        self._counts = (sum(row.num_tokens for row in rows), len(rows))
        return self._run(rows)

    def take_counts(self) -> tuple[int, int]:
        """Tokens and rows of the step that has run, if one has."""
        counts, self._counts = self._counts, (0, 0)
        return counts

    @property
    def model(self) -> PreTrainedModel:
        return self._runner.model

    @property
    def image_spec(self) -> Any:
        return self._runner.info().image_spec

    @property
    def site_names(self) -> tuple[str, ...]:
        return tuple(site.name for site in self.image_spec.sites)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the runner's own."""
        return getattr(self._runner, name)


@contextmanager
def timed_parts(
    model: PreTrainedModel, site_names: tuple[str, ...], watch: Stopwatch
) -> Generator[None]:
    """While open, the model's parts are charged to `watch`."""
    head: Any = model.get_output_embeddings()
    linears: dict[int, Any] = {id(part): part for part in map(model.get_submodule, site_names)}
    linears[id(head)] = head  # which may be a site as well
    watched = [*linears.values(), model]
    for linear in linears.values():
        _replace_forward(linear, watch.timed("products", linear.forward))
    # What the runner does once the model has answered is choosing tokens.
    _replace_forward(model, watch.timed("python", model.forward, then="sampling"))
    ATTENTION.register(ATTENTION_NAME, watch.timed("attention", attention_forward))
    try:
        yield
    finally:
        for part in watched:
            del part.forward
        ATTENTION.register(ATTENTION_NAME, attention_forward)


def _replace_forward(part: Any, forward: Callable[..., Any]) -> None:
    part.forward = forward


def _check_seen(split: StepSplit, kind: str) -> None:
    unseen = [part for part in ("products", "attention") if not split.parts_ms[part]]
    if unseen:
        raise SplitFailed(f"no {' and no '.join(unseen)} was seen in a {kind} step")


def _submit(
    request_id: int, card: AdapterCard | None, prompt: tuple[int, ...], num_new_tokens: int
) -> Submit:
    return Submit(
        request_id=request_id,
        tenant="default",
        adapter=card,
        prompt_ids=prompt,
        max_new_tokens=num_new_tokens,
        sampling=SamplingParams(),
        stop_ids=frozenset(),
        ttft_s=1e6,
        tpot_s=1e6,
        timeout_s=1e6,
    )


def _now_s(device: str) -> Callable[[], float]:
    if device == "cpu":
        return time.perf_counter

    def after_device() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return after_device
