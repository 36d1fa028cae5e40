"""Record the demo answers: what PEFT generates from the shipped files, token by token.

Owns `answers.json`: greedy, float32, one prompt at a time, with the key-value cache.
Does not know training. Run it after `train`, as `python -m lorry.bench.zoo.record`; demos
and tests read the file through `load_answers` and compare their own tokens with it.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .measure import MAX_NEW_TOKENS
from .model import ZOO_DIR, load_adapter, load_base, load_tokenizer
from .tasks import BASE_NAME, TASKS, expected_answer, held_out_prompts

NUM_PROMPTS_PER_ADAPTER = 6
# With ten adapters this makes 64 in all.
NUM_BASE_PROMPTS = 4
# Other prompts than those on which the accuracy is measured.
DEMO_SEED = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """One prompt and what came out."""

    # Adapter name, "" for the base.
    adapter: str
    # Untagged prompt; the tokenizer puts <bos> in front of it.
    prompt: str
    # Generated ids only, <eos> included.
    token_ids: list[int]
    # Those ids decoded without special tokens.
    text: str
    # The right text by `tasks.py`.
    expected: str


def generate_ids(model: Any, tokenizer: Any, prompt: str) -> tuple[list[int], float]:
    """Greedy token ids up to <eos>, and the smallest gap between best and second logit."""
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        out = model.generate(
            **inputs,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            use_cache=True,
            return_dict_in_generate=True,
            output_logits=True,
        )
    token_ids: list[int] = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    best = torch.cat(out.logits).topk(2, dim=-1).values
    return token_ids, float((best[:, 0] - best[:, 1]).min())


def record(root: Path) -> tuple[list[Answer], float]:
    """The demo answers of the base and all adapters, and the smallest logit gap of all."""
    tokenizer: Any = load_tokenizer(root)
    answers: list[Answer] = []
    min_gap = float("inf")
    for name in (BASE_NAME, *(task.name for task in TASKS)):
        model = load_base(root) if name == BASE_NAME else load_adapter(name, root)
        num = NUM_BASE_PROMPTS if name == BASE_NAME else NUM_PROMPTS_PER_ADAPTER
        for prompt in held_out_prompts(name, num, seed=DEMO_SEED):
            token_ids, gap = generate_ids(model, tokenizer, prompt)
            text = tokenizer.decode(token_ids, skip_special_tokens=True)
            answers.append(Answer(name, prompt, token_ids, text, expected_answer(name, prompt)))
            min_gap = min(min_gap, gap)
    return answers, min_gap


def save_answers(answers: Sequence[Answer], root: Path) -> None:
    """One answer a line, so that a change shows as the lines it touches."""
    lines = ",\n".join(json.dumps(asdict(answer)) for answer in answers)
    (root / "answers.json").write_text(f"[\n{lines}\n]\n")


def load_answers(root: Path = ZOO_DIR) -> list[Answer]:
    """The recorded answers as they are in the file."""
    return [Answer(**fields) for fields in json.loads((root / "answers.json").read_text())]


def main(argv: Sequence[str] | None = None) -> None:
    """Record, write and say how many are right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ZOO_DIR, help="folder of base/ and adapters/")
    args = parser.parse_args(argv)
    answers, min_gap = record(args.out)
    save_answers(answers, args.out)
    num_right = sum(answer.text == answer.expected for answer in answers)
    print(f"{num_right} of {len(answers)} right, smallest logit gap {min_gap:.2f}")


if __name__ == "__main__":
    main()
