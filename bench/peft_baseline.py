"""What the same machine does without Lorry: transformers and PEFT in this process.

PEFT's `generate` knows one adapter at a time, so adapters take turns, each with all of its
prompts in one batch; that is the most it can do for this load. Prompts of one length, so that
no padding is computed. Used by overhead.py.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .zoo.model import load_adapter, load_base, load_tokenizer


@dataclass(frozen=True, slots=True)
class Turn:
    """Prompts of one adapter, generated as one batch."""

    adapter: str  # empty: the base
    prompts: tuple[str, ...]  # all of one length in tokens


class PeftBaseline:
    """The plain base, and one PEFT model for each adapter, loaded once in float32."""

    def __init__(self, adapters: Sequence[str], *, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._tokenizer: Any = load_tokenizer()
        self._models: dict[str, Any] = {"": load_base()}
        with warnings.catch_warnings():
            # PEFT 0.21 asks transformers 5.23 for an attribute by its old name.
            warnings.simplefilter("ignore", FutureWarning)
            self._models.update((name, load_adapter(name)) for name in adapters)

    def run(self, turns: Sequence[Turn], num_new_tokens: int) -> float:
        """Tokens per second over all turns, every answer of exactly that length."""
        start_s = time.perf_counter()
        num_tokens = 0
        for turn in turns:
            model = self._models[turn.adapter]
            num_tokens += self._generate(model, turn.prompts, num_new_tokens)
        return num_tokens / (time.perf_counter() - start_s)

    def _generate(self, model: Any, prompts: Sequence[str], num_new_tokens: int) -> int:
        inputs = self._tokenizer(list(prompts), return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(
                **inputs,
                min_new_tokens=num_new_tokens,
                max_new_tokens=num_new_tokens,
                do_sample=False,
                use_cache=True,
            )
        return ids[:, inputs["input_ids"].shape[1] :].numel()
