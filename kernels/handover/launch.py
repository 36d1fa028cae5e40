"""Launches of the hand-over's kernels, built from tensors: pure, so that they compile unrun.

Owns the order of arguments and what is a constant of the binary. What differs from errand to
errand lies in its slip. Called by the operator with the step's tensors, and by the compile check
with tensors without memory.
"""

from __future__ import annotations

from math import gcd

from torch import Tensor

from ..call import KernelCall
from .configs import ADD, SEND, VECTOR_BYTES
from .kernel import add_answer, await_answer, send_rows
from .post import Post


def send_call(hidden_TI: Tensor, post: Post, *, slip: int, num_rows: int) -> KernelCall:
    """Semantics: the slip's rows lie at their shards' places, then each shard's go word = epoch.

    hidden_TI  [T, I]  model dtype, contiguous; the slip's rows of it are read
    """
    width, config = hidden_TI.shape[1], SEND[hidden_TI.element_size()]
    unit = gcd(VECTOR_BYTES // hidden_TI.element_size(), width)
    num_blocks = -(-num_rows * width // config.block)
    return KernelCall(
        send_rows,
        (max(1, min(config.max_programs, num_blocks)),),
        (hidden_TI, post.slips, post.counter, slip, width // unit),
        {
            "UNIT": unit,
            "BLOCK": config.block,
            "ON_GPU": post.on_gpu,
            "num_warps": config.num_warps,
        },
    )


def await_call(post: Post, *, slip: int, max_polls: int) -> KernelCall:
    """Semantics: verdict = epoch once every shard's done word holds it, else -epoch: lost."""
    return KernelCall(
        await_answer,
        (1,),
        (post.slips, post.verdict, slip, max_polls),
        {"ON_GPU": post.on_gpu, "num_warps": 1},
    )


def add_call(out_TO: Tensor, post: Post, *, slip: int, place: int, num_rows: int) -> KernelCall:
    """Semantics: out[start + t] += answer[t] of the slip's site `place`, unless it was lost.

    out_TO  [T, O]  model dtype, contiguous rows, changed in place; fp32 sum, rounded once
    """
    width, config = out_TO.shape[1], ADD[out_TO.element_size()]
    unit = gcd(VECTOR_BYTES // out_TO.element_size(), width, out_TO.stride(0))
    num_blocks = -(-num_rows // config.block_t) * -(-width // config.block_o)
    return KernelCall(
        add_answer,
        (max(1, min(config.max_programs, num_blocks)),),
        (out_TO, post.slips, post.verdict, slip, place, width // unit, out_TO.stride(0) // unit),
        {
            "UNIT": unit,
            "BLOCK_T": config.block_t,
            "BLOCK_O": config.block_o,
            "num_warps": config.num_warps,
        },
    )
