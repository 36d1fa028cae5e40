"""RoPE whose frequencies depend on the request: fixed at start, or refused.

longrope (LongRoPE, Ding et al. 2024) has two sets of frequencies, and transformers takes the
long one as soon as any position of the batch is past the length of pretraining: one long request
would change the others. Owns the choice, made once from `--max-model-len` for all requests, and
the check that a position changes its own token alone. Called when a model is prepared.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ...kernels.attention import AttentionOptions
from ..errors import ModelRefused
from .context import StepContext
from .refusals import rope_types
from .row_probe import pass_values

LONGROPE = "longrope"
FIXED = "fixed at start"
# Frequencies that follow from the config alone.
STATIC = ("default", "linear", "yarn", "llama3", "proportional")
SAME = 1e-3  # of the largest query: what a position may change of another token's


@torch.no_grad()
def fix_longrope(model: PreTrainedModel, max_model_len: int) -> tuple[str, ...]:
    """Give every rotary embedding the frequencies that a request of `max_model_len` would have.

    Up to the length of pretraining that is the short set, and every request gets what
    transformers gives it. Past it, it is the long set, for short requests too.
    """
    modules: list[Any] = [m for m in model.modules() if getattr(m, "rope_type", "") == LONGROPE]
    notes: set[str] = set()
    for module in modules:
        init: Any = ROPE_INIT_FUNCTIONS[LONGROPE]
        frequencies, _ = init(module.config, module.inv_freq.device, seq_len=max_model_len)
        module.inv_freq.copy_(frequencies)
        module.rope_type = FIXED
        original = module.config.rope_parameters["original_max_position_embeddings"]
        kind = "long" if max_model_len > original else "short"
        notes.add(
            f"longrope uses its {kind} factors for every request: --max-model-len is "
            f"{max_model_len}, the pretraining's {original}"
        )
    return tuple(sorted(notes))


@torch.inference_mode()
def check_positions(model: PreTrainedModel, context: StepContext, max_model_len: int) -> None:
    """Where frequencies are not the config's alone, see that no token changes another's.

    Raises:
        ModelRefused: the position of one token changes what another one asks for.
    """
    config = model.config.get_text_config()
    kinds = [kind for kind in rope_types(config) if kind not in STATIC]
    if not kinds:
        return
    original = int(
        getattr(config, "original_max_position_embeddings", None)
        or (config.rope_parameters or {}).get("original_max_position_embeddings")
        or 8
    )
    last = max(min(original, max_model_len) - 1, 0)
    alone, beside = (
        _queries(model, context, [0, last // 2, last, end]) for end in (last, max_model_len - 1)
    )
    for a, b in zip(alone, beside, strict=True):
        if float((a - b)[:3].abs().max()) > SAME * float(a.abs().max()):
            raise ModelRefused(
                f"the model's config has rope_type = {kinds[0]}: in {type(model).__name__} the "
                f"position of one token changes the queries of others, at --max-model-len "
                f"{max_model_len}; it may be at most {original}",
                field="--max-model-len",
            )


def _queries(model: PreTrainedModel, context: StepContext, positions: list[int]) -> list[Tensor]:
    found: list[Tensor] = []

    def record(
        layer: int, query_THK: Tensor, key_TGK: Tensor, value_TGK: Tensor, options: AttentionOptions
    ) -> Tensor:
        found.append(query_THK.float().clone())
        return pass_values(layer, query_THK, key_TGK, value_TGK, options)

    context.attend = record
    try:
        model(
            input_ids=torch.ones(1, len(positions), dtype=torch.int64, device=model.device),
            position_ids=torch.tensor([positions], device=model.device),
            use_cache=False,
        )
    finally:
        context.clear()
    return found
