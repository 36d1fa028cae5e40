"""How good the zoo is: greedy answers in float32, accuracy and agreement.

Owns the batched greedy decoding used for measuring and the table printed at the end.
Does not know training; always reads the files that are shipped.
Called by training when it ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from .model import adapter_dir, base_dir, load_adapter, load_base, load_tokenizer
from .tasks import (
    BASE_NAME,
    MAX_WORD_LEN,
    TASKS,
    LoraShape,
    expected_answer,
    held_out_prompts,
)

# The longest answer writes every letter twice; <eos> follows.
MAX_NEW_TOKENS = 2 * MAX_WORD_LEN + 2


@dataclass(frozen=True, slots=True)
class Score:
    """What one adapter did on its held-out prompts."""

    # Adapter name, "" for the base.
    name: str
    # Its ranks and module names in short, empty for the base.
    shape: str
    # Share of exact answers.
    accuracy: float
    # Mean length of the right answers, <eos> not counted.
    mean_answer_tokens: float
    # Share of these prompts on which the base's answer was right for this adapter.
    base_accuracy: float
    # Size of its weight file.
    weight_bytes: int


def answer_all(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """Greedy answers, in the order of the prompts.

    Prompts of one length go together, so that no padding enters the measurement.
    """
    texts: dict[int, str] = {}
    by_len: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_len.setdefault(len(prompt), []).append(i)
    for indices in by_len.values():
        inputs = tokenizer([prompts[i] for i in indices], return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new_ids = ids[:, inputs["input_ids"].shape[1] :]
        decoded = tokenizer.batch_decode(new_ids, skip_special_tokens=True)
        texts.update(zip(indices, decoded, strict=True))
    return [texts[i] for i in range(len(prompts))]


def measure(root: Path, *, num_prompts: int) -> tuple[list[Score], float]:
    """A score for the base and for every adapter, and the largest agreement of two adapters."""
    tokenizer = load_tokenizer(root)
    base = load_base(root)
    shared = held_out_prompts(BASE_NAME, num_prompts)
    copied = answer_all(base, tokenizer, shared)
    base_bytes = (base_dir(root) / "model.safetensors").stat().st_size
    scores = [_score(BASE_NAME, "", shared, copied, copied, weight_bytes=base_bytes)]
    texts_by_name: dict[str, list[str]] = {}
    for task in TASKS:
        prompts = held_out_prompts(task.name, num_prompts)
        base_texts = answer_all(base, tokenizer, prompts)
        model = load_adapter(task.name, root)
        texts = answer_all(model, tokenizer, prompts)
        weight_bytes = (adapter_dir(task.name, root) / "adapter_model.safetensors").stat().st_size
        shape = _describe(task.lora)
        scores.append(
            _score(task.name, shape, prompts, texts, base_texts, weight_bytes=weight_bytes)
        )
        texts_by_name[task.name] = answer_all(model, tokenizer, shared)
    return scores, _max_agreement(list(texts_by_name.values()))


def _score(
    name: str,
    shape: str,
    prompts: Sequence[str],
    texts: Sequence[str],
    base_texts: Sequence[str],
    *,
    weight_bytes: int,
) -> Score:
    expected = [expected_answer(name, prompt) for prompt in prompts]
    return Score(
        name=name,
        shape=shape,
        accuracy=_share_equal(expected, texts),
        mean_answer_tokens=sum(map(len, expected)) / len(expected),
        base_accuracy=_share_equal(expected, base_texts),
        weight_bytes=weight_bytes,
    )


def _describe(shape: LoraShape) -> str:
    """`8 (3, 17, 24 by pattern): q k v o`, short enough for a table cell."""
    rank = f"{shape.rank} rsLoRA" if shape.use_rslora else str(shape.rank)
    if shape.rank_pattern:
        rank += f" ({', '.join(map(str, sorted(shape.rank_pattern.values())))} by pattern)"
    targets = shape.target_modules
    if isinstance(targets, str):
        return f"{rank}: by regular expression"
    return f"{rank}: {' '.join(target.removesuffix('_proj') for target in targets)}"


def _share_equal(some: Sequence[str], others: Sequence[str]) -> float:
    return sum(one == other for one, other in zip(some, others, strict=True)) / len(some)


def _max_agreement(all_texts: Sequence[Sequence[str]]) -> float:
    """The largest share of equal answers of any two adapters."""
    return max(_share_equal(some, others) for some, others in combinations(all_texts, 2))


def format_table(scores: Sequence[Score], max_agreement: float) -> str:
    """The closing table, in the form in which README.md holds it."""
    lines = [
        "| Adapter | `fable` | Rank: targets | Exact | Mean answer tokens | Base exact | Bytes |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for s in scores:
        cells = (
            s.name or "(base)",
            f"`{expected_answer(s.name, 'fable>')}`",
            s.shape,
            f"{s.accuracy:.1%}",
            f"{s.mean_answer_tokens:.1f}",
            f"{s.base_accuracy:.1%}",
            f"{s.weight_bytes:,}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(f"\nLargest agreement of two adapters: {max_agreement:.1%}")
    lines.append(f"All weights: {sum(s.weight_bytes for s in scores):,} bytes")
    return "\n".join(lines)
