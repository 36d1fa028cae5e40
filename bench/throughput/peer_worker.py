"""The peers themselves: transformers' and PEFT's `generate` over workload W in one batch.

Runs in a child process of its own, so that its memory and threads are gone from the server's
way. A peer also judges answers of others: which of their tokens its own logits would have
chosen after the same tokens before. Knows no server. Made and spoken to through child.py.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..plain_model import load_plain
from .answers import Answers, Judgement
from .workload import Place, Workload
from .workload_files import WorkloadFiles

# What PEFT calls a row without an adapter.
PEFT_BASE = "__base__"
JUDGED_AT_ONCE = 8  # rows; bounds the logits held at a time
ATTENTION = "sdpa"  # transformers' own default


@dataclass(frozen=True, slots=True)
class PeerSpec:
    """Everything a peer is made from."""

    files: WorkloadFiles
    workload: Workload
    place: Place
    mixed: bool  # PEFT with all adapters; else transformers with the base alone


class Peer:
    """A loaded model; every call computes on the whole load."""

    def __init__(self, spec: PeerSpec) -> None:
        torch.set_num_threads(spec.place.num_threads)
        self._spec = spec
        dtype = getattr(torch, spec.place.dtype)
        model = load_plain(spec.files.base, dtype=dtype, attn_implementation=ATTENTION)
        model = model.to(spec.place.device)
        self._model: Any = _with_adapters(model, spec) if spec.mixed else model
        self._names = [name or PEFT_BASE for name in spec.workload.names(mixed=spec.mixed)]

    def generate(self, cache: str) -> Answers:
        """Greedy, one batch of all requests; the time is from the prompts to the last token.

        cache: `dynamic`, what `generate` does when told nothing, or `static`, which a user may ask
        for: in transformers 5.23 its mask sends grouped queries to a much faster operator.
        """
        workload = self._spec.workload
        prompts = torch.tensor(workload.prompts())
        start_s = time.perf_counter()
        ids_BT = prompts.to(self._spec.place.device)
        with torch.inference_mode():
            out_BT = self._model.generate(
                input_ids=ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                max_new_tokens=workload.num_new_tokens,
                do_sample=False,
                cache_implementation=cache,
                disable_compile=True,  # a GPU would else spend the first rounds on compiling
                pad_token_id=0,
                **self._rows(self._names),
            )
        new_BT = out_BT[:, prompts.shape[1] :].tolist()
        return Answers(time.perf_counter() - start_s, tuple(tuple(row) for row in new_BT))

    def judge(self, answers: Sequence[Sequence[int]], *, by_base: bool) -> Judgement:
        """Every token of `answers` beside the logits after the same tokens before it.

        `by_base` asks the base even where the request named an adapter.
        """
        names = [PEFT_BASE] * len(answers) if by_base else self._names
        gaps: list[float] = []
        for first in range(0, len(answers), JUDGED_AT_ONCE):
            some = slice(first, first + JUDGED_AT_ONCE)
            prompts = self._spec.workload.prompts()[some]
            gaps += self._gaps(prompts, answers[some], names[some]).flatten().tolist()
        chosen = sum(gap == 0.0 for gap in gaps)
        return Judgement(chosen / len(gaps), max(gaps), sum(gaps) / len(gaps))

    @torch.inference_mode()
    def _gaps(
        self,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        names: Sequence[str],
    ) -> Tensor:
        """[B, T] how far each token's logit lies below the best, in shares of the range."""
        rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        ids_BT = torch.tensor(rows, device=self._spec.place.device)
        num_new = len(answers[0])
        logits_BTV = self._model(
            input_ids=ids_BT[:, :-1],
            use_cache=False,
            logits_to_keep=num_new,
            **self._rows(names),
        ).logits.float()
        best_BT = logits_BTV.amax(-1)
        range_BT = best_BT - logits_BTV.amin(-1)
        own_BT = logits_BTV.gather(-1, ids_BT[:, -num_new:, None])[..., 0]
        return (best_BT - own_BT) / range_BT

    def _rows(self, names: Sequence[str]) -> dict[str, Any]:
        return {"adapter_names": list(names)} if self._spec.mixed else {}


def _with_adapters(model: Any, spec: PeerSpec) -> Any:
    """All adapters beside each other, as PEFT loads them: in float32, by its default."""
    from peft import PeftModel

    (first, folder), *others = spec.files.adapters.items()
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 for an attribute by its old name.
        warnings.simplefilter("ignore", FutureWarning)
        peft_model: Any = PeftModel.from_pretrained(model, folder, adapter_name=first)
        for name, folder in others:
            peft_model.load_adapter(folder, adapter_name=name)
    return peft_model.eval()
