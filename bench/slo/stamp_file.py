"""Raw stamps in a file: a header line, then a line a request, as gzipped JSON lines.

The stamps are the result; figures can be made of them again, also others than today's. Instants
are kept to the microsecond, as whole numbers: those of an answer as steps from one piece to the
next, which pack well. Same run, same bytes. Knows no figures. Written after every live or
simulated run, read by whoever judges it later.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from ..machine import Machine
from ..workload.file import digest_of
from ..workload.records import Workload
from .stamps import Outcome, RequestStamps, Run

FORMAT = "lorry-stamps-1"
SUFFIX = ".jsonl.gz"
US = 1_000_000  # per second
NUM_DIGITS = 16  # of a digest, in a header


class StampFileError(Exception):
    """Not a file of stamps, of another version, or cut short."""


@dataclass(frozen=True, slots=True)
class StampFile:
    """What a file holds."""

    run: Run
    workload: str  # its name
    workload_digest: str
    machine: Machine


def write_stamps(path: Path, run: Run, workload: Workload, *, machine: Machine) -> None:
    header = {
        "format": FORMAT,
        "policy": run.policy,
        "simulated": run.simulated,
        "num_requests": len(run.requests),
        "workload": {"name": workload.name, "digest": workload_digest(workload)},
        "machine": asdict(machine),
    }
    lines = [header, *map(_line, run.requests)]
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    # No name and no date inside: they would change the bytes.
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def read_stamps(path: Path) -> StampFile:
    """Raises:
    StampFileError: the file is not one of these, or not whole.
    """
    try:
        header, *lines = map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise StampFileError(f"{path}: its format is not {FORMAT}")
        found = _stamp_file(header, lines)
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise StampFileError(f"{path} holds no stamps: {error!r}") from error
    if len(found.run.requests) != header["num_requests"]:
        told, there = header["num_requests"], len(found.run.requests)
        raise StampFileError(f"{path} tells of {told} requests and holds {there}")
    return found


def rounded(run: Run) -> Run:
    """The run as a file keeps it."""
    return replace(run, requests=tuple(_stamps(_line(stamps)) for stamps in run.requests))


def workload_digest(workload: Workload) -> str:
    """Of all that is sent and judged, bounds too: the first digits of what its file says."""
    return digest_of(workload)[:NUM_DIGITS]


def _stamp_file(header: dict[str, Any], lines: Iterable[dict[str, Any]]) -> StampFile:
    requests = tuple(map(_stamps, lines))
    return StampFile(
        Run(header["policy"], requests, simulated=header["simulated"]),
        header["workload"]["name"],
        header["workload"]["digest"],
        Machine(**header["machine"]),
    )


def _line(stamps: RequestStamps) -> dict[str, Any]:
    """Tokens are left out where each piece held one, an error where there is none."""
    instants = [_us(stamps.due_s), *map(_us, stamps.piece_s)]
    line: dict[str, Any] = {
        "i": stamps.index,
        "due_us": instants[0],
        "sent_us": _us(stamps.sent_s),
        "end_us": _us(stamps.end_s),
        "outcome": stamps.outcome.value,
        "steps_us": [after - before for before, after in pairwise(instants)],
    }
    if set(stamps.piece_tokens) - {1}:
        line["tokens"] = list(stamps.piece_tokens)
    if stamps.error:
        line["error"] = stamps.error
    return line


def _stamps(line: dict[str, Any]) -> RequestStamps:
    due_us, steps_us = line["due_us"], line["steps_us"]
    instants = list(accumulate(steps_us, initial=due_us))[1:]
    return RequestStamps(
        index=line["i"],
        due_s=due_us / US,
        sent_s=line["sent_us"] / US,
        outcome=Outcome(line["outcome"]),
        end_s=line["end_us"] / US,
        piece_s=tuple(us / US for us in instants),
        piece_tokens=tuple(line.get("tokens", [1] * len(instants))),
        error=line.get("error", ""),
    )


def _us(seconds: float) -> int:
    return round(seconds * US)
