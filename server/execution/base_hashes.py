"""Hashes of the base's embedding and head, which PEFT may save with an adapter.

Owns how a weight becomes the bytes that are hashed: its values in each dtype that files come
in, row by row, a bounded piece at a time. Does not know what is done with them (`adapters`
compares). Called once, at start.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...adapters.image import BaseWeight
from .refusals import plain_parts

FILE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PIECE_ELEMENTS = 1 << 22


def hash_base_weights(model: PreTrainedModel) -> tuple[BaseWeight, ...]:
    """Of the input and the output embedding; a tied weight is read once and named twice.

    A weight goes by the name of its module, anything else of it, as a bias, by its own.
    """
    names = {module: name for name, module in model.named_modules()}
    known: dict[int, tuple[tuple[str, str], ...]] = {}
    found: list[BaseWeight] = []
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if not isinstance(module, nn.Module) or module not in names:
            continue
        for part, parameter in module.named_parameters(recurse=False):
            if parameter.dtype not in FILE_DTYPES or len(plain_parts(parameter)) != 1:
                continue
            key = id(parameter)
            if key not in known:
                known[key] = hashes_of(parameter.detach())
            name = names[module] if part == "weight" else f"{names[module]}.{part}"
            found.append(BaseWeight(name, tuple(parameter.shape), known[key]))
    return tuple(found)


@torch.no_grad()
def hashes_of(weight: Tensor) -> tuple[tuple[str, str], ...]:
    """(dtype, SHA-256 of the weight's bytes in that dtype, row-major)."""
    flat = weight.contiguous().view(-1)
    digests = {dtype: hashlib.sha256() for dtype in FILE_DTYPES}
    for start in range(0, flat.numel(), PIECE_ELEMENTS):
        piece = flat[start : start + PIECE_ELEMENTS].cpu()
        for dtype, digest in digests.items():
            digest.update(piece.to(dtype).view(torch.uint8).numpy().data)
    return tuple(
        (str(dtype).removeprefix("torch."), digest.hexdigest()) for dtype, digest in digests.items()
    )
