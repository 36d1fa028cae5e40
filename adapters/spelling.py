"""Which tensor of a file PEFT puts into which factor: asked of PEFT, never copied from it.

PEFT reads more spellings than it writes, and how many depends on the architecture: for some it
carries names of older transformers over. So it is handed the names of a file, each with an
empty tensor, and the state it would load is looked at and thrown away. What it would leave
aside or change on the way finds no place here. Called by resolve.py, which owns the models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from torch import Tensor

from .names import PEFT_PREFIX

FACTORS = ("lora_A", "lora_B")

# The name of a tensor by (module, factor).
Places = Mapping[tuple[str, str], str]


def plain_names(modules: Iterable[str]) -> tuple[str, ...]:
    """What PEFT's own `save_pretrained` calls the factors of these modules."""
    return tuple(
        f"{PEFT_PREFIX}{module}.{factor}.weight" for module in modules for factor in FACTORS
    )


def find_places(peft_model: PeftModel, adapter: str, names: Iterable[str]) -> Places:
    """Of those names that reach a factor as they are; `peft_model` stays as it was.

    Raises whatever PEFT raises when it cannot make sense of them.
    """
    sent = {name: torch.empty((), device="meta") for name in names}
    taken: dict[str, Tensor] = {}

    def take(_: object, state: dict[str, Tensor], *__: Any) -> None:
        taken.update(state)
        state.clear()  # so that nothing is loaded

    hook = peft_model.register_load_state_dict_pre_hook(take)
    try:
        set_peft_model_state_dict(peft_model, sent, adapter_name=adapter)
    finally:
        hook.remove()
    names_by_tensor = {id(tensor): name for name, tensor in sent.items()}
    places: dict[tuple[str, str], str] = {}
    for key, tensor in taken.items():
        name = names_by_tensor.get(id(tensor))
        stem, _, factor = key.removesuffix(f".{adapter}.weight").rpartition(".")
        if name is not None and factor in FACTORS and key.startswith(PEFT_PREFIX):
            places[stem.removeprefix(PEFT_PREFIX), factor] = name
    return places
