"""The PEFT adapters a case is served with: mixed ranks, subsets, scalings, the head.

Owns their configs, derived from the model's own sites, and random factors. PEFT starts B at zero,
which would let every test pass with LoRA off. Knows no store and no engine; used by world.py.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...adapters.image import Site

SIZE = 0.4  # of a factor's elements, over the square root of its width


@dataclass(frozen=True, slots=True)
class Recipe:
    """One adapter, before it has numbers."""

    name: str
    config: Mapping[str, Any]  # fields of LoraConfig


def recipes(sites: Sequence[Site], *, head: str, has_experts: bool) -> list[Recipe]:
    """`head` is the module name of the output layer, empty if it is no site."""
    leaves = list(dict.fromkeys(_leaf(site) for site in sites if site.name != head))
    some, last = leaves[: (len(leaves) + 1) // 2], leaves[-1]
    made = [
        # Of a mixture PEFT's "all-linear" adapts the experts too, which is refused.
        Recipe(
            "r1-all",
            {
                "r": 1,
                "lora_alpha": 2,
                "target_modules": leaves if has_experts else "all-linear",
            },
        ),
        Recipe(
            "r8-rslora",
            {"r": 8, "lora_alpha": 6, "use_rslora": True, "target_modules": some},
        ),
        Recipe(
            "patterns",
            {
                "r": 4,
                "lora_alpha": 8,
                "target_modules": leaves,
                # PEFT takes the first that matches, and saves them in alphabetical order.
                "rank_pattern": {rf".*\.1\..*{leaves[0]}": 7, leaves[0]: 33},
                "alpha_pattern": {last: 12},
            },
        ),
    ]
    # A whole name, so that a pattern is part of every case, and the pool is not all this one's.
    targets = "|".join(re.escape(name) for name in (sites[-2].name, head) if name)
    made.append(Recipe("r64-head", {"r": 64, "lora_alpha": 64, "target_modules": targets}))
    return made


def make_peft(base: PreTrainedModel, fleet: Sequence[Recipe], *, loud: float) -> Any:
    """One PEFT model over a copy of `base`, holding every adapter of the fleet under its name."""
    has_conv1d = any(isinstance(module, Conv1D) for module in base.modules())
    with quiet():
        model: Any = None
        for recipe in fleet:
            config = LoraConfig(
                task_type="CAUSAL_LM", fan_in_fan_out=has_conv1d, **dict(recipe.config)
            )
            if model is None:
                model = get_peft_model(copy.deepcopy(base), config, adapter_name=recipe.name)
            else:
                model.add_adapter(recipe.name, config)
        model.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1000)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                size = loud * SIZE / parameter.shape[1] ** 0.5
                parameter.normal_(0, size, generator=generator)
    return model


@contextmanager
def quiet() -> Generator[None]:
    """What PEFT says about names of attributes, tied heads and fan_in_fan_out is no news here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def _leaf(site: Site) -> str:
    return site.name.rpartition(".")[2]
