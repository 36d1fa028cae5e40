"""The README's generated parts: found between marker lines, filled in, or checked to be current.

`python -m lorry.bench.readme` writes, `--check` compares and exits 1 naming every stale section.
A section opens with `<!-- generated: NAME -->` and closes with `<!-- end -->`. Knows nothing of
what a section says: readme_tables.py, readme_results.py and readme_tree.py do. Called by
`make readme` and `make check`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .readme_access import render_access
from .readme_coldstart import render_coldstart
from .readme_cost import render_cost
from .readme_gpu import render_gpu
from .readme_memory import render_footprint, render_memory
from .readme_models import render_models, render_refused_models
from .readme_results import render_overhead, render_throughput
from .readme_scale import render_scale
from .readme_sim import render_sim
from .readme_slo import render_slo
from .readme_tables import (
    ReadmeError,
    render_config,
    render_metrics,
    render_peft_fields,
    render_status,
    render_zoo,
)
from .readme_tree import render_tree

README_PATH = Path(__file__).resolve().parent.parent / "README.md"
OPENING = re.compile(r"<!--\s*generated:\s*(\S+)\s*-->")
CLOSING = re.compile(r"<!--\s*end\s*-->")

Renderers = Mapping[str, Callable[[], str]]

RENDERERS: Renderers = {
    "config": render_config,
    "tree": render_tree,
    "peft-fields": render_peft_fields,
    "zoo": render_zoo,
    "throughput": render_throughput,
    "overhead": render_overhead,
    "gpu": render_gpu,
    "slo": render_slo,
    "scale": render_scale,
    "sim": render_sim,
    "cost": render_cost,
    "footprint": render_footprint,
    "memory": render_memory,
    "coldstart": render_coldstart,
    "status": render_status,
    "metrics": render_metrics,
    "access": render_access,
    "models": render_models,
    "refused-models": render_refused_models,
}


@dataclass(frozen=True, slots=True)
class Section:
    """The lines between two markers, as a half open interval of line indices."""

    name: str
    start_idx: int  # of the line after the opening marker
    end_idx: int  # of the closing marker

    @property
    def line(self) -> int:
        """The opening marker's line as editors count them."""
        return self.start_idx


def main(argv: Sequence[str] | None = None, *, path: Path = README_PATH) -> int:
    parser = argparse.ArgumentParser(prog="lorry.bench.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; 1 if they differ")
    check: bool = parser.parse_args(argv).check
    try:
        text = path.read_text(encoding="utf-8")
        current, stale = refresh(text)
    except (OSError, ReadmeError) as error:
        print(f"{path.name}: {error}", file=sys.stderr)
        return 1
    if check:
        for section in stale:
            print(
                f"{path.name}:{section.line}: section {section.name} is not current: "
                "run make readme",
                file=sys.stderr,
            )
        return 1 if stale else 0
    if stale:
        path.write_text(current, encoding="utf-8")
    print(f"wrote {', '.join(s.name for s in stale)}" if stale else "already current")
    return 0


def refresh(text: str, renderers: Renderers = RENDERERS) -> tuple[str, list[Section]]:
    """The text with every section as its renderer gives it, and the sections that were not.

    Raises:
        ReadmeError: a marker is wrong, or a section cannot be made.
    """
    lines = text.splitlines()
    sections = find_sections(lines, renderers)
    stale: list[Section] = []
    # From the end, so that the places of the sections before stay true.
    for section in reversed(sections):
        # A table that touches the comment above it would not be read as a table.
        body = ["", *renderers[section.name]().splitlines(), ""]
        if lines[section.start_idx : section.end_idx] != body:
            lines[section.start_idx : section.end_idx] = body
            stale.insert(0, section)
    return "\n".join(lines) + "\n", stale


def find_sections(lines: Sequence[str], known: Renderers = RENDERERS) -> list[Section]:
    """Every section in order.

    Raises:
        ReadmeError: a name nobody renders, a marker without its partner, or no marker at all,
            which would let a check pass that compares nothing.
    """
    found: list[Section] = []
    name, start_idx = "", 0  # no name: outside of sections
    for idx, line in enumerate(lines):
        opening = OPENING.fullmatch(line.strip())
        if opening and name:
            raise ReadmeError(f"line {idx + 1} opens {opening[1]} before {name} was closed")
        if opening and opening[1] not in known:
            raise ReadmeError(f"line {idx + 1} asks for {opening[1]}; there are {', '.join(known)}")
        if opening:
            name, start_idx = opening[1], idx + 1
        elif CLOSING.fullmatch(line.strip()):
            if not name:
                raise ReadmeError(f"line {idx + 1} closes a section that was never opened")
            found.append(Section(name, start_idx, idx))
            name = ""
    if name:
        raise ReadmeError(f"section {name}, opened on line {start_idx}, is never closed")
    if not found:
        raise ReadmeError("no line reads <!-- generated: NAME -->")
    return found


if __name__ == "__main__":
    sys.exit(main())
