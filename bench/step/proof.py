"""Whether the step that is timed computes what it should: no speed is told of a wrong one.

Owns three comparisons: the step as it is timed with the same one launched kernel by kernel, some
rows alone with the reference kernels, and rows with their adapters with the same rows without.
Knows no clock. Called before anything is timed.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ...server.execution.batch import StepCapacity, StepResult, StepRow
from ...server.execution.runner import Runner
from ...server.scheduling.sampling import SamplingParams
from .timing import BrokenStep
from .world import StepWorld

# Natural logarithms between two ways to compute one token's probability. In 16 bits sums in
# another order move a logit of six by some hundredths; a row with another's adapter or context
# mostly chooses a token that is nowhere near the best.
MAX_GAP = 0.25
NUM_TOP = 20
NUM_ALONE = 8  # rows that are computed by themselves: plain torch takes long
MIN_CHANGED = 0.3  # of the rows, by their adapters


def check_step(world: StepWorld, context: int) -> None:
    """Adapters are attached.

    Raises:
        BrokenStep: the step is wrong, or proves nothing.
    """
    said: list[StepResult] = []
    for with_adapters in (False, True):
        rows = _telling(world, context, with_adapters=with_adapters)
        timed = world.runner.run(rows)
        compare(timed, world.runner.run(_unrecorded(rows)), "launched by themselves")
        compare(timed, _alone(world, rows), "of the reference")
        said.append(timed)
    base, lora = (result.tokens for result in said)
    share = sum(base[row] != lora[row] for row in base) / len(base)
    if share < MIN_CHANGED:
        raise BrokenStep(f"the adapters change the token of {share:.0%} of the rows")


def compare(timed: StepResult, other: StepResult, what: str) -> None:
    """Every row of the other: the token of the timed step is as good as its best."""
    if timed.not_finite or other.not_finite:
        raise BrokenStep(f"logits are not finite, in rows {timed.not_finite or other.not_finite}")
    for row, theirs in other.logprobs.items():
        ours, known = timed.logprobs[row], dict(theirs.top)
        logprob = known.get(ours.token_id, float("-inf"))
        gap = max(theirs.top[0][1] - logprob, abs(ours.logprob - logprob))
        if not gap <= MAX_GAP:
            raise BrokenStep(
                f"row {row} says token {ours.token_id} of log-probability {ours.logprob:.2f}; of "
                f"the kernels {what} it has {logprob:.2f}, and the best has {theirs.top[0][1]:.2f}"
            )


def _telling(world: StepWorld, context: int, *, with_adapters: bool) -> list[StepRow]:
    """The rows that are timed, each with a token of its own, and their log-probabilities told."""
    return [
        replace(
            row,
            token_ids=(row.row % world.loaded.vocab_size,),
            sampling=SamplingParams(logprobs=NUM_TOP),
        )
        for row in world.rows(context, with_adapters=with_adapters)
    ]


def _unrecorded(rows: list[StepRow]) -> list[StepRow]:
    """The same, but one tells of its prompt, too, which no recording does."""
    first = rows[0]
    telling = replace(
        first,
        sampling=replace(first.sampling, prompt_logprobs=0),
        known_ids=[0] * (first.start + 2),
        num_prompt=first.start + 2,
        tell=range(first.start, first.start + 1),
    )
    return [telling, *rows[1:]]


def _alone(world: StepWorld, rows: list[StepRow]) -> StepResult:
    """Some of the rows one by one, out of copies of their pages."""
    num_kv, num_adapter = len(world.kv_pages[0]), world.layout.num_pages
    limits = StepCapacity(
        max_running=1,
        max_step_tokens=1,
        max_model_len=world.loaded.max_model_len,
        max_rows=len(rows),
        max_rank=max(tiles.rank for tiles in world.layout.sites),
    )
    runner = Runner(
        world.loaded, num_pages=num_kv + num_adapter, limits=limits, kernels="reference"
    )
    adapter_pages = range(num_kv, num_kv + num_adapter)
    runner.attach(0, world.layout, adapter_pages)
    found = StepResult({})
    for row in rows[:: max(1, len(rows) // NUM_ALONE)]:
        has_adapter = row.adapter_slot >= 0
        theirs = world.adapter_pages[row.adapter_slot] if has_adapter else ()
        idx = torch.tensor([*row.pages, *theirs], device=runner.pool_PE.device)
        runner.pool_PE[: len(idx)] = world.runner.pool_PE.index_select(0, idx)
        alone = replace(row, pages=range(num_kv), adapter_slot=0 if has_adapter else -1)
        result = runner.run([alone])
        found.logprobs.update(result.logprobs)
        if result.not_finite:
            return replace(found, not_finite=result.not_finite)
    return found
