"""Rows of cold adapters to helper processes and answers back, without the host looking.

Owns the operator's meaning and its checks. `send_rows` is launched before the base's product and
`await_add` after it, on the step's stream: the device waits, within a bound, and the host launches
on. After CaraServe's CPU-assisted prefill (arXiv 2401.11240), which signals through host memory.
Knows no processes: places and epochs come with the slip (slips.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .post import Post, host_memory, make_post
from .slips import MAX_SHARDS, MAX_SITES, SLIP_LEN, Shard, Slip, outcome, write_slip

__all__ = [
    "MAX_SHARDS",
    "MAX_SITES",
    "SLIP_LEN",
    "Post",
    "Shard",
    "Slip",
    "await_add",
    "host_memory",
    "make_post",
    "outcome",
    "send_rows",
    "write_slip",
]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def send_rows(hidden_TI: Tensor, post: Post, *, number: int, slip: Slip) -> None:
    """Semantics: input[shard][t] = hidden[start + first + t]; then go[shard] = epoch, seen by
    whoever has seen the word only after all rows of all shards.

    hidden_TI  [T, I]  model dtype, contiguous, on the post's device

    Writes the slip into row `number` of the post's slips, which must not be another errand's that
    the device has not passed yet. Returns at once.
    """
    from .launch import send_call  # Triton takes a second to load: a server on a CPU does not

    _check_rows(hidden_TI, post, slip, "hidden_TI")
    if not hidden_TI.is_contiguous():
        raise ValueError(
            f"hidden_TI (shape {tuple(hidden_TI.shape)}, strides {hidden_TI.stride()}) must be "
            "contiguous"
        )
    write_slip(post.slips, number, slip)
    send_call(hidden_TI, post, slip=number, num_rows=slip.num_rows).run()


def await_add(
    outs_TO: Sequence[Tensor], post: Post, *, number: int, slip: Slip, max_polls: int
) -> None:
    """Semantics: once done[shard] = epoch of every shard, for each site out[start + first + t] +=
    answer[shard, site][t]. Where a word says -epoch, or `max_polls` looks have shown nothing, or an
    errand of epoch `since` or later was lost before: the outs stay as they are, and
    `outcome(post.slips, number)` is -epoch once the device is past this; else it is epoch.

    outs_TO  [T, O]  one for each site of the slip, in its order. Model dtype, contiguous rows (they
                     may be columns of one buffer), changed in place. The sum is made in fp32

    Launches alone, the host waits for nothing.
    """
    from .launch import add_call, await_call

    if max_polls < 1:
        raise ValueError(f"max_polls is {max_polls}; it must be 1 or more")
    for out_TO in outs_TO:
        _check_rows(out_TO, post, slip, "out_TO")
    for shard in slip.shards:
        if len(shard.answers) != len(outs_TO):
            raise ValueError(f"{len(outs_TO)} outs, but a shard answers {len(shard.answers)} sites")
    await_call(post, slip=number, max_polls=max_polls).run()
    for place, out_TO in enumerate(outs_TO):
        add_call(out_TO, post, slip=number, place=place, num_rows=slip.num_rows).run()


def _check_rows(rows: Tensor, post: Post, slip: Slip, name: str) -> None:
    if rows.ndim != 2 or rows.dtype not in _DTYPES:
        raise ValueError(f"{name} is {rows.dtype} of shape {tuple(rows.shape)}; it must be rows")
    if rows.device != post.counter.device:
        raise ValueError(f"{name} is on {rows.device}, the post on {post.counter.device}")
    if rows.shape[0] < slip.start + slip.num_rows:
        raise ValueError(
            f"{name} has {rows.shape[0]} rows; the slip's end at {slip.start + slip.num_rows}"
        )
    width = rows.shape[1]
    if (rows.stride(1) != 1 and width > 1) or (rows.stride(0) < width and rows.shape[0] > 1):
        raise ValueError(
            f"{name} (shape {tuple(rows.shape)}, strides {rows.stride()}) must have contiguous rows"
        )
