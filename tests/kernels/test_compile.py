"""A part of `make compile`: the kernels that serve most tokens, as binaries for both chips.

Known binaries come from build/compile, by the hash of all kernels; the names and counts of what is
compiled anew are printed (`pytest -s`).
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lorry.bench.compile.judge import CaseTerms, find_lonely
from lorry.bench.compile.lane import ARCHES, CompileLane, Outcome
from lorry.bench.compile.operators import shipped_cases
from lorry.bench.compile.table import format_outcome, format_summary

# Each costs about a second for both chips; `make compile` walks all.
PART = (
    "sgmv_shrink/short/bf16/llama-8b-qkv",
    "sgmv_expand/short/bf16/llama-8b-qkv",
    "sgmv_shrink/long/bf16/llama-8b-down",
    "sgmv_expand/long/bf16/llama-8b-gate-up",
    "attend_single/plain/bf16/llama-8b",
    "attend_blocks/plain/bf16/llama-8b",
    "merge_splits/plain/bf16/llama-8b",
    "store_pages/plain/bf16/llama-8b",
    # The most registers: products without tensor cores, the widest head, every option.
    "attend_single/all/fp32/gemma3-1b",
)


@pytest.fixture(scope="module")
def lane() -> CompileLane:
    return CompileLane(shipped_cases)


@pytest.fixture(scope="module")
def cases(lane: CompileLane) -> dict[str, CaseTerms]:
    return {terms.name: terms for terms in lane.cases()}


@pytest.fixture(scope="module")
def outcomes(lane: CompileLane, cases: dict[str, CaseTerms]) -> Sequence[Outcome]:
    found = list(lane.run([cases[name] for name in PART if name in cases]))
    print("", *map(format_outcome, found), format_summary(found), sep="\n")
    return found


@pytest.mark.compile
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("name", PART)
def test_a_shipped_kernel_may_be_launched(
    outcomes: Sequence[Outcome], name: str, arch: int
) -> None:
    """It would fail on that chip, spill, read two bytes at a time, or compile while serving."""
    (outcome,) = [o for o in outcomes if (o.terms.name, o.arch) == (name, arch)]
    assert not outcome.faults, format_outcome(outcome)
    assert outcome.binary is not None
    assert outcome.binary.loads


@pytest.mark.compile
def test_no_shape_is_called_odd_without_an_even_one(cases: dict[str, CaseTerms]) -> None:
    """An excuse for a whole kernel would hide its narrow loads from everybody."""
    assert find_lonely(list(cases.values())) == []
