"""What is asked during a storm, and the right answers to it, known before it breaks.

Short answers come from the zoo's recorded ones; long ones are computed here by PEFT and cut
before the first token that was nearly another one, so that no answer is right or wrong by luck.
Knows neither servers nor events. Used by storm.py; the tests bring asks of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .demo_table import load_questions

ZOO_DIR = Path(__file__).parent / "zoo"
SHORT_NEW_TOKENS = 32  # longer than any of the zoo's answers
LONG_NEW_TOKENS = 120
LONG_ADAPTERS = ("", "rot13", "double", "sort", "reverse")
LONG_PROMPTS = ("fable>", "longer words>", "abcdefghij>", "qq>", "storm>")
LEAST_LONG_TOKENS = 48
# Of the spread of all logits: twenty times what counts as a tie.
MIN_GAP_SHARE = 2e-3


@dataclass(frozen=True, slots=True)
class Ask:
    """One request and its right answer."""

    adapter: str  # empty: the base
    prompt: str | tuple[int, ...]
    max_new_tokens: int
    ignore_eos: bool
    tokens: tuple[int, ...]  # the whole answer

    @property
    def is_long(self) -> bool:
        """Long enough to be met half-way."""
        return len(self.tokens) >= LEAST_LONG_TOKENS


@dataclass(frozen=True, slots=True)
class Scene:
    """What a storm is played with: adapters that stay, and asks of them and of the base."""

    asks: tuple[Ask, ...]
    folders: dict[str, Path]  # by adapter name; uploaded already

    def of(self, adapter: str) -> list[Ask]:
        return [ask for ask in self.asks if ask.adapter == adapter]


def zoo_scene() -> Scene:
    """Takes some seconds: PEFT answers at length."""
    short = [
        Ask(q.adapter, q.prompt, SHORT_NEW_TOKENS, ignore_eos=False, tokens=q.token_ids)
        for q in load_questions(ZOO_DIR / "answers.json")
    ]
    folders = {path.name: path for path in sorted((ZOO_DIR / "adapters").iterdir())}
    return Scene((*short, *_long_asks()), folders)


def _long_asks() -> list[Ask]:
    from .zoo.model import load_adapter, load_base, load_tokenizer

    tokenizer: Any = load_tokenizer()
    asks: list[Ask] = []
    for name in LONG_ADAPTERS:
        model = load_adapter(name) if name else load_base()
        for prompt in LONG_PROMPTS:
            tokens = _generate(model, tokenizer, prompt)
            if len(tokens) >= LEAST_LONG_TOKENS:
                asks.append(Ask(name, prompt, len(tokens), ignore_eos=True, tokens=tokens))
                asks.append(_continued(asks[-1], tokenizer(prompt)["input_ids"]))
    return asks


def _continued(ask: Ask, prompt_ids: Sequence[int]) -> Ask:
    """The same path from a later start: a prompt of whole pages, that is met again and again."""
    cut = len(ask.tokens) - LEAST_LONG_TOKENS // 2
    tokens = ask.tokens[cut:]
    return Ask(
        ask.adapter, (*prompt_ids, *ask.tokens[:cut]), len(tokens), ignore_eos=True, tokens=tokens
    )


def _generate(model: Any, tokenizer: Any, prompt: str) -> tuple[int, ...]:
    """Greedy tokens through any end of sequence, cut before the first doubtful one."""
    import torch

    inputs = tokenizer(prompt, return_tensors="pt")
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        out = model.generate(
            **inputs,
            max_new_tokens=LONG_NEW_TOKENS,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    logits_TV = torch.cat(out.logits)
    best = logits_TV.topk(2, dim=-1).values
    spread = logits_TV.max(dim=-1).values - logits_TV.min(dim=-1).values
    doubtful = (best[:, 0] - best[:, 1]) < MIN_GAP_SHARE * spread
    num_sure = int(doubtful.int().argmax()) if bool(doubtful.any()) else len(doubtful)
    start = inputs["input_ids"].shape[1]
    return tuple(out.sequences[0, start : start + num_sure].tolist())


def is_start_of(tokens: Sequence[int], ask: Ask) -> bool:
    return tuple(tokens) == ask.tokens[: len(tokens)]
