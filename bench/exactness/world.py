"""One case made real: its model, PEFT's model of the same weights, and the stored adapters.

Owns the reference and the judge of an answer: each token must be what PEFT's logits after the
tokens before it choose, or tie with that. Adapters go the way of a user's: saved by PEFT, taken
in by the store. Knows no engine; serving.py runs one over it.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from ...adapters.key import AdapterCard
from ...adapters.limits import StoreLimits
from ...adapters.resolve import PeftResolver
from ...adapters.store import AdapterStore
from ...server.clock import unix_now_s
from ...server.execution.model import LoadedModel, prepare_model
from ...server.execution.packed import pack_linears
from ...server.execution.siblings import merge_siblings
from ..fuzz_world import TIE_SHARE, WrongToken
from ..store_folder import put_folder
from .cases import VOCAB, Case
from .fleet import make_peft, quiet, recipes

BASE = ""
MAX_RANK = 256
# Over pages of 16 tokens and windows of 24: inside one, at an edge, past several.
PROMPT_LENS = (5, 37, 61)


class CaseWorld:
    """Everything a case needs but an engine; what is served is on `device`, PEFT on the CPU.

    Close it.
    """

    def __init__(
        self, case: Case, home: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> None:
        self.case = case
        torch.manual_seed(0)
        base: Any = AutoModelForCausalLM.from_config(case.config(), attn_implementation="eager")
        disturb(base)
        # The reference has the served weights' values, whatever precision it computes in.
        base = base.eval().to(dtype).float()
        self.plain: Any = base
        self._dtype, self._device = dtype, device
        self.num_packed = 0  # linears of `packed`, once it is asked for
        self.loaded: LoadedModel = self._prepare()
        spec = self.loaded.image_spec
        self.fleet = recipes(spec.sites, head=self._head_name(base), has_experts=case.has_experts)
        self.peft = make_peft(base, self.fleet, loud=case.loud)
        generator = torch.Generator().manual_seed(3)
        self.prompts: list[tuple[int, ...]] = [
            tuple(torch.randint(VOCAB, (n,), generator=generator).tolist()) for n in PROMPT_LENS
        ]
        self._store = self._open_store(home / "store")
        self.cards: dict[str, AdapterCard] = {}
        with quiet():
            self.peft.save_pretrained(str(home))
        for recipe in self.fleet:
            self.cards[recipe.name] = put_folder(self._store, recipe.name, home / recipe.name)

    def close(self) -> None:
        self._store.close()

    @cached_property
    def packed(self) -> LoadedModel:
        """The same model as a CPU serves a large one: all merged and packed that can be."""
        loaded = self._prepare()
        self.num_packed = merge_siblings(loaded.model, loaded.siblings, min_packed_elements=1)
        self.num_packed += pack_linears(loaded.model, min_elements=1)
        return loaded

    def _prepare(self) -> LoadedModel:
        served = copy.deepcopy(self.plain).to(self._device, self._dtype)
        return prepare_model(served, max_model_len=self.case.max_model_len)

    @contextmanager
    def speaking(self, adapter: str) -> Generator[Any]:
        """PEFT's model with this adapter, or with none, in use."""
        if adapter == BASE:
            with self.peft.disable_adapter():
                yield self.peft
        else:
            self.peft.set_adapter(adapter)
            yield self.peft

    @torch.inference_mode()
    def logits(self, adapter: str, token_ids: Sequence[int]) -> Tensor:
        """PEFT's [T, V] in fp32."""
        with self.speaking(adapter) as model:
            ids_1T = torch.tensor([list(token_ids)])
            return model(input_ids=ids_1T, use_cache=False).logits[0].float()

    def count_ties(self, adapter: str, prompt: Sequence[int], answer: Sequence[int]) -> int:
        """Raises WrongToken where a token is neither PEFT's nor as good as its."""
        logits_TV = self.logits(adapter, [*prompt, *answer])[len(prompt) - 1 : -1]
        ties = 0
        for place, (row_V, token) in enumerate(zip(logits_TV, answer, strict=True)):
            gap = float(row_V.max() - row_V[token])
            if gap > 0 and gap >= TIE_SHARE * float(row_V.max() - row_V.min()):
                raise WrongToken(
                    f"{self.case.label}, adapter {adapter or 'base'}, prompt of {len(prompt)}: "
                    f"token {place} is {token}, PEFT's is {int(row_V.argmax())}, logits "
                    f"{gap:.3g} apart; answer {list(answer)}"
                )
            ties += int(token != int(row_V.argmax()))
        return ties

    def _head_name(self, base: PreTrainedModel) -> str:
        head = base.get_output_embeddings()
        names = {module: name for name, module in base.named_modules()}
        name = names.get(head, "") if head is not None else ""
        return name if any(site.name == name for site in self.loaded.image_spec.sites) else ""

    def _open_store(self, root: Path) -> AdapterStore:
        with torch.device("meta"):
            skeleton: Any = AutoModelForCausalLM.from_config(self.case.config())
        limits = StoreLimits(max_upload_bytes=64 << 20, max_rank=MAX_RANK)
        store = AdapterStore(
            root, limits, PeftResolver(skeleton, base_name=self.case.label), unix_now_s=unix_now_s
        )
        store.configure(self.loaded.image_spec)
        return store


@torch.no_grad()
def disturb(model: PreTrainedModel) -> None:
    """Biases start at zero and norms at one, and would show nothing if they were left out."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
