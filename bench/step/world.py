"""A model with random weights on its device, a real runner over it, adapters in its pages.

Owns how these are made in seconds: weights are drawn where they stay, one adapter is packed and
the others are it with factors of their own, put straight into pages that lie scattered over the
pool as a server's do. Knows no clock (timing.py) and no floor.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from ...adapters.image import ImageLayout, ImageSpec, SiteRank, plan_image
from ...adapters.packing import DTYPES, pack_image
from ...server.config import MemoryConfig
from ...server.execution.backends import choose_kernels
from ...server.execution.batch import StepCapacity, StepRow
from ...server.execution.exact_products import keep_products_exact
from ...server.execution.model import LoadedModel, prepare_model, settle_weights
from ...server.execution.recorder import CudaRecorder
from ...server.execution.runner import Runner
from ...server.execution.sites import find_sites
from ...server.scheduling.sampling import SamplingParams
from .floors import StepLoad
from .shapes import StepShape

SEED = 0
SPARE_TOKENS = 128  # that contexts may still grow
STEP_TOKENS = 1024  # of the largest step that buffers are made for: a server's default
# How far an adapter moves a linear's output, beside the base's own.
LORA_STRENGTH = 0.1


@dataclass(frozen=True, slots=True)
class StepWorld:
    """Everything a step needs; one adapter for each slot from 0 on."""

    loaded: LoadedModel
    runner: Runner
    image: Tensor  # [num_pages, E] on the device: what every adapter is made of
    layout: ImageLayout
    adapter_pages: tuple[tuple[int, ...], ...]  # by slot
    kv_pages: tuple[array[int], ...]  # by request

    def put_image(self, number: int, pages: Sequence[int]) -> None:
        """The image of the adapter of this number, each with a factor of its own."""
        factor = 0.5 + (number + 0.5) / len(self.adapter_pages)
        place = torch.tensor(pages, dtype=torch.int64, device=self.image.device)
        self.runner.pool_PE.index_copy_(0, place, self.image * factor)

    def attach_all(self) -> None:
        """Announce every adapter, as a finished load does."""
        for slot, pages in enumerate(self.adapter_pages):
            self.runner.attach(slot, self.layout, pages)

    def detach_all(self) -> None:
        for slot in range(len(self.adapter_pages)):
            self.runner.detach(slot)

    def rows(self, context: int, *, with_adapters: bool) -> list[StepRow]:
        """A decode step of everyone: each token is the one sampled last, on the device."""
        num_adapters = len(self.adapter_pages)
        return [
            StepRow(
                row=idx,
                token_ids=(),
                num_tokens=1,
                start=context - 1,
                pages=pages,
                # In order, as the planner has them: a slot's rows are neighbours.
                adapter_slot=idx * num_adapters // len(self.kv_pages) if with_adapters else -1,
                sample=True,
                sampling=SamplingParams(),
            )
            for idx, pages in enumerate(self.kv_pages)
        ]


def make_world(
    shape: StepShape,
    load: StepLoad,
    device: torch.device,
    *,
    kernels: str = "auto",
    graphs: bool = True,
    compiled: bool = False,
) -> StepWorld:
    """Draws the model, sizes the pool for this load alone, and warms the runner up.

    `graphs`: decode steps are recorded, on a GPU, as a server does by default. `compiled`: the
    layers' glue is, as by `--compile-layers`.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
        keep_products_exact()
    max_len = load.context + SPARE_TOKENS
    loaded = make_model(shape, load.dtype, device, max_len=max_len, compiled=compiled)
    layout, image_PE = _make_image(loaded, max(load.ranks, default=1))
    tokens_per_page = loaded.geometry.tokens_per_page
    kv_count = -(-max_len // tokens_per_page)
    num_adapters = len(load.ranks)
    num_pages = load.batch * kv_count + num_adapters * layout.num_pages
    limits = StepCapacity(
        max_running=load.batch,
        max_step_tokens=max(STEP_TOKENS, load.batch),
        max_model_len=loaded.max_model_len,
        max_rows=2 * load.batch,  # running and waiting
        # A server's: what is launched for any step may be sized by the highest rank there could be.
        max_rank=max(MemoryConfig().max_rank, *load.ranks),
    )
    kernels = choose_kernels(kernels, device)
    records = graphs and device.type == "cuda" and kernels == "triton"
    recorder = CudaRecorder(loaded.device) if records else None
    runner = Runner(loaded, num_pages=num_pages, limits=limits, kernels=kernels, recorder=recorder)
    runner.warm_up()
    # Zeros would be cheaper to move about than numbers: they toggle no wires.
    runner.pool_PE.normal_(0, 0.5)
    deal = iter(_shuffled(num_pages))
    kv_pages = [array("q", [next(deal) for _ in range(kv_count)]) for _ in range(load.batch)]
    adapter_pages = [
        tuple(next(deal) for _ in range(layout.num_pages)) for _ in range(num_adapters)
    ]
    world = StepWorld(
        loaded,
        runner,
        image_PE.to(device),
        layout,
        tuple(adapter_pages),
        tuple(kv_pages),
    )
    for number, pages in enumerate(adapter_pages):
        world.put_image(number, pages)
    return world


def make_model(
    shape: StepShape, dtype: str, device: torch.device, *, max_len: int, compiled: bool = False
) -> LoadedModel:
    """Weights are drawn on the device: nothing of a model's size crosses to it."""
    config = AutoConfig.for_model(shape.model_type, **shape.config_fields(max_len))
    torch.manual_seed(SEED)
    loader: Any = AutoModelForCausalLM
    with torch.device(device):
        model = loader.from_config(config, dtype=DTYPES[dtype], attn_implementation="eager")
    return settle_weights(prepare_model(model.eval(), max_model_len=max_len), compiled=compiled)


def _make_image(loaded: LoadedModel, rank: int) -> tuple[ImageLayout, Tensor]:
    """Layout and pages of an adapter on all linears of the layers, made by the store's packing."""
    spec: ImageSpec = loaded.image_spec
    modules = find_sites(loaded.model)
    generator = torch.Generator().manual_seed(SEED)
    ranks: list[SiteRank] = []
    weights: dict[int, tuple[Tensor, Tensor]] = {}
    for idx, site in enumerate(spec.sites):
        if modules[idx].at_head:
            continue
        ranks.append(SiteRank(idx, rank, scale=2.0))
        lora_a = torch.randn(rank, site.in_width, generator=generator) * site.in_width**-0.5
        lora_b = torch.randn(site.out_width, rank, generator=generator)
        weights[idx] = _rounded(lora_a, spec), _rounded(lora_b * LORA_STRENGTH * rank**-0.5, spec)
    layout = plan_image(spec, ranks)
    return layout, pack_image(spec, layout, weights)


def _rounded(matrix: Tensor, spec: ImageSpec) -> Tensor:
    return matrix.to(DTYPES[spec.dtype])


def _shuffled(count: int) -> Sequence[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(SEED)).tolist()
