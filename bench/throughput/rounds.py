"""Rounds: every way once, in turn, so that a slow minute of the machine hits every row.

Owns the order, the thrown-away first round and the watch over the server, which must be idle
while a peer computes. Knows no server, no peer and no clock: a way is a function that answers.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .answers import Answers


class WrongWork(Exception):
    """A way answered something else than the load, so its figure would compare nothing."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to answer the load."""

    key: str  # of the result file: base, lora, hf, hf_static, peft, peft_static
    label: str  # of the table
    note: str  # how the requests are put together
    run: Callable[[], Answers]
    is_peer: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A way, its tokens per second in every round, and what it answered last."""

    way: Way
    warm_up_tok_s: float  # of the round that does not count
    tok_s: tuple[float, ...]  # of the rounds that do
    answers: Answers  # of the last round
    # Largest share of one core that the server used while this way ran; 0 for Lorry's own rows.
    server_share: float = 0.0

    @property
    def median_tok_s(self) -> float:
        return statistics.median(self.tok_s)


def run_rounds(
    ways: Sequence[Way],
    num_rounds: int,
    lens: tuple[int, int],
    *,
    server_cpu_s: Callable[[], float],
    tell: Callable[[str], None],
) -> list[Row]:
    """One round more than counts, to warm up. `lens`: requests, and new tokens of each.

    Raises:
        WrongWork: an answer is missing or has another length.
    """
    runs: dict[str, list[Answers]] = {way.key: [] for way in ways}
    shares: dict[str, float] = dict.fromkeys(runs, 0.0)
    for round_idx in range(num_rounds + 1):
        for way in ways:
            before_s = server_cpu_s() if way.is_peer else 0.0
            answers = way.run()
            if way.is_peer:
                share = (server_cpu_s() - before_s) / answers.wall_s
                shares[way.key] = max(shares[way.key], share)
            _check(way, answers, lens)
            runs[way.key].append(answers)
        told = ", ".join(f"{way.key} {runs[way.key][-1].tokens_per_s:.0f}" for way in ways)
        tell(f"{'warm-up' if round_idx == 0 else f'round {round_idx}'}: {told} tokens/s")
    return [_row(way, runs[way.key], shares[way.key]) for way in ways]


def _check(way: Way, answers: Answers, lens: tuple[int, int]) -> None:
    num_requests, num_new_tokens = lens
    found = {len(ids) for ids in answers.token_ids}
    if len(answers.token_ids) != num_requests or found != {num_new_tokens}:
        raise WrongWork(
            f"{way.label}: {len(answers.token_ids)} answers of {sorted(found)} tokens, not "
            f"{num_requests} of {num_new_tokens}"
        )


def _row(way: Way, runs: Sequence[Answers], server_share: float) -> Row:
    first, *counted = (run.tokens_per_s for run in runs)
    return Row(way, first, tuple(counted), runs[-1], server_share)
