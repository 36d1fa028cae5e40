"""The start-up proof: the paged path against the model's own eager attention.

Owns the prompts, their chunks, the comparison and its bounds. Packed, chunked and mixed
prompts, decode steps, windows, poisoned pages, and random adapters at every site through
pages against dense mathematics. Works on a pool of its own. A model that does not match is
refused with the numbers. Called once, before anything is served.

In fp32 the two paths differ by the order of sums. In a lower precision neither is exact, and
both are held against fp32: ours is meant to be no further away than the model's own. It is so on
average. But the bound is on the worst logit of a few prompts, so that one wrong row shows, and the
worst of two equally good sets of roundings differ by more than their average does. Hence twice
the model's own, and one rounding of the logit range for models whose own path happens to round
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...adapters.image import ImageLayout, SiteRank, plan_image
from ...adapters.packing import pack_image
from ...kernels.attention import AttentionBackend
from ...kernels.lora import LoraBackend
from ..errors import ModelRefused
from ..scheduling.sampling import SamplingParams
from .batch import StepBuffers, StepCapacity, StepRow, build_batch
from .model import LoadedModel
from .paged_model import PagedModel
from .proof_reference import DenseLora, eager_logits
from .refusals import is_packed, quant_method_of
from .sites import find_sites, rms_weight

FP32_BOUND = 1e-4  # of the logit range
ROUNDING_BOUND = 2.0  # of the model's own error in its own precision
PROMPT_LENS = (37, 21, 50, 5)
CHUNKS = (23, 16, 7, 19)  # tokens a step, each prompt its own, so that steps are mixed
DECODE_TOKENS = 4  # the last tokens of a prompt go in one by one
# Slots of the four prompts, in a batch's order: base first, two adapters.
SLOTS = (-1, -1, 0, 1)
LORA_SHARE = 0.3  # size of an adapter's product beside the base's


@dataclass(frozen=True, slots=True)
class _Adapter:
    layout: ImageLayout
    pages_PE: Tensor  # on the host
    dense: DenseLora


@dataclass(frozen=True, slots=True)
class _Prompt:
    token_ids: list[int]
    chunks: list[int]  # lengths; their sum is the prompt's
    pages: list[int]
    slot: int


def prove(
    loaded: LoadedModel,
    *,
    kernels: str = "auto",
    attention_backend: AttentionBackend | None = None,
    lora_backend: LoraBackend | None = None,
) -> str:
    """One line that says what was compared and the largest error.

    Raises:
        ModelRefused: the paths do not agree, with the numbers.
    """
    if loaded.dtype != torch.float32 and is_packed(loaded.model):
        raise ModelRefused(
            f"the weights are packed (quant_method is {quant_method_of(loaded.model.config)!r}): "
            f"there is nothing exact to hold {loaded.image_spec.dtype} against; such a model can "
            "prove itself with --dtype float32",
            field="--dtype",
        )
    generator = torch.Generator().manual_seed(0)
    adapters = [_random_adapter(loaded, generator, idx) for idx in range(max(SLOTS) + 1)]
    prompts, adapter_pages, num_pages = _lay_out(loaded, adapters, generator)
    limits = StepCapacity(
        max_running=len(prompts),
        max_step_tokens=sum(max(prompt.chunks) for prompt in prompts),
        max_model_len=loaded.max_model_len,
        max_rows=len(prompts),
    )
    paged = PagedModel(
        loaded,
        num_pages=num_pages,
        limits=limits,
        kernels=kernels,
        attention_backend=attention_backend,
        lora_backend=lora_backend,
    )
    # Whatever is read without having been written turns the logits into NaN.
    paged.poison(range(num_pages))
    base = [_Prompt(p.token_ids, p.chunks, p.pages, -1) for p in prompts]
    base_error = _compare("base", paged, base, [])
    for slot, (adapter, pages) in enumerate(zip(adapters, adapter_pages, strict=True)):
        paged.pool_PE[pages] = adapter.pages_PE.to(paged.pool_PE.device)
        paged.attach(slot, adapter.layout, pages)
    paged.poison([page for prompt in prompts for page in prompt.pages])
    mixed_error = _compare("adapters", paged, prompts, adapters)
    num_tokens = sum(len(prompt.token_ids) for prompt in prompts)
    line = (
        f"{len(prompts)} prompts, {num_tokens} tokens, packed, chunked and decoded over pages "
        f"against eager attention in {loaded.image_spec.dtype}: base {base_error}; random "
        f"adapters at {len(loaded.image_spec.sites)} sites {mixed_error}"
    )
    return "; ".join((line, *loaded.notes))


def _compare(
    what: str, paged: PagedModel, prompts: Sequence[_Prompt], adapters: Sequence[_Adapter]
) -> str:
    """The largest error over all places whose logits the paged path gives."""
    loaded = paged.loaded
    try:
        found = _run_paged(paged, prompts)
    except (ValueError, RuntimeError) as error:
        raise ModelRefused(
            f"{loaded.architecture} does not run over pages ({what}): {error}", field="--model"
        ) from error
    exact_dtype = loaded.dtype == torch.float32
    worst, allowed, logit_range = 0.0, 0.0, 0.0
    for prompt, ours_BV in zip(prompts, found, strict=True):
        dense = adapters[prompt.slot].dense if prompt.slot >= 0 else None
        ends = [sum(prompt.chunks[: i + 1]) - 1 for i in range(len(prompt.chunks))]
        eager_BV = eager_logits(loaded, prompt.token_ids, dense)[ends]
        exact_BV = eager_BV
        if not exact_dtype:
            exact_BV = eager_logits(loaded, prompt.token_ids, dense, upcast=True)[ends]
        logit_range = max(logit_range, float(exact_BV.max() - exact_BV.min()))
        error = float((ours_BV - exact_BV).abs().max())
        # NaN is larger than anything here.
        worst = max(worst, math.inf if math.isnan(error) else error)
        allowed = max(allowed, float((eager_BV - exact_BV).abs().max()))
    bound = FP32_BOUND * logit_range
    if not exact_dtype:
        bound = ROUNDING_BOUND * allowed + torch.finfo(loaded.dtype).eps * logit_range
    if not worst <= bound:
        raise ModelRefused(
            f"{loaded.architecture} does not prove itself ({what}): logits over pages are off by "
            f"{worst:.3g}, allowed are {bound:.3g} at a logit range of "
            f"{logit_range:.3g}{_quantizer(loaded)}",
            field="--model",
        )
    scale = max(logit_range, 1e-30)
    return f"off by {worst / scale:.1e} of the logit range (allowed {bound / scale:.1e})"


def _quantizer(loaded: LoadedModel) -> str:
    method = quant_method_of(loaded.model.config)
    return f"; its quant_method is {method!r}" if method else ""


def _run_paged(paged: PagedModel, prompts: Sequence[_Prompt]) -> list[Tensor]:
    """Logits at the end of every chunk of every prompt, all prompts side by side."""
    loaded = paged.loaded
    buffers = StepBuffers(
        paged.limits, tokens_per_page=loaded.geometry.tokens_per_page, device=loaded.device
    )
    found: list[list[Tensor]] = [[] for _ in prompts]
    for step in range(max(len(prompt.chunks) for prompt in prompts)):
        running = [i for i, prompt in enumerate(prompts) if step < len(prompt.chunks)]
        rows = [_step_row(i, prompts[i], step) for i in running]
        logits_BV = paged.forward(build_batch(rows, buffers)).float()
        for i, logits in zip(running, logits_BV, strict=True):
            found[i].append(logits)
    return [torch.stack(logits) for logits in found]


def _step_row(row: int, prompt: _Prompt, step: int) -> StepRow:
    start = sum(prompt.chunks[:step])
    token_ids = prompt.token_ids[start : start + prompt.chunks[step]]
    return StepRow(
        row, token_ids, len(token_ids), start, prompt.pages, prompt.slot, True, SamplingParams()
    )


def _lay_out(
    loaded: LoadedModel, adapters: Sequence[_Adapter], generator: torch.Generator
) -> tuple[list[_Prompt], list[list[int]], int]:
    """Prompts and adapters over shuffled pages, so that no page lies where it would by chance."""
    tokens_per_page = loaded.geometry.tokens_per_page
    # One prompt is longer than any window, however long that is.
    lens = [min(n, loaded.max_model_len) for n in PROMPT_LENS]
    if loaded.max_window:
        lens[-1] = min(loaded.max_window + 2 * tokens_per_page + 5, loaded.max_model_len)
    counts = [-(-length // tokens_per_page) for length in lens]
    sizes = counts + [adapter.layout.num_pages for adapter in adapters]
    shuffled: list[int] = torch.randperm(sum(sizes), generator=generator).tolist()
    shares: list[list[int]] = []
    for size in sizes:
        shares.append(shuffled[:size])
        shuffled = shuffled[size:]
    prompts = [
        _Prompt(
            torch.randint(loaded.vocab_size, (length,), generator=generator).tolist(),
            # A prompt past a wide window takes few steps all the same.
            _chunks(length, max(chunk, length // 8)),
            pages,
            slot,
        )
        for length, chunk, pages, slot in zip(lens, CHUNKS, shares, SLOTS, strict=False)
    ]
    return prompts, shares[len(prompts) :], sum(sizes)


def _chunks(length: int, chunk: int) -> list[int]:
    """Chunks of one size, then single tokens."""
    num_decode = min(DECODE_TOKENS, length - 1)
    whole, rest = divmod(length - num_decode, chunk)
    return [chunk] * whole + ([rest] if rest else []) + [1] * num_decode


def _random_adapter(loaded: LoadedModel, generator: torch.Generator, idx: int) -> _Adapter:
    """Every site, ranks of 1 to 24 that differ from site to site."""
    linears = find_sites(loaded.model)
    ranks: list[SiteRank] = []
    weights: dict[int, tuple[Tensor, Tensor]] = {}
    for site, spec in enumerate(loaded.image_spec.sites):
        rank = 1 + (5 * site + 7 * idx) % min(24, spec.in_width, spec.out_width)
        # A @ x keeps the size of x, and B brings it to a share of what the base adds.
        weight = rms_weight(
            linears[site], torch.zeros(1, spec.in_width, dtype=loaded.dtype, device=loaded.device)
        )
        size = LORA_SHARE * weight * (spec.in_width / rank) ** 0.5
        lora_a = torch.randn(rank, spec.in_width, generator=generator) / spec.in_width**0.5
        lora_b = torch.randn(spec.out_width, rank, generator=generator) * size
        ranks.append(SiteRank(site, rank, scale=2.0))
        weights[site] = (lora_a.to(loaded.dtype), (lora_b / 2.0).to(loaded.dtype))
    layout = plan_image(loaded.image_spec, ranks)
    pages_PE = pack_image(loaded.image_spec, layout, weights)
    dense = DenseLora(
        scale=2.0,
        factors={
            site: (a.to(loaded.device), b.to(loaded.device)) for site, (a, b) in weights.items()
        },
    )
    return _Adapter(layout, pages_PE, dense)
