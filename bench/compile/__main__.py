"""`make compile`: every shipped kernel, compiled for sm_80 and sm_90, without a GPU.

Owns the arguments, what is printed and the result file. Ends with 1 if a case fails or if there
is nothing to compile.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..machine import describe_machine
from .judge import SHARED_LIMIT_BYTES, find_lonely
from .lane import ARCHES, CompileLane, Outcome
from .operators import shipped_cases
from .table import HEADING, WIDTHS, format_loads, format_outcome, format_summary

RESULT_PATH = Path(__file__).parent.parent / "results" / "compile.json"


def main(argv: Sequence[str]) -> int:
    args = _parse(argv)
    start_s = time.perf_counter()
    lane = CompileLane(shipped_cases, num_workers=args.workers)
    cases = lane.cases()
    chosen = [terms for terms in cases if any(fnmatch(terms.name, only) for only in args.only)]
    print(f"triton {lane.triton}; {len(chosen)} of {len(cases)} cases; {WIDTHS}\n{HEADING}")
    outcomes: list[Outcome] = []
    for outcome in lane.run(chosen, arches=args.arch or ARCHES, fresh=args.fresh):
        print(format_outcome(outcome), flush=True)
        outcomes.append(outcome)
    lonely = find_lonely(cases)
    for name in lonely:
        print(f"{name}: unaligned, and no aligned case is its like")
    print(format_summary(outcomes))
    if args.result is not None:
        document = make_document(lane, outcomes, seconds=time.perf_counter() - start_s)
        args.result.parent.mkdir(parents=True, exist_ok=True)
        args.result.write_text(format_document(document))
    failed = [f"sm_{o.arch} {o.terms.name}: {fault}" for o in outcomes for fault in o.faults]
    if failed:
        print("\n".join(["", "These fail:", *failed]), file=sys.stderr)
    return 1 if failed or lonely or not outcomes else 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -P -m lorry.bench.compile", description=__doc__)
    parser.add_argument(
        "--only", action="append", metavar="GLOB", help="cases of such a name; may be repeated"
    )
    parser.add_argument("--arch", type=int, action="append", choices=ARCHES)
    parser.add_argument("--workers", type=int, default=2, help="processes that compile")
    parser.add_argument("--fresh", action="store_true", help="compile what is known, too")
    parser.add_argument("--result", type=Path, help=f"write there; make compile: {RESULT_PATH}")
    args = parser.parse_args(argv)
    args.only = args.only or ["*"]
    return args


def make_document(
    lane: CompileLane, outcomes: Sequence[Outcome], *, seconds: float
) -> dict[str, Any]:
    """In the order of the names, so that two runs can be compared."""
    ordered = sorted(outcomes, key=lambda outcome: (outcome.terms.name, outcome.arch))
    return {
        "bench": "compile",
        "triton": lane.triton,
        "source": lane.source,
        "shared_limit_bytes": SHARED_LIMIT_BYTES,
        "num_failed": sum(bool(outcome.faults) for outcome in outcomes),
        "num_known_before": sum(outcome.was_known for outcome in outcomes),
        "seconds": round(seconds, 1),
        "machine": asdict(describe_machine()),
        "binaries": [_row(outcome) for outcome in ordered],
    }


def _row(outcome: Outcome) -> dict[str, Any]:
    facts = {} if outcome.binary is None else outcome.binary.to_json()
    return {
        "case": outcome.terms.name,
        "arch": outcome.arch,
        **facts,
        "loads": [] if outcome.binary is None else format_loads(outcome.binary),
        "excuse": outcome.terms.unaligned,
        "faults": list(outcome.faults),
    }


def format_document(document: dict[str, Any]) -> str:
    """JSON with a line for each binary, so that a change shows as the lines it changes."""
    rows = ",\n".join(f"  {json.dumps(row)}" for row in document["binaries"])
    head = json.dumps({**document, "binaries": []}, indent=1)
    return head.replace('"binaries": []', f'"binaries": [\n{rows}\n ]') + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
