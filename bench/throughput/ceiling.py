"""The ceiling: the matrix products of workload W by themselves, as fast as the library has them.

Owns the list of products of a step, with query, key and value as one and gate and up as one, and
their timing with plain and with packed weights; the faster of the two counts. Every layer has
weights of its own, so that they come from memory as in a model. Runs in a child process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .workload import ModelShape, Place, Workload

DECODE_REPEATS = 15
PREFILL_REPEATS = 3
Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Products alone; everything else of a step takes no time."""

    tok_s: float  # of the whole load
    decode_ms: float  # all products of one step of all requests, one token each
    prefill_ms: float  # of all prompts, in chunks
    chunk_tokens: int  # of prompt tokens computed at once


class CeilingProbe:
    def __init__(self, workload: Workload, place: Place) -> None:
        torch.set_num_threads(place.num_threads)
        self._workload = workload
        self._device = place.device
        self._dtype: torch.dtype = getattr(torch, place.dtype)

    def measure(self, chunk_tokens: int) -> Ceiling:
        workload = self._workload
        decode_s = self._fastest(workload.num_requests, DECODE_REPEATS)
        prompts = workload.num_requests * workload.num_prompt_tokens
        chunk_tokens = min(chunk_tokens, prompts)
        prefill_s = self._fastest(chunk_tokens, PREFILL_REPEATS) * prompts / chunk_tokens
        # The prefill makes the first token of each answer.
        wall_s = prefill_s + (workload.num_new_tokens - 1) * decode_s
        return Ceiling(workload.num_tokens / wall_s, decode_s * 1e3, prefill_s * 1e3, chunk_tokens)

    def _fastest(self, num_rows: int, repeats: int) -> float:
        """Seconds for all products of a step with that many rows."""
        return min(
            self._time(make, num_rows, repeats)
            for make in ((_plain, _packed) if self._device == "cpu" else (_plain,))
        )

    @torch.inference_mode()
    def _time(self, make: Callable[[Tensor, int], Product], num_rows: int, repeats: int) -> float:
        shape = self._workload.shape
        products = [
            (make(self._random(out_width, in_width), num_rows), self._random(num_rows, in_width))
            for in_width, out_width in step_products(shape)
        ]
        # Only rows that sample a token have logits.
        sampled = min(num_rows, self._workload.num_requests)
        head = make(self._random(shape.vocab_size, shape.hidden_width), sampled)
        products.append((head, self._random(sampled, shape.hidden_width)))
        times_s = [self._pass(products) for _ in range(repeats + 1)]
        return statistics.median(times_s[1:])

    def _pass(self, products: Sequence[tuple[Product, Tensor]]) -> float:
        start_s = time.perf_counter()
        for product, hidden in products:
            product(hidden)
        if self._device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - start_s

    def _random(self, *sizes: int) -> Tensor:
        return torch.randn(*sizes, device=self._device).to(self._dtype)


def step_products(shape: ModelShape) -> list[tuple[int, int]]:
    """Input and output width of each product of all layers; siblings share one."""
    widths = shape.linears
    merged = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
    layer = [(widths[names[0]][0], sum(widths[name][1] for name in names)) for names in merged]
    return layer * shape.num_layers


def _plain(weight: Tensor, num_rows: int) -> Product:
    return lambda hidden: functional.linear(hidden, weight)


def _packed(weight: Tensor, num_rows: int) -> Product:
    """OneDNN's own layout of the weight, chosen for that many rows."""
    ops: Any = torch.ops.mkldnn
    packed = ops._reorder_linear_weight(weight, num_rows)
    return lambda hidden: ops._linear_pointwise(hidden, packed, None, "none", [], "")
