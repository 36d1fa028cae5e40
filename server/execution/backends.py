"""Which kernels a model is served with: chosen by name once, with room for the largest step.

Owns the choice and the rooms. `cpu` computes on a CPU, `triton` on a GPU, and in Triton's
interpreter on a CPU, which tests use. Does not know steps. Called by paged_model.py.
"""

from __future__ import annotations

import torch

from ...kernels import attention, lora
from ...kernels.attention import AttentionBackend, AttentionRoom
from ...kernels.lora import LoraBackend, LoraRoom, LoraTable
from .batch import StepCapacity
from .model import LoadedModel
from .workspace_size import make_workspace


def choose_kernels(name: str, device: torch.device) -> str:
    """`auto` by the device; anything else as it is."""
    if name != "auto":
        return name
    return "triton" if device.type == "cuda" else "cpu"


def make_attention(kernels: str, loaded: LoadedModel, limits: StepCapacity) -> AttentionBackend:
    if kernels != "triton":
        return attention.choose_backend(kernels)
    geometry = loaded.geometry
    room = AttentionRoom(
        max_rows=limits.max_step_tokens,
        max_requests=limits.max_running,
        max_pages=-(-limits.max_model_len // geometry.tokens_per_page),
        num_heads=loaded.num_heads,
        num_kv_heads=geometry.num_kv_heads,
        head_dim=geometry.head_dim,
        tokens_per_page=geometry.tokens_per_page,
        dtype=loaded.dtype,
        device=loaded.device,
    )
    return attention.choose_backend(kernels, room=room)


def make_lora(
    kernels: str, loaded: LoadedModel, limits: StepCapacity, table: LoraTable
) -> LoraBackend:
    if kernels != "triton":
        workspace = make_workspace(loaded, limits.workspace_rows) if kernels == "cpu" else None
        return lora.choose_backend(kernels, workspace=workspace)
    room = LoraRoom(
        # The body's sites see every token, the head's the places whose logits are wanted; then the
        # same for rows whose adapter is on its way (cold_start).
        max_rows=2 * (limits.max_step_tokens, limits.max_logit_rows),
        max_segments=limits.max_running,
        max_rank=limits.max_rank,
        device=loaded.device,
    )
    return lora.choose_backend(kernels, table=table, room=room)
