"""The runner: one step's rows in, sampled tokens and what the model thought of them out.

Owns the step buffers, the tokens sampled last (they stay on the device and feed the next step
there) and the start-up order: load, prove, reserve the pool, warm up. A step is over when its
tokens are on the host: `run` waits for them, so planning and computing do not overlap. Does not
know plans, policies or owners of pages. Called by the engine once per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isnan

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...adapters.image import ImageLayout
from ..config import ServerConfig
from ..scheduling.sampling import TokenLogprobs
from .batch import (
    Batch,
    StepBuffers,
    StepCapacity,
    StepResult,
    StepRow,
    ToldPrompt,
    build_batch,
)
from .host_memory import keep_freed_memory
from .info import EngineInfo
from .logprobs import token_logprobs
from .model import LoadedModel, load_model
from .paged_model import PagedModel
from .penalties import Histories
from .pool_size import choose_num_pages, default_pool_bytes
from .sampler import Wish, sample
from .selfproof import prove
from .threads import choose_num_threads
from .warm_up import largest_step, longest_step
from .workspace_size import choose_workspace_rows, workspace_bytes


class Runner:
    """See the module. `self_proof` is the line `info()` repeats."""

    def __init__(
        self, loaded: LoadedModel, *, num_pages: int, limits: StepCapacity, self_proof: str = ""
    ) -> None:
        self._loaded = loaded
        self._limits = limits
        self._self_proof = self_proof
        self._paged = PagedModel(loaded, num_pages=num_pages, limits=limits)
        self._buffers = StepBuffers(
            limits, tokens_per_page=loaded.geometry.tokens_per_page, device=loaded.device
        )
        self._histories = Histories()
        self._last_token_R = torch.zeros(limits.max_rows, dtype=torch.int64, device=loaded.device)

    @property
    def pool_PE(self) -> Tensor:  # noqa: N802 - a tensor's name says its shape
        """The pool, for the link that fills adapters' pages."""
        return self._paged.pool_PE

    @property
    def model(self) -> PreTrainedModel:
        """The model as it is served, for benches that time its parts."""
        return self._loaded.model

    def attach(self, slot: int, layout: ImageLayout, pages: Sequence[int]) -> None:
        """Let `slot` mean the image in `pages`; they must hold it whole."""
        self._paged.attach(slot, layout, pages)

    def detach(self, slot: int) -> None:
        """Forget a slot, before its pages go to others."""
        self._paged.detach(slot)

    def poison(self, pages: Sequence[int]) -> None:
        """Fill pages that belong to nobody with NaN (debug)."""
        self._paged.poison(pages)

    @torch.inference_mode()
    def run(self, rows: Sequence[StepRow]) -> StepResult:
        """Compute one step; returns when the sampled tokens are on the host."""
        batch = build_batch(rows, self._buffers)
        batch.feed(self._last_token_R)
        logits_BV = self._paged.forward(batch)
        if not batch.sample_idx.numel():
            # Without a token to wait for, the next step could overwrite staged buffers that
            # are still being copied.
            if self._loaded.device.type == "cuda":
                torch.cuda.current_stream(self._loaded.device).synchronize()
            return StepResult({})
        drawn_BV = logits_BV.index_select(0, batch.drawn_idx) if batch.told else logits_BV
        tokens = self._sample(batch, drawn_BV)
        told = _tell(batch, logits_BV)
        broken = {row: None for row, token in tokens.items() if token < 0}
        broken |= {one.row: None for one in told if any(isnan(at.logprob) for at in one.logprobs)}
        tokens = {row: token for row, token in tokens.items() if row not in broken}
        return StepResult(
            tokens=tokens,
            not_finite=tuple(broken),
            logprobs=_judge(batch.drawn, drawn_BV, tokens),
            told=tuple(one for one in told if one.row not in broken),
        )

    def _sample(self, batch: Batch, logits_BV: Tensor) -> dict[int, int]:
        """The token of each row that wants one; -1 where the logits are not finite."""
        wishes = [
            Wish(row.sampling, row.start + row.num_tokens, seen)
            for row, seen in zip(batch.drawn, self._histories.look(batch.drawn), strict=True)
        ]
        if not wishes:
            return {}
        choice = sample(logits_BV, wishes)
        self._last_token_R.index_copy_(0, batch.drawn_row, choice.tokens_B)
        # One copy to the host for both: no token is negative.
        tokens = torch.where(choice.finite_B, choice.tokens_B, -1).tolist()
        return dict(zip((row.row for row in batch.drawn), tokens, strict=True))

    def warm_up(self) -> None:
        """Run the largest steps: allocators then hold what any later step needs."""
        num_pages = self._paged.pool_PE.shape[0]
        pages = [i % num_pages for i in range(self._buffers.max_pages)]
        for make in (largest_step, longest_step):
            self.run(make(self._limits, pages))
        self._paged.clear(range(num_pages))

    def info(self) -> EngineInfo:
        loaded, geometry = self._loaded, self._loaded.geometry
        return EngineInfo(
            architecture=loaded.architecture,
            dtype=loaded.image_spec.dtype,
            device=str(loaded.device),
            fingerprint=loaded.fingerprint,
            max_model_len=loaded.max_model_len,
            num_pages=self._paged.pool_PE.shape[0],
            page_bytes=geometry.page_elements * loaded.dtype.itemsize,
            tokens_per_page=geometry.tokens_per_page,
            image_spec=loaded.image_spec,
            self_proof=self._self_proof,
            eos_ids=loaded.eos_ids,
            vocab_size=loaded.vocab_size,
        )


def _tell(batch: Batch, logits_BV: Tensor) -> list[ToldPrompt]:
    """What the model thought of each prompt's own next tokens."""
    told: list[ToldPrompt] = []
    for row, first in batch.told:
        wanted = [row.known_ids[place + 1] for place in row.tell]
        tops = [row.sampling.prompt_logprobs] * len(wanted)
        records = token_logprobs(logits_BV[first : first + len(wanted)], wanted, tops)
        told.append(ToldPrompt(row.row, row.tell.start + 1, tuple(records)))
    return told


def _judge(
    drawn: Sequence[StepRow], logits_BV: Tensor, tokens: dict[int, int]
) -> dict[int, TokenLogprobs]:
    """What the model thought of the tokens sampled, for the rows that want to know."""
    wanted = [i for i, row in enumerate(drawn) if row.sampling.logprobs >= 0 and row.row in tokens]
    if not wanted:
        return {}
    if len(wanted) < len(drawn):
        idx = torch.tensor(wanted, dtype=torch.int64, device=logits_BV.device)
        logits_BV = logits_BV.index_select(0, idx)
    rows = [drawn[i] for i in wanted]
    records = token_logprobs(
        logits_BV, [tokens[row.row] for row in rows], [row.sampling.logprobs for row in rows]
    )
    return {row.row: record for row, record in zip(rows, records, strict=True)}


def load_runner(config: ServerConfig) -> Runner:
    """Load the model, prove it, warm up and reserve the pool.

    Raises:
        ConfigError: a flag does not fit the machine or the model.
        ModelRefused: the model cannot be served exactly.
    """
    keep_freed_memory()
    loaded = load_model(config.model)
    torch.set_num_threads(
        choose_num_threads(
            config.model.num_threads,
            num_cores=torch.get_num_threads(),
            max_running=config.scheduling.max_running,
            sites=loaded.image_spec.sites,
        )
    )
    proof = prove(loaded)
    limits = StepCapacity(
        max_running=config.scheduling.max_running,
        max_step_tokens=config.scheduling.max_step_tokens,
        max_model_len=loaded.max_model_len,
        max_rank=config.memory.max_rank,
        max_rows=config.scheduling.max_running + config.scheduling.max_waiting,
    )
    if loaded.device.type == "cuda":
        # Over a pool of one page: libraries take theirs, and the pool's rule sees what is left.
        Runner(loaded, num_pages=1, limits=limits).warm_up()
    page_bytes = loaded.geometry.page_elements * loaded.dtype.itemsize
    pool_bytes = config.memory.pool_bytes or default_pool_bytes(loaded.device)
    limits = replace(limits, workspace_rows=choose_workspace_rows(loaded, pool_bytes))
    pool_bytes -= workspace_bytes(loaded, limits.workspace_rows)
    num_pages = choose_num_pages(pool_bytes, page_bytes)
    runner = Runner(loaded, num_pages=num_pages, limits=limits, self_proof=proof)
    # Its own workspaces are made here and not in the first request's step.
    runner.warm_up()
    return runner
