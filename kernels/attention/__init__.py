"""Causal attention over KV pages: store a step's keys and values, attend over whole contexts.

Owns the operators' meaning and their checks; the arithmetic of attention is a backend's,
chosen once when a server is built. Pages after vLLM's PagedAttention; the layout is ours.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..shapes import check_shapes
from .cpu import CpuBackend
from .reference import ReferenceBackend
from .room import AttentionRoom
from .work import AttentionOptions, AttentionWork

__all__ = [
    "AttentionBackend",
    "AttentionOptions",
    "AttentionRoom",
    "AttentionWork",
    "choose_backend",
    "clear_fresh",
    "paged_attention",
    "view_kv",
    "write_kv",
]

WORKSPACE_ELEMENTS = 1 << 24  # gathered keys and values of the rows computed together


class AttentionBackend(Protocol):
    """Unchecked arithmetic of `write_kv` and `paged_attention`."""

    # Whether cells past a context have to be finite: `clear_fresh` is then called every step.
    needs_clear: bool

    def prepare(self, work: AttentionWork, *, fixed: bool = False) -> None:
        """The host's part of a step, before its first layer: lists are made and sent off.

        `fixed`: what the layers launch after this depends on shapes alone, so that it may be
        recorded once and replayed for other steps of at most as many rows.
        """
        ...

    def write_kv(
        self,
        key_TGK: Tensor,
        value_TGK: Tensor,
        kv_PL2GZK: Tensor,
        work: AttentionWork,
        *,
        layer: int,
    ) -> None: ...

    def paged_attention(
        self,
        query_THK: Tensor,
        kv_PL2GZK: Tensor,
        work: AttentionWork,
        *,
        layer: int,
        options: AttentionOptions,
    ) -> Tensor: ...


def choose_backend(name: str, *, room: AttentionRoom | None = None) -> AttentionBackend:
    """`cpu` and `triton` serve, `reference` defines. A backend keeps a workspace: one per runner.

    room  what `triton` takes its memory for

    Raises:
        ValueError: no such backend, or `triton` without room or for heads it has no kernel for.
    """
    if name == "cpu":
        return CpuBackend(workspace_elements=WORKSPACE_ELEMENTS)
    if name == "reference":
        return ReferenceBackend()
    if name == "triton" and room is not None:
        # A server on a CPU does not load Triton.
        from .triton_backend import TritonBackend

        return TritonBackend(room)
    raise ValueError(
        f"attention backend is {name!r}; it must be cpu, reference, or triton with its room"
    )


def view_kv(
    pool_PE: Tensor, *, num_layers: int, num_kv_heads: int, tokens_per_page: int, head_dim: int
) -> Tensor:
    """The pool as KV pages [P, L, 2, G, Z, K]; shares memory with it.

    Raises:
        ValueError: a page is not exactly that many elements.
    """
    shape = (num_layers, 2, num_kv_heads, tokens_per_page, head_dim)
    needed = 2 * num_layers * num_kv_heads * tokens_per_page * head_dim
    if pool_PE.ndim != 2 or pool_PE.shape[1] != needed or not pool_PE.is_contiguous():
        raise ValueError(
            f"pool_PE has shape {tuple(pool_PE.shape)}; KV pages {shape} are {needed} elements each"
        )
    return pool_PE.view(len(pool_PE), *shape)


def clear_fresh(kv_PL2GZK: Tensor, work: AttentionWork) -> None:
    """Semantics: kv[p] = 0 for every page p that gets its first token in this step.

    To be called once per step, before `write_kv` of any layer. A page comes with whatever its
    last owner left, NaN included; a masked score does not help against 0 * NaN in the values.

    kv_PL2GZK  [P, L, 2, G, Z, K]  model dtype, changed in place
    """
    if work.fresh_pages.numel():
        kv_PL2GZK.index_fill_(0, work.fresh_pages, 0)


def write_kv(
    key_TGK: Tensor,
    value_TGK: Tensor,
    kv_PL2GZK: Tensor,
    work: AttentionWork,
    *,
    layer: int,
    backend: AttentionBackend,
) -> None:
    """Semantics: kv[page[t], layer, 0, :, offset[t]] = key[t]; the same for values at 1.

    key_TGK    [T, G, K]           model dtype, any strides; rows past the work's tokens, which
                                   only `triton` takes, are not stored
    value_TGK  [T, G, K]           model dtype, any strides
    kv_PL2GZK  [P, L, 2, G, Z, K]  model dtype, contiguous, changed in place
    """
    check_shapes(key_TGK=key_TGK, value_TGK=value_TGK, kv_PL2GZK=kv_PL2GZK)
    _check_rows("key_TGK", key_TGK, work)
    if not kv_PL2GZK.is_contiguous():
        raise ValueError(f"kv_PL2GZK (shape {tuple(kv_PL2GZK.shape)}) must be contiguous")
    if {key_TGK.dtype, value_TGK.dtype} != {kv_PL2GZK.dtype}:
        raise ValueError(
            f"key_TGK is {key_TGK.dtype}, value_TGK {value_TGK.dtype}, the pool {kv_PL2GZK.dtype}"
        )
    backend.write_kv(key_TGK, value_TGK, kv_PL2GZK, work, layer=layer)


def paged_attention(
    query_THK: Tensor,
    kv_PL2GZK: Tensor,
    work: AttentionWork,
    *,
    layer: int,
    options: AttentionOptions,
    backend: AttentionBackend,
) -> Tensor:
    """Semantics: out[t, h] = softmax_c(cap(q[t, h] . k[c] * scaling)) @ v[c] over c <= pos[t].

    c runs over the cells of t's own request, with a sliding window w only those past pos[t] - w;
    head h reads KV head h // (H / G); a sink adds its exponential to the softmax's sum and no
    value. Softmax in fp32.

    query_THK  [T, H, K]           model dtype, contiguous; a request's rows lie together; rows
                                   past the work's tokens, which only `triton` takes, hold anything
    kv_PL2GZK  [P, L, 2, G, Z, K]  model dtype, contiguous, holds this step's keys and values;
                                   cells past a context hold anything, finite where the backend
                                   `needs_clear` (`clear_fresh`)
    returns    [T, H, K]           model dtype, contiguous; the same of rows past the step
    """
    sizes = check_shapes(query_THK=query_THK, kv_PL2GZK=kv_PL2GZK)
    _check_rows("query_THK", query_THK, work)
    if sizes["H"] % sizes["G"]:
        raise ValueError(f"{sizes['H']} query heads do not share {sizes['G']} KV heads evenly")
    if not query_THK.is_contiguous() or not kv_PL2GZK.is_contiguous():
        raise ValueError(f"query_THK (shape {tuple(query_THK.shape)}) and kv must be contiguous")
    if query_THK.dtype != kv_PL2GZK.dtype:
        raise ValueError(f"query_THK is {query_THK.dtype}, the pool {kv_PL2GZK.dtype}")
    return backend.paged_attention(query_THK, kv_PL2GZK, work, layer=layer, options=options)


def _check_rows(name: str, rows: Tensor, work: AttentionWork) -> None:
    if rows.shape[0] < work.num_tokens:
        raise ValueError(
            f"{name} has shape {tuple(rows.shape)}: axis T is {rows.shape[0]}, the step has "
            f"{work.num_tokens} tokens"
        )
