"""`make exact`: every architecture, every precision, every setting, against PEFT.

Owns the processes that share the cases, the table and the result file; a case's own round is
examine.py's. Ends with 1 if anything is not as promised.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..machine import describe_machine
from .cases import CASES, Case
from .examine import LOW, Outcome, examine, prepare_process
from .serving import settings_of

RESULT_PATH = Path(__file__).parent.parent / "results" / "exactness.json"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -P -m lorry.bench.exactness", description=__doc__)
    parser.add_argument(
        "--only", action="append", metavar="CASE", help="this case; may be repeated"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--device", default="cpu", help="of what is served; PEFT stays on the CPU")
    parser.add_argument("--result", type=Path, default=None)
    args = parser.parse_args(argv)
    chosen = [case for case in CASES if args.only is None or case.label in args.only]
    start_s = time.perf_counter()
    outcomes = _examine_all(chosen, device=args.device, jobs=args.jobs)
    seconds = time.perf_counter() - start_s
    Console().print(make_table(outcomes))
    document = {
        "bench": "exactness",
        "device": args.device,
        "settings": [asdict(setting) for setting in settings_of(args.device)],
        "cases": [outcome.to_json() for outcome in outcomes],
        "seconds": round(seconds, 1),
        "machine": asdict(describe_machine()),
    }
    failures = [failure for outcome in outcomes for failure in outcome.failures]
    for outcome in outcomes:
        for failure in outcome.failures:
            print(f"{outcome.case.label}: {failure}", file=sys.stderr)
    is_whole = args.only is None and args.device == "cpu"
    result = args.result or (RESULT_PATH if is_whole else None)
    if result is not None:
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(summary(outcomes, seconds)))
    return 1 if failures or not outcomes else 0


def _examine_all(cases: Sequence[Case], *, device: str, jobs: int) -> list[Outcome]:
    """In the order of the cases, whoever is done first."""
    # Not forked: torch's threads do not survive that.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        max(1, jobs), mp_context=context, initializer=prepare_process
    ) as workers:
        found = workers.map(partial(examine, device=device), cases)
        progress = track(found, "architectures", total=len(cases), console=Console(stderr=True))
        return list(progress)


def summary(outcomes: Sequence[Outcome], seconds: float) -> dict[str, object]:
    """The line at the end: what all cases come to."""
    verdicts = [verdict for outcome in outcomes for verdict in outcome.tokens.values()]
    line: dict[str, object] = {
        "bench": "exactness",
        "architectures": len(outcomes),
        "tokens": sum(verdict.tokens for verdict in verdicts),
        "ties": sum(verdict.ties for verdict in verdicts),
        "least_changed": min((v.least_changed for v in verdicts), default=0.0),
        "failures": sum(len(outcome.failures) for outcome in outcomes),
        "seconds": round(seconds, 1),
    }
    for name in LOW:
        found = [outcome.rounding[name] for outcome in outcomes]
        ratios = sorted(rounding.whole.ratio for rounding in found)
        if ratios:
            line[f"{name}_error_of_peft_median"] = round(ratios[len(ratios) // 2], 3)
            line[f"{name}_error_of_peft_max"] = round(ratios[-1], 3)
            one = max(share.ratio for rounding in found for share in rounding.adapters.values())
            line[f"{name}_error_of_peft_one_adapter_max"] = round(one, 3)
            line[f"{name}_flipped_places"] = sum(rounding.whole.beyond for rounding in found)
    return line


def make_table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(title="against PEFT")
    for heading in ("architecture", "tokens", "ties", "least changed", *LOW, "verdict"):
        table.add_column(heading)
    for outcome in outcomes:
        verdicts = list(outcome.tokens.values())
        table.add_row(
            outcome.case.label,
            str(sum(verdict.tokens for verdict in verdicts)),
            str(sum(verdict.ties for verdict in verdicts)),
            f"{min((v.least_changed for v in verdicts), default=0):.0%}",
            *(f"{outcome.rounding[name].whole.ratio:.2f} x PEFT's" for name in LOW),
            "[red]wrong[/red]" if outcome.failures else "equal",
        )
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
