"""What the fuzzer's episodes share: a tiny random Llama, PEFT adapters, and what PEFT says.

Owns the model as served and as reference, the stored adapters, and the judge of an answer: each
token is compared with what PEFT's logits after the tokens before it choose by the sampler's own
rule. Knows no engine. Used by fuzz_episode.py.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ..adapters.key import AdapterCard
from ..adapters.limits import StoreLimits
from ..adapters.resolve import PeftResolver
from ..adapters.store import AdapterStore
from ..server.clock import unix_now_s
from ..server.execution.model import LoadedModel, prepare_model
from ..server.execution.penalties import Seen
from ..server.execution.sampler import Wish, sample
from ..server.scheduling.sampling import SamplingParams, TokenLogprobs
from .fuzz_wishes import wrong_records
from .store_folder import put_folder

# Two runs of one model may choose differently only where the best logits are this close.
TIE_SHARE = 1e-4  # of the logit range
VOCAB = 131
MAX_RANK = 256
PROMPT_LENS = (1, 2, 7, 15, 16, 17, 31, 33, 64, 90)
NUM_PLAIN = len(PROMPT_LENS)  # of the prompts: they share nothing
# Prompts that begin as an earlier one does: its place, how much of it, tokens in all.
FORKS = ((8, 64, 80), (9, 64, 70), (9, 40, 60), (9, 90, 95), (4, 16, 17), (7, 33, 49))
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
BASE = ""


class WrongToken(Exception):
    """An answer left PEFT's path where there was no tie."""


def _no_options() -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class Content:
    """One adapter's numbers; names and versions are the episode's."""

    name: str
    rank: int
    targets: list[str] | str
    options: Mapping[str, Any] = field(default_factory=_no_options)  # further LoraConfig fields


CONTENTS = (
    Content("r1", 1, "all-linear"),
    Content("r5-attention", 5, ATTENTION),
    Content("r8-rslora", 8, "all-linear", {"use_rslora": True}),
    Content("r12-mlp", 12, MLP),
    Content("r24-layer1", 24, r".*\.1\..*_proj"),
    Content("r16-q", 16, ["q_proj"]),
    Content("r3-one-site", 3, r".*\.0\.mlp\.down_proj"),
    Content("r100-v", 100, ["v_proj"]),
    Content("patterns", 4, ATTENTION, {"rank_pattern": {"q_proj": 17, "v_proj": 33}}),
)


@dataclass(frozen=True, slots=True)
class Question:
    """What the tokens of an answer depend on, and nothing else."""

    content: str  # BASE for the base model
    prompt: int  # index into the prompts
    sampling: SamplingParams


class FuzzWorld:
    """Built once, in a second or two; it is the same for every episode."""

    def __init__(self, home: Path) -> None:
        torch.manual_seed(0)
        base = LlamaForCausalLM(_llama_config()).eval()
        self.loaded: LoadedModel = prepare_model(copy.deepcopy(base))
        rng = random.Random(0)
        self.prompts = [tuple(rng.randrange(VOCAB) for _ in range(n)) for n in PROMPT_LENS]
        for place, shared, length in FORKS:
            rest = tuple(rng.randrange(VOCAB) for _ in range(length - shared))
            self.prompts.append(self.prompts[place][:shared] + rest)
        self._models: dict[str, Any] = {BASE: base}
        self._right: dict[Question, tuple[int, ...]] = {}  # the longest answer judged so far
        self._store = _open_store(home / "store", self.loaded)
        self.cards: dict[str, AdapterCard] = {}
        for place, content in enumerate(CONTENTS):
            model = _make_peft(base, content, seed=place)
            model.save_pretrained(home / content.name)
            self._models[content.name] = model
            self.cards[content.name] = put_folder(self._store, content.name, home / content.name)

    def close(self) -> None:
        self._store.close()

    def judge(self, question: Question, tokens: Sequence[int]) -> int:
        """How many of the tokens were ties.

        Raises:
            WrongToken: one of them was not PEFT's, and no tie.
        """
        answer = tuple(tokens)
        right = self._right.get(question, ())
        if answer == right[: len(answer)]:
            return 0
        ties = self._count_ties(question, answer)
        if len(answer) > len(right):
            self._right[question] = answer
        return ties

    def judge_told(
        self,
        question: Question,
        tokens: Sequence[int],
        answer: Sequence[TokenLogprobs],
        prompt: Sequence[TokenLogprobs],
    ) -> None:
        """Raises:
        WrongToken: a log-probability of answer or prompt is not PEFT's.
        """
        if not answer and not prompt:
            return
        logprobs_TV = self._logits(question, tokens).log_softmax(-1).tolist()
        first, sampling = len(self.prompts[question.prompt]) - 1, question.sampling
        wrong = wrong_records(prompt, logprobs_TV[: len(prompt)], num_top=sampling.prompt_logprobs)
        said = logprobs_TV[first : first + len(answer)]
        wrong += wrong_records(answer, said, num_top=sampling.logprobs)
        if wrong:
            raise WrongToken(f"{question}: {wrong}")

    @torch.inference_mode()
    def _logits(self, question: Question, tokens: Sequence[int]) -> Tensor:
        ids = torch.tensor([[*self.prompts[question.prompt], *tokens]])
        return self._models[question.content](input_ids=ids, use_cache=False).logits[0].float()

    @torch.inference_mode()
    def _count_ties(self, question: Question, answer: tuple[int, ...]) -> int:
        prompt = self.prompts[question.prompt]
        logits_BV = self._logits(question, answer)[len(prompt) - 1 : -1]
        wishes = [
            Wish(question.sampling, len(prompt) + i, _seen(prompt, answer[:i]))
            for i in range(len(answer))
        ]
        wanted = sample(logits_BV, wishes).tokens_B.tolist()
        ties = 0
        for place, (token, best) in enumerate(zip(answer, wanted, strict=True)):
            if token == best:
                continue
            lifted_1V = logits_BV[place : place + 1].clone()
            step = TIE_SHARE * float(lifted_1V.max() - lifted_1V.min())
            lifted_1V[0, token] += step
            lifted_1V[0, best] -= step  # it may be drawn from, where ours was just filtered out
            if int(sample(lifted_1V, wishes[place : place + 1]).tokens_B) != token:
                raise WrongToken(
                    f"{question}: token {place} is {token}, PEFT's is {best}; answer {answer}"
                )
            ties += 1
        return ties


def _seen(prompt: Sequence[int], answer: Sequence[int]) -> Seen:
    """Counted anew for every token, unlike the runner's."""
    token_ids = sorted({*prompt, *answer})
    counts = [answer.count(token) for token in token_ids]
    return Seen(np.array(token_ids, np.int64), np.array(counts, np.float32))


def _llama_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        # Wide logits: a random model's best two tokens then lie far apart.
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def _make_peft(base: LlamaForCausalLM, content: Content, *, seed: int) -> Any:
    """PEFT's own model with random factors: its B starts at zero, which would prove nothing."""
    config = LoraConfig(
        r=content.rank,
        lora_alpha=2 * content.rank,
        target_modules=content.targets,
        task_type="CAUSAL_LM",
        **content.options,
    )
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 for an attribute by its old name.
        warnings.simplefilter("ignore", FutureWarning)
        model: Any = get_peft_model(copy.deepcopy(base), config).eval()
    generator = torch.Generator().manual_seed(1000 + seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.4 / parameter.shape[1] ** 0.5, generator=generator)
    return model


def _open_store(root: Path, loaded: LoadedModel) -> AdapterStore:
    with torch.device("meta"):
        skeleton = LlamaForCausalLM(_llama_config())
    limits = StoreLimits(max_upload_bytes=64 << 20, max_rank=MAX_RANK)
    resolver = PeftResolver(skeleton, base_name="fuzz")
    store = AdapterStore(root, limits, resolver, unix_now_s=unix_now_s)
    store.configure(loaded.image_spec)
    return store
