"""The runner: one step's rows in, sampled tokens out.

Owns the step buffers, the tokens sampled last (they stay on the device and feed the next step
there) and the start-up order: load, prove, reserve the pool, warm up. A step is over when its
tokens are on the host: `run` waits for them, so planning and computing do not overlap. Does not
know plans, policies or owners of pages. Called by the engine once per step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...adapters.image import ImageLayout
from ..config import ServerConfig
from .batch import StepBuffers, StepCapacity, StepResult, StepRow, build_batch
from .info import EngineInfo
from .model import LoadedModel, load_model
from .paged_model import PagedModel
from .pool_size import choose_num_pages
from .sampler import Wish, sample
from .selfproof import prove
from .threads import choose_num_threads

TAIL_TOKENS = 64  # a chunk at the longest context, in the warm-up


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
        self._last_token_R = torch.zeros(limits.max_rows, dtype=torch.int64, device=loaded.device)

    @property
    def pool_PE(self) -> Tensor:  # noqa: N802 - a tensor's name says its shape
        """The pool, for the link that fills adapters' pages."""
        return self._paged.pool_PE

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
        if not batch.sampled:
            # Without a token to wait for, the next step could overwrite staged buffers that
            # are still being copied.
            if self._loaded.device.type == "cuda":
                torch.cuda.current_stream(self._loaded.device).synchronize()
            return StepResult({})
        wishes = [
            Wish(row.temperature, row.seed, row.start + row.num_tokens) for row in batch.sampled
        ]
        choice = sample(logits_BV, wishes)
        self._last_token_R.index_copy_(0, batch.sampled_row, choice.tokens_B)
        # One copy to the host for both: no token is negative.
        tokens = torch.where(choice.finite_B, choice.tokens_B, -1).tolist()
        found = list(zip((row.row for row in batch.sampled), tokens, strict=True))
        return StepResult(
            tokens={row: token for row, token in found if token >= 0},
            not_finite=tuple(row for row, token in found if token < 0),
        )

    def warm_up(self) -> None:
        """Run the largest steps: allocators then hold what any later step needs.

        First as many tokens as a step may have, then one chunk at the end of the longest context
        beside everyone else's single token: attention takes long contexts in blocks of bounded
        size, so one shows what all would need. All share the same pages over and over.
        """
        num_pages = self._paged.pool_PE.shape[0]
        pages = [i % num_pages for i in range(self._buffers.max_pages)]
        for lens, at_end in ((self._largest_step(), False), (self._longest_step(), True)):
            first_start = self._limits.max_model_len - lens[0] if at_end else 0
            rows = [
                StepRow(row, [0] * n, n, first_start if row == 0 else 0, pages, -1, True, 0.7, row)
                for row, n in enumerate(lens)
            ]
            self.run(rows)
        self._paged.clear(range(num_pages))

    def _largest_step(self) -> list[int]:
        """Tokens of each request: long chunks first, and one token at least for everyone."""
        limits, lens = self._limits, list[int]()
        left = limits.max_step_tokens
        for to_come in range(min(limits.max_running, limits.max_step_tokens) - 1, -1, -1):
            lens.append(min(limits.max_model_len, left - to_come))
            left -= lens[-1]
        return lens

    def _longest_step(self) -> list[int]:
        first, *others = self._largest_step()
        return [min(first, TAIL_TOKENS), *(1 for _ in others)]

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


def load_runner(config: ServerConfig) -> Runner:
    """Load the model, prove it, warm up and reserve the pool.

    Raises:
        ConfigError: a flag does not fit the machine or the model.
        ModelRefused: the model cannot be served exactly.
    """
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
    num_pages = choose_num_pages(config.memory.pool_bytes, page_bytes, loaded.device)
    runner = Runner(loaded, num_pages=num_pages, limits=limits, self_proof=proof)
    # Its own workspaces are made here and not in the first request's step.
    runner.warm_up()
    return runner
