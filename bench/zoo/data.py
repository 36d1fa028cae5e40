"""Training data: random words of the training side, turned into batches of token ids.

Owns what a batch is made of and where the loss counts (the answer and <eos> only).
Does not know the model; never yields a held-out word.
Called by the training loop.
"""

import random

import torch
from torch import Tensor

from .model import BOS_ID, EOS_ID, PAD_ID
from .tasks import TASKS, Task, draw_word, prompt_for

IGNORED_LABEL = -100


def base_pair(rng: random.Random) -> tuple[str, str]:
    """Prompt and answer for the base: a copy without a tag, a task with its tag."""
    word = draw_word(rng, held_out=False)
    task = rng.choice((None, *TASKS))
    if task is None:
        return prompt_for(word), word
    return prompt_for(word, tag=task.tag), task.answer(word)


def adapter_pair(rng: random.Random, task: Task) -> tuple[str, str]:
    """Prompt and answer for an adapter: the task without its tag."""
    word = draw_word(rng, held_out=False)
    return prompt_for(word), task.answer(word)


def to_batch(pairs: list[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """Token ids and labels, both [len(pairs), longest], padded on the right.

    Causal attention never looks to the right, so no mask is needed.
    """
    rows = [[BOS_ID, *prompt.encode(), *answer.encode(), EOS_ID] for prompt, answer in pairs]
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), PAD_ID)
    labels = torch.full((len(rows), width), IGNORED_LABEL)
    for i, (row, (prompt, _)) in enumerate(zip(rows, pairs, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        start = 1 + len(prompt)
        labels[i, start : len(row)] = torch.tensor(row[start:])
    return ids, labels
