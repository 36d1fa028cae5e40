"""An engine in this process around the real runner, store and link; no gRPC, no children."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from lorry.adapters.key import AdapterCard
from lorry.adapters.limits import StoreLimits
from lorry.adapters.resolve import PeftResolver
from lorry.adapters.store import AdapterStore
from lorry.server.clock import unix_now_s
from lorry.server.config import MemoryConfig, ModelConfig, SchedulingConfig, ServerConfig
from lorry.server.engine import Engine
from lorry.server.engine_process import build_engine
from lorry.server.execution.recorder import Recorder
from lorry.server.execution.runner import Runner
from lorry.server.execution.start import load_runner
from lorry.server.scheduling.sampling import SamplingParams
from lorry.server.seam import Command, Finish, Progress, Reject, Submit
from lorry.server.seam_ends import LocalEnd


@dataclass
class InProcess:
    """One engine, its runner, and what it said."""

    engine: Engine
    end: LocalEnd
    runner: Runner
    tokens: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    finished: dict[int, Finish] = field(default_factory=dict)
    errors: dict[int, Exception] = field(default_factory=dict)

    def ask(self, submits: Sequence[Submit]) -> list[list[int]]:
        """Tokens of each request, in the order asked."""
        self.tell(submits)
        patience_s = 0.0
        while not all(submit.request_id in self.finished for submit in submits):
            patience_s = self.engine.step(min(patience_s, 10.0))
            self._hear()
        return [self.tokens[submit.request_id] for submit in submits]

    def tell(self, commands: Sequence[Command]) -> None:
        for command in commands:
            self.end.commands.put(command)

    def step(self) -> None:
        self.engine.step()
        self._hear()

    def _hear(self) -> None:
        while not self.end.reports.empty():
            for event in self.end.reports.get().events:
                match event:
                    case Progress():
                        self.tokens[event.request_id] += event.token_ids
                    case Finish():
                        self.finished[event.request_id] = event
                    case Reject():
                        self.errors[event.request_id] = event.error
                        raise event.error
                    case _:
                        pass


def start_engine(
    model_dir: Path,
    *,
    num_pages: int,
    page_bytes: int,
    device: str = "cpu",
    debug: bool = True,
    kernels: str = "auto",
    max_model_len: int = 0,
    max_rank: int = 256,
    recorder: Recorder | None = None,
    **scheduling: Any,
) -> InProcess:
    config = ServerConfig(
        model=ModelConfig(
            model=str(model_dir),
            device=device,
            dtype="float32",
            max_model_len=max_model_len,
            num_threads=1,
            kernels=kernels,
        ),
        memory=MemoryConfig(pool_bytes=num_pages * page_bytes, max_rank=max_rank),
        scheduling=SchedulingConfig(**scheduling),
        debug=debug,
    )
    runner = load_runner(config, recorder=recorder)
    end = LocalEnd()
    return InProcess(build_engine(end, runner, config), end, runner)


def open_store(root: Path, model_dir: Path, runner: Runner) -> AdapterStore:
    limits = StoreLimits(max_upload_bytes=64 << 20, max_rank=256)
    store = AdapterStore(root, limits, PeftResolver.of_model(str(model_dir)), unix_now_s=unix_now_s)
    store.configure(runner.info().image_spec)
    return store


def register(store: AdapterStore, name: str, config_json: bytes, weights: bytes) -> AdapterCard:
    """Uploads one adapter; durable when this returns."""
    upload = store.begin(
        tenant="default",
        name=name,
        config_json=config_json,
        size_bytes=len(weights),
        sha256=sha256(weights).hexdigest(),
    )
    upload.write(weights)
    store.commit(upload)
    return store.get("default", name)


def make_submit(
    request_id: int, prompt_ids: Sequence[int], card: AdapterCard | None = None, **overrides: Any
) -> Submit:
    settings: dict[str, Any] = {
        "max_new_tokens": 16,
        "sampling": SamplingParams(),
        "stop_ids": frozenset({1}),
        "ttft_s": 1.0,
        "tpot_s": 1.0,
        "timeout_s": math.inf,
    }
    settings.update(overrides)
    return Submit(request_id, "default", card, tuple(prompt_ids), **settings)
