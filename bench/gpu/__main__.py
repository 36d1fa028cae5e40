"""`make gpu`: is it right on this GPU, and how fast; one table, one JSON file.

Owns the order and the clock of the whole: a part that fails or runs out of time is a row that says
so, and the next one begins. Ends with 1 if a part that proves something did not. Without a GPU it
says so and ends with 0, so that the same target can stand in any script.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from json import dumps
from pathlib import Path

from rich.console import Console

from ..machine import describe_machine, driver_version
from .parts import BUDGET_S, Part, gpu_parts
from .report import all_proved, draw_figures, draw_parts, make_document
from .run import PASSED, Outcome, not_run, run_part

MIN_LIMIT_S = 5.0  # a part that would get less is not begun


def main(
    argv: Sequence[str],
    *,
    list_parts: Callable[[Path], list[Part]] = gpu_parts,
    has_gpu: Callable[[], bool] | None = None,
) -> int:
    args = parse(argv)
    if not (has_gpu or _has_cuda)():
        print("make gpu: no GPU here (torch sees no CUDA device); nothing was run")
        return 0
    console = Console()
    args.out.mkdir(parents=True, exist_ok=True)
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lorry-gpu-") as folder:
        parts = list_parts(Path(folder))
        if unknown := set(args.only or ()) - {part.name for part in parts}:
            print(f"make gpu: there is no part {sorted(unknown)}", file=sys.stderr)
            return 2
        chosen = [part for part in parts if not args.only or part.name in args.only]
        outcomes = run_all(chosen, args.budget, args.out / "gpu.log", console)
    machine = describe_machine()
    if args.commit:
        machine = replace(machine, commit=args.commit)
    document = make_document(
        outcomes,
        parts,
        asdict(machine),
        driver=driver_version(),
        seconds=time.monotonic() - start_s,
    )
    path = args.out / "gpu.json"
    path.write_text(dumps(document, indent=2) + "\n")
    console.print(draw_parts(outcomes))
    console.print(draw_figures(document))
    console.print(f"{path} (keep it in bench/results/)", markup=False, highlight=False)
    return 0 if all_proved(outcomes) else 1


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -P -m lorry.bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build"), help="folder of gpu.json")
    parser.add_argument("--only", action="append", metavar="PART", help="may be repeated")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds of all parts")
    parser.add_argument("--commit", default="", help="where the checkout does not say it itself")
    return parser.parse_args(argv)


def run_all(parts: Sequence[Part], budget_s: float, log: Path, console: Console) -> list[Outcome]:
    """One after the other: they share one device, and the last ones time it.

    Each may take what is left, but for the budgets of those after it.
    """
    end_s = time.monotonic() + budget_s
    outcomes: list[Outcome] = []
    with log.open("wb") as whole, tempfile.TemporaryDirectory(prefix="lorry-gpu-") as folder:
        for idx, part in enumerate(parts):
            kept_s = sum(later.budget_s for later in parts[idx + 1 :])
            limit_s = end_s - time.monotonic() - kept_s
            if limit_s < MIN_LIMIT_S:
                outcomes.append(not_run(part, "no time was left"))
                continue
            console.print(f"{part.name}: {part.shows}", markup=False, highlight=False)
            said = Path(folder) / f"{part.name}.log"
            outcomes.append(run_part(part, limit_s, said))
            whole.write(f"==== {part.name}\n".encode() + said.read_bytes())
            whole.flush()
            _tell(outcomes[-1], console)
    return outcomes


def _tell(outcome: Outcome, console: Console) -> None:
    if outcome.status == PASSED:
        console.print(f"  passed in {outcome.seconds:.0f} s", highlight=False)
        return
    for line in outcome.last_lines:
        console.print(f"  | {line}", markup=False, highlight=False)
    told = f"  {outcome.status} after {outcome.seconds:.0f} s: {outcome.reason}"
    console.print(told, style="red", markup=False, highlight=False)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
