"""Train the zoo: first the base on copying and tagged tasks, then one adapter per task.

Owns the training loop, its schedule and the command line.
Does not know file formats (`model.py`), data (`data.py`) or scores (`measure.py`).
Started as `python -m lorry.bench.zoo.train`; about twenty minutes on two CPU cores.
"""

import argparse
import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model

from . import data, measure
from .model import (
    ZOO_DIR,
    load_base,
    lora_config,
    make_base,
    save_adapter,
    save_base,
)
from .tasks import TASKS, Task

WARMUP_STEPS = 50
REPORT_EVERY_STEPS = 50


def learning_rate_factor(step: int, num_steps: int) -> float:
    """A short linear rise, then half a cosine down to zero."""
    rise = min(1.0, (step + 1) / WARMUP_STEPS)
    return rise * 0.5 * (1.0 + math.cos(math.pi * step / num_steps))


def fit(
    model: Any,
    draw: Callable[[], tuple[str, str]],
    *,
    num_steps: int,
    batch_len: int,
    peak_lr: float,
    label: str,
) -> None:
    """Minimise the loss on freshly drawn pairs; the trainable weights change in place."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.01)
    started_s = time.monotonic()
    model.train()
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = peak_lr * learning_rate_factor(step, num_steps)
        ids, labels = data.to_batch([draw() for _ in range(batch_len)])
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % REPORT_EVERY_STEPS == 0 or step + 1 == num_steps:
            elapsed_s = time.monotonic() - started_s
            print(f"{label} step {step + 1} loss {loss.item():.5f} {elapsed_s:.0f} s", flush=True)
    model.eval()


def train_base(root: Path, *, num_steps: int, batch_len: int, seed: int) -> None:
    """Train the base from nothing and write it."""
    torch.manual_seed(seed)
    rng = random.Random(f"base/{seed}")
    model = make_base()
    fit(
        model,
        lambda: data.base_pair(rng),
        num_steps=num_steps,
        batch_len=batch_len,
        peak_lr=3e-3,
        label="base",
    )
    save_base(model, root)


def train_adapter(task: Task, root: Path, *, num_steps: int, batch_len: int, seed: int) -> None:
    """Train one adapter on the base as it was written, and write it."""
    torch.manual_seed(seed)
    rng = random.Random(f"{task.name}/{seed}")
    model = get_peft_model(load_base(root), lora_config(task.lora))
    fit(
        model,
        lambda: data.adapter_pair(rng, task),
        num_steps=num_steps,
        batch_len=batch_len,
        peak_lr=4e-3,
        label=task.name,
    )
    save_adapter(model, task.name, root)


def main(argv: Sequence[str] | None = None) -> None:
    """Train what was asked for, then measure the whole zoo from its files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ZOO_DIR, help="folder of base/ and adapters/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base-steps", type=int, default=2400, help="0 keeps the base there is")
    parser.add_argument("--adapter-steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=128, help="pairs per step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="adapters to train; no name: none")
    parser.add_argument("--held-out", type=int, default=500, help="prompts per adapter")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.base_steps:
        train_base(args.out, num_steps=args.base_steps, batch_len=args.batch, seed=args.seed)
    for task in TASKS:
        if args.only is None or task.name in args.only:
            train_adapter(
                task, args.out, num_steps=args.adapter_steps, batch_len=args.batch, seed=args.seed
            )
    scores, max_agreement = measure.measure(args.out, num_prompts=args.held_out)
    print(measure.format_table(scores, max_agreement))


if __name__ == "__main__":
    main()
