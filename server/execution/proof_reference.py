"""What the self-proof compares with: the model's own eager attention, one prompt at a time.

Owns the switch to eager and back, dense LoRA by forward hooks, and a forward in fp32 of a
model kept in a lower precision. Does not know pages, chunks or bounds.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import interface
from .fusing import as_written
from .model import LoadedModel
from .packed import plain_weights
from .sites import find_sites


@dataclass(frozen=True, slots=True)
class DenseLora:
    """An adapter as plain matrices."""

    scale: float
    factors: Mapping[int, tuple[Tensor, Tensor]]  # by site: A [r, in] and B [out, r]


@torch.no_grad()
def eager_logits(
    loaded: LoadedModel, token_ids: list[int], dense: DenseLora | None, *, upcast: bool = False
) -> Tensor:
    """Logits [T, V] in fp32 of one prompt; with `upcast` the whole forward runs in fp32."""
    model = loaded.model
    with ExitStack() as stack:
        stack.enter_context(as_written(model))
        stack.enter_context(_eager(loaded))
        stack.enter_context(plain_weights(model))
        if dense is not None:
            stack.enter_context(_dense_lora(loaded, dense))
        if upcast:
            stack.enter_context(_in_fp32(model))
        ids_1T = torch.tensor([token_ids], dtype=torch.int64, device=loaded.device)
        return model(input_ids=ids_1T, use_cache=False).logits[0].float()


@contextmanager
def _eager(loaded: LoadedModel) -> Generator[None]:
    ours = interface.current(loaded.model)
    interface.switch(loaded.model, "eager")
    try:
        yield
    finally:
        interface.switch(loaded.model, ours)


@contextmanager
def _dense_lora(loaded: LoadedModel, dense: DenseLora) -> Generator[None]:
    """Add scale * (x A^T) B^T to every site, in the precision of the forward, as PEFT does."""

    def hook_of(lora_a: Tensor, lora_b: Tensor):
        def add(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            hidden = args[0]
            shrunk = hidden @ lora_a.to(hidden.dtype).T
            return out + shrunk @ lora_b.to(hidden.dtype).T * dense.scale

        return add

    handles = [
        linear.register_forward_hook(hook_of(*dense.factors[site]))
        for site, linear in find_sites(loaded.model).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _in_fp32(model: nn.Module) -> Generator[None]:
    """Let each module have fp32 copies of its own weights while it runs.

    Costs the memory of one module at a time instead of a second model. What was there comes back
    itself and not as a copy: it may be a part of a merged weight.
    """
    kept: dict[nn.Module, list[tuple[nn.Parameter, Tensor]]] = {}

    def up(module: nn.Module, _: object) -> None:
        own = list(module.parameters(recurse=False))
        kept[module] = [(parameter, parameter.data) for parameter in own]
        for parameter in own:
            parameter.data = parameter.data.float()

    def down(module: nn.Module, _: object, __: object) -> None:
        for parameter, data in kept.pop(module):
            parameter.data = data

    handles = [
        handle
        for module in model.modules()
        if next(module.parameters(recurse=False), None) is not None
        for handle in (
            module.register_forward_pre_hook(up),
            module.register_forward_hook(down, always_call=True),
        )
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
