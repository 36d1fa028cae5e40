"""A line for each case: what it needs, how it loads, and whether it may be shipped."""

from __future__ import annotations

from collections.abc import Iterable

from .binary import Binary
from .judge import narrowest_bytes
from .lane import Outcome

WIDTHS = "widths: how, bytes of one load x instructions; least: narrowest load of 16-bit elements"
HEADING = (
    f"{'arch':5} {'warps':>5} {'regs':>4} {'shared':>7} {'stack':>5} {'local':>5} {'least':>5}"
    "  verdict  case, widths"
)


def format_outcome(outcome: Outcome) -> str:
    """One line; faults follow on lines of their own."""
    verdict = "FAILS" if outcome.faults else "ok"
    facts = f"{'':40}" if outcome.binary is None else _facts(outcome.binary)
    widths = "" if outcome.binary is None else f"  [{', '.join(format_loads(outcome.binary))}]"
    excuse = f"  (unaligned: {outcome.terms.unaligned})" if outcome.terms.unaligned else ""
    line = f"sm_{outcome.arch} {facts}  {verdict:7}  {outcome.terms.name}{widths}{excuse}"
    return "\n".join([line.rstrip(), *(f"      {fault}" for fault in outcome.faults)])


def _facts(binary: Binary) -> str:
    least = narrowest_bytes(binary)
    return (
        f"{binary.num_warps:5} {binary.num_registers:4} {binary.shared_bytes:7}"
        f" {binary.stack_bytes:5} {binary.local_bytes:5} {'-' if least is None else least:>5}"
    )


def format_loads(binary: Binary) -> list[str]:
    """`cp.async bf16 16x32`: how, what, bytes of one load, instructions."""
    return [
        f"{load.how} {load.element or '?'} {load.width_bytes or 'bulk'}x{load.num_instructions}"
        for load in binary.loads
    ]


def format_summary(outcomes: Iterable[Outcome]) -> str:
    done = list(outcomes)
    failed = [outcome for outcome in done if outcome.faults]
    known = sum(outcome.was_known for outcome in done)
    return f"{len(done)} binaries, {known} known before, {len(failed)} fail"
