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
    "send_rows/plain/bf16/wide",
    "await_answer/plain/int64/any",
    "add_answer/plain/bf16/wide",
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


@pytest.mark.compile
@pytest.mark.parametrize("arch", ARCHES)
def test_rows_are_published_after_they_are_written(outcomes: Sequence[Outcome], arch: int) -> None:
    """A helper on another core would begin with rows of the errand before: every thread's rows come
    before the program counts itself, and the words after all programs have, for the whole system.
    """
    orders = _orders(outcomes, "send_rows/plain/bf16/wide", arch)
    counted = next(i for i, name in enumerate(orders) if name.startswith("atom."))
    assert {"acq_rel", "sys"} <= set(orders[counted].split("."))
    assert "bar.sync" in orders[:counted]
    assert "st.release.sys.global.b64" in orders[counted:]
    assert not any("release" in name for name in orders[:counted])


@pytest.mark.compile
@pytest.mark.parametrize("arch", ARCHES)
def test_a_wait_acquires_and_never_writes_a_helpers_word(
    outcomes: Sequence[Outcome], arch: int
) -> None:
    """An exchange over the bus, where the host has no atomics in common with the device, could put
    an old word back over the one that the helper has just written."""
    orders = _orders(outcomes, "await_answer/plain/int64/any", arch)
    assert "ld.acquire.sys.global.b64" in orders
    assert not any(name.startswith(("atom.", "red.", "st.release")) for name in orders)
    # A thread that leaves the loop later than another must not be waited for inside it.
    assert "bar.sync" not in orders


def _orders(outcomes: Sequence[Outcome], name: str, arch: int) -> tuple[str, ...]:
    (outcome,) = [o for o in outcomes if (o.terms.name, o.arch) == (name, arch)]
    assert outcome.binary is not None, format_outcome(outcome)
    return outcome.binary.orders
