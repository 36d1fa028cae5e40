"""The rounds of a soak: no failure is lost, and none hides what comes after it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import count, islice, takewhile
from pathlib import Path

import pytest

from lorry.bench.soak_rounds import MAX_FAILURES, Sums, conclude, run_seeds


@dataclass(slots=True)
class Counters(Sums):
    steps: int = 0


def life(seed: int) -> Counters:
    if seed % 2:
        raise ValueError(f"page {seed} has no owner")
    return Counters(episodes=1, steps=seed)


def test_a_failed_episode_is_noted_and_the_next_one_runs(capsys: pytest.CaptureFixture[str]):
    """One bad seed would hide all after it, or pass as a good one."""
    outcome = run_seeds(range(2, 5), life, Counters())
    assert outcome.totals == Counters(episodes=2, steps=6)
    assert outcome.failures == ["3: ValueError: page 3 has no owner"]
    assert outcome.num_seeds == 3
    assert "page 3 has no owner" in capsys.readouterr().err


def test_failures_have_an_end():
    """With an engine that is broken for good a soak would tell the same for hours."""
    outcome = run_seeds(count(1, 2), life, Counters())
    assert len(outcome.failures) == outcome.num_seeds == MAX_FAILURES


def test_seeds_may_end_by_what_was_done():
    """`make churn` ends after so many operations."""
    totals = Counters()
    seeds = takewhile(lambda _: totals.steps < 6, islice(count(2, 2), None))
    assert run_seeds(seeds, life, totals).num_seeds == 2


def test_the_document_says_which_seeds_and_what_failed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    """A failure could not be repeated; and a run with one must not exit 0."""
    outcome = run_seeds(range(2, 4), life, Counters())
    result = tmp_path / "new" / "soak.json"
    assert conclude({"bench": "x"}, outcome, first_seed=2, result=result) == 1
    document = json.loads(result.read_text())
    assert json.loads(capsys.readouterr().out) == document
    assert list(document)[:4] == ["bench", "seeds", "episodes", "steps"]
    assert document["seeds"] == [2, 3] and document["failures"] == outcome.failures
    good = run_seeds([2], life, Counters())
    assert conclude({"bench": "x"}, good, first_seed=2, result=None) == 0
