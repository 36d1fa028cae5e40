"""The runner: one step's rows in, sampled tokens and what the model thought of them out.

Owns the step buffers, the tokens sampled last (they stay on the device and feed the next step
there) and the recorded decode steps. `launch` begins a step and gives back its flight; `run` waits
for it. Between the two a GPU computes without the host. Does not know plans, policies or owners of
pages. Built by start.py, called by the engine once per step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...adapters.host_tier import HeldImage
from ...adapters.image import ImageLayout
from ..clock import Clock, MonotonicClock
from .backends import choose_kernels
from .batch import Batch, StepBuffers, StepCapacity, StepResult, StepRow, build_batch
from .cold_start.board import LandedBoard
from .cold_start.handover import Handover
from .cold_start.step import PATIENCE_S, ColdRooms
from .flight import Flight, Landed, TokenPost, result_of, without_lost
from .graph_proof import replay_bound, replays_off
from .graphs import DecodeGraphs, is_decode
from .info import EngineInfo
from .model import LoadedModel
from .paged_model import PagedModel
from .penalties import Histories
from .recorder import CannotRecord, Recorder
from .sampler import Wish, sample
from .sampler_device import sampler_device
from .siblings import input_groups
from .telling import tell, tells
from .warm_up import decode_step, ladder, largest_step, longest_step, warm_up_layouts

_log = logging.getLogger(__name__)


class Runner:
    """See the module. `self_proof` is the line `info()` repeats, beside the runner's own notes."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        num_pages: int,
        limits: StepCapacity,
        self_proof: str = "",
        kernels: str = "auto",
        recorder: Recorder | None = None,
    ) -> None:
        device = loaded.device
        self._loaded = loaded
        self._limits = limits
        self._notes = [self_proof] if self_proof else []
        kernels = choose_kernels(kernels, device)
        self._paged = PagedModel(loaded, num_pages=num_pages, limits=limits, kernels=kernels)
        self._buffers = StepBuffers(
            limits, tokens_per_page=loaded.geometry.tokens_per_page, device=device
        )
        self._sampler = sampler_device(device, self._buffers.staging, may_look=kernels != "triton")
        self._histories = Histories()
        self._last_token_R = torch.zeros(limits.max_rows, dtype=torch.int64, device=device)
        # A step on a CPU is over when its last operation returns: there is nothing to wait for.
        self._post = TokenPost(limits.max_running, device) if device.type == "cuda" else None
        self._graphs = (
            DecodeGraphs(recorder, max_running=limits.max_running) if recorder is not None else None
        )

    @property
    def pool_PE(self) -> Tensor:  # noqa: N802 - a tensor's name says its shape
        """The pool, for the link that fills adapters' pages."""
        return self._paged.pool_PE

    @property
    def model(self) -> PreTrainedModel:
        """The model as it is served, for benches that time its parts."""
        return self._loaded.model

    @property
    def limits(self) -> StepCapacity:
        """The largest step."""
        return self._limits

    def attach(self, slot: int, layout: ImageLayout, pages: Sequence[int]) -> None:
        """Let `slot` mean the image in `pages`; they must hold it whole."""
        self._paged.attach(slot, layout, pages)

    @property
    def input_groups(self) -> tuple[tuple[int, ...], ...]:
        """Sites that are given one input between them: a hand-over each, in a step of one adapter
        that is assisted in every layer.
        """
        return input_groups(self._loaded.model, self._loaded.siblings)

    @property
    def num_hand_overs(self) -> int:
        """The most that one step can have for one adapter."""
        return len(self.input_groups)

    def use_cold(
        self,
        *,
        board: LandedBoard,
        handover: Handover | None = None,
        clock: Clock | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """What slots that are attached cold need; once, before the first of them. No hand-over:
        nobody helps. `patience_s`: that one step may wait for layers.
        """
        rooms = ColdRooms(board, handover, clock or MonotonicClock(), patience_s)
        self._paged.use_cold(rooms)

    def attach_cold(self, slot: int, image: HeldImage, pages: Sequence[int]) -> None:
        """Let `slot` mean an image that is on its way into `pages`, until `attach` or `detach`. The
        caller holds the image until then. Rows of the slot need a way (`StepRow.way`).
        """
        self._paged.attach_cold(slot, image, pages)

    def detach(self, slot: int) -> None:
        """Forget a slot, before its pages and its image go to others."""
        self._paged.detach(slot)

    def poison(self, pages: Sequence[int]) -> None:
        """Fill pages that belong to nobody with NaN (debug)."""
        self._paged.poison(pages)

    def clear(self) -> None:
        """Fill all pages with zeros, while none belongs to anybody."""
        self._paged.clear(range(len(self._paged.pool_PE)))

    def run(self, rows: Sequence[StepRow]) -> StepResult:
        """Compute one step; returns when the sampled tokens are on the host."""
        return self.launch(rows).wait()

    @torch.inference_mode()
    def launch(self, rows: Sequence[StepRow]) -> Flight:
        """Begin one step; on a GPU it goes on when this returns, unless it tells something.

        At most `MAX_FLIGHTS` may be up at once; they are waited for in order. A step with rows of
        cold slots is over when this returns: who is lost is known only then.
        """
        is_cold = self._paged.has_cold(rows)
        may_replay = self._graphs is not None and is_decode(rows) and not is_cold
        bucket = self._graphs.bucket(len(rows)) if self._graphs and may_replay else 0
        batch = build_batch(rows, self._buffers, bucket=bucket)
        batch.feed(self._last_token_R)
        last_token_R = self._last_token_R.clone() if is_cold else None
        logits_BV = self._replay(batch, bucket) if bucket else self._paged.forward(batch)
        drawn_BV = logits_BV.index_select(0, batch.drawn_idx) if batch.told else logits_BV
        tokens_B = self._sample(batch, drawn_BV)
        drawn_rows = [row.row for row in batch.drawn]
        if self._post is not None and not tells(batch) and not is_cold:
            return self._post.send(drawn_rows, tokens_B)
        result = result_of(drawn_rows, [] if tokens_B is None else tokens_B.tolist())
        if tells(batch):
            result = tell(batch, logits_BV, drawn_BV, result)
        if last_token_R is not None:
            result = self._without_lost(result, rows, last_token_R)
        return Landed(result)

    def _without_lost(
        self, result: StepResult, rows: Sequence[StepRow], last_token_R: Tensor
    ) -> StepResult:
        """Rows that were lost go on later from the token they had before the step."""
        if self._post is not None:
            torch.cuda.current_stream(self._loaded.device).synchronize()
        end = self._paged.end_cold()
        result = without_lost(result, rows, end.lost)
        result = replace(result, num_errands=end.num_errands, helped_s=end.helped_s)
        if result.lost:
            lost_idx = torch.tensor(result.lost, dtype=torch.int64, device=last_token_R.device)
            self._last_token_R[lost_idx] = last_token_R[lost_idx]
        return result

    def _replay(self, batch: Batch, bucket: int) -> Tensor:
        """Logits of a decode step by its recording; the padding's are left out."""
        assert self._graphs is not None
        with_lora = bool(batch.segments)
        self._paged.prepare(batch, with_lora=with_lora)
        return self._graphs.replay(bucket, with_lora=with_lora)[: len(batch.drawn)]

    def _sample(self, batch: Batch, logits_BV: Tensor) -> Tensor | None:
        """The token of each row that wants one, still on the device; -1 where the logits are not
        finite. None: nobody wants one.
        """
        wishes = [
            Wish(row.sampling, row.start + row.num_tokens, seen)
            for row, seen in zip(batch.drawn, self._histories.look(batch.drawn), strict=True)
        ]
        if not wishes:
            return None
        choice = sample(logits_BV, wishes, on=self._sampler)
        self._last_token_R.index_copy_(0, batch.drawn_row, choice.tokens_B)
        # One copy to the host for both: no token is negative.
        return choice.tokens_B.masked_fill(~choice.finite_B, -1)

    def warm_up(self) -> None:
        """Run the largest steps: allocators then hold what any later step needs. On a GPU decode
        steps are recorded first, since recording gives back what is held, and smaller steps follow.
        """
        num_pages = len(self._paged.pool_PE)
        pages = [i % num_pages for i in range(self._buffers.max_pages)]
        if self._graphs is not None:
            self._record(self._graphs, pages)
        for make in (largest_step, longest_step):
            self.run(make(self._limits, pages))
        if self._post is not None:
            self._climb_down(pages)
        self.clear()

    def _climb_down(self, pages: Sequence[int]) -> None:
        """The ladder of smaller steps, with adapters of whatever numbers lie in their pages."""
        num_pages = len(self._paged.pool_PE)
        spec = self._loaded.image_spec
        layouts = warm_up_layouts(spec, self._limits.max_rank, num_pages)
        for slot, layout in enumerate(layouts):
            self.attach(slot, layout, range(num_pages - layout.num_pages, num_pages))
        for rows in ladder(self._limits, pages, range(len(layouts))):
            self.run(rows)
        for slot in range(len(layouts)):
            self.detach(slot)

    @torch.inference_mode()
    def _record(self, graphs: DecodeGraphs, pages: Sequence[int]) -> None:
        """Record every bucket and prove what was recorded; where that fails, run on without."""

        def build(bucket: int, with_lora: bool) -> Callable[[], Tensor]:
            rows = decode_step(bucket, pages)
            batch = build_batch(rows, self._buffers, bucket=bucket)
            self._paged.prepare(batch, with_lora=with_lora)
            return self._paged.compute

        try:
            graphs.record(build, self._paged.reads)
        except CannotRecord as error:
            self._do_without(graphs, str(error))
            return
        bound = replay_bound(self._loaded.dtype)
        off = replays_off(self._paged, self._buffers, graphs.buckets, self._replay)
        what = f"off by {off:.1e} of the logit range (allowed {bound:.1e})"
        if not off <= bound:
            self._do_without(graphs, f"replayed ones are {what}")
        else:
            sizes = ", ".join(map(str, graphs.buckets))
            self._note(f"decode steps of {sizes} rows replay CUDA graphs, {what}")

    def _do_without(self, graphs: DecodeGraphs, why: str) -> None:
        graphs.forget()
        self._graphs = None
        self._note(f"decode steps run without CUDA graphs: {why}")

    def _note(self, text: str) -> None:
        self._notes.append(text)
        _log.info("%s", text)

    def info(self) -> EngineInfo:
        loaded, geometry = self._loaded, self._loaded.geometry
        return EngineInfo(
            architecture=loaded.architecture,
            dtype=loaded.image_spec.dtype,
            device=str(loaded.device),
            fingerprint=loaded.fingerprint,
            max_model_len=loaded.max_model_len,
            num_pages=self._paged.pool_PE.shape[0],
            page_bytes=loaded.page_bytes,
            tokens_per_page=geometry.tokens_per_page,
            image_spec=loaded.image_spec,
            self_proof="; ".join(self._notes),
            eos_ids=loaded.eos_ids,
            vocab_size=loaded.vocab_size,
        )
