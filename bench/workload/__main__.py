"""`python -m lorry.bench.workload`: a preset drawn, looked at, and written to a file.

Owns the options; the instants and lengths of a trace take the place of the preset's. Prints what
was drawn beside what was published, and what had to be cut.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table

from ...server.cli_output import console as make_console
from .errors import WorkloadError
from .file import digest_of, write_workload
from .make import make_workload, notes_of
from .moments import moments_of
from .presets import PRESETS, find_preset
from .report import Line, lines_of
from .settings import FromTrace, OfTrace, WorkloadSettings
from .traces import TraceFormat


def main(argv: Sequence[str]) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if (args.trace is None) != (args.format is None):
        parser.error("--trace and --format: both or neither")
    console = make_console()
    try:
        settings = _settings(args)
        workload = make_workload(settings)
        digest = write_workload(workload, args.out) if args.out else digest_of(workload)
    except (WorkloadError, OSError) as error:
        console.print(f"{error}", style="red", highlight=False, markup=False)
        return 2
    moments = moments_of(workload)
    _draw(console, settings, lines_of(settings, moments))
    for name, count in notes_of(workload).items():
        if count:
            console.print(f"{name.replace('_', ' ')}: {count} of {moments.num_requests}")
    if args.out:
        console.print(f"{args.out}: {moments.num_requests} requests, digest {digest[:16]}")
    figures = {"preset": settings.name, "seed": settings.seed, "digest": digest}
    print(json.dumps({**figures, **asdict(moments)}).replace("NaN", "null"))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lorry.bench.workload", description=__doc__)
    add = parser.add_argument
    add("--preset", required=True, help=f"one of {', '.join(PRESETS)}")
    add("--trace", type=Path, help="file whose instants and lengths are taken, of --format")
    add("--format", choices=get_args(TraceFormat))
    add("--out", type=Path, help="file to write: .jsonl or .jsonl.gz; default: none")
    add("--seed", type=int, default=0)
    add("--requests", type=int, help="how many; default: the preset's")
    add("--rate", type=float, help="mean, per second; default: the preset's")
    add("--adapters", type=int, help="how many; default: the preset's")
    add("--base-share", type=float, default=0.0, help="of the requests, to the base")
    add("--max-model-len", type=int, help="cut prompts and answers to fit; default: the preset's")
    add("--prompt-factor", type=float, help="on tokens of prompts; default: the preset's")
    add("--answer-factor", type=float, help="on tokens of answers; default: the preset's")
    return parser


def _settings(args: argparse.Namespace) -> WorkloadSettings:
    settings = find_preset(args.preset)
    scale = {
        name: value
        for name in ("max_model_len", "prompt_factor", "answer_factor")
        if (value := getattr(args, name)) is not None
    }
    changes: dict[str, object] = {
        name: value
        for name, value in (("rate_per_s", args.rate), ("num_adapters", args.adapters))
        if value is not None
    }
    if args.requests is not None:
        changes |= {"num_requests": args.requests, "span_s": 0.0}
    if args.trace is not None:
        changes |= {
            "name": f"{settings.name} of {args.trace.name}",
            "arrivals": FromTrace(str(args.trace), args.format),
            "lengths": OfTrace(),
            "sessions": None,
            "num_requests": args.requests or 0,
            "span_s": 0.0,
            "rate_per_s": 0.0 if args.rate is None else args.rate,
        }
    return replace(
        settings,
        seed=args.seed,
        base_share=args.base_share,
        scale=replace(settings.scale, **scale),
        **changes,
    )


def _draw(console: Console, settings: WorkloadSettings, lines: Sequence[Line]) -> None:
    table = Table(title=f"{settings.name}, seed {settings.seed}", highlight=False)
    table.add_column("")
    table.add_column("drawn", justify="right")
    table.add_column("published", justify="right")
    for line in lines:
        table.add_row(line.name, _said(line.drawn), _said(line.published))
    console.print(table)


def _said(number: float) -> str:
    return "" if math.isnan(number) else f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
