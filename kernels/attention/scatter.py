"""Storing keys and values by torch's indexing: the definition, and what a CPU does.

Owns what the backends in plain torch have in common; how they attend is each one's own.
"""

from __future__ import annotations

from torch import Tensor

from .work import AttentionWork


def scatter_kv(
    key_TGK: Tensor, value_TGK: Tensor, kv_PL2GZK: Tensor, work: AttentionWork, *, layer: int
) -> None:
    """See the Semantics of `write_kv` in kernels/attention/__init__.py."""
    kv_PL2GZK[:, layer, 0].transpose(1, 2)[work.page_T, work.offset_T] = key_TGK
    kv_PL2GZK[:, layer, 1].transpose(1, 2)[work.page_T, work.offset_T] = value_TGK


class TorchBackend:
    """The half of a backend that the reference and the CPU path share."""

    needs_clear = True  # a masked score times NaN is NaN

    def prepare(self, work: AttentionWork, *, fixed: bool = False) -> None:
        """Nothing: a step is looked at in its layers."""

    def write_kv(
        self,
        key_TGK: Tensor,
        value_TGK: Tensor,
        kv_PL2GZK: Tensor,
        work: AttentionWork,
        *,
        layer: int,
    ) -> None:
        scatter_kv(key_TGK, value_TGK, kv_PL2GZK, work, layer=layer)
