"""The README's benchmark tables, drawn from the files in bench/results/.

Owns what of a result is shown: what it was measured on, the ceiling, the rows, the ratios beside
their targets, the step split. A file that is not there reads "not measured"; one that is no such
result is an error. No figure is typed anywhere. Called by readme.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .readme_tables import ReadmeError, make_table

RESULTS_DIR = Path(__file__).resolve().parent / "results"
THROUGHPUT_PATH = RESULTS_DIR / "throughput-cpu.json"
OVERHEAD_PATH = RESULTS_DIR / "overhead-zoo-cpu.json"
NOT_MEASURED = "not measured"


def render_throughput(path: Path = THROUGHPUT_PATH) -> str:
    """Workload W: ceiling, rows, ratios, and where a step's time goes."""
    return render_result(path, "lorry bench throughput", _throughput)


def render_overhead(path: Path = OVERHEAD_PATH) -> str:
    """The zoo: rows below what they were measured on."""
    return render_result(path, "lorry bench overhead", _overhead)


def render_result(
    path: Path, bench: str, draw: Callable[[dict[str, Any]], str], *, absent: str = NOT_MEASURED
) -> str:
    """Raises:
    ReadmeError: the file is no result of that bench.
    """
    if not path.exists():
        return absent
    try:
        return draw(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReadmeError(f"{path.name} is no result of {bench}: {error!r}") from error


def _throughput(document: dict[str, Any]) -> str:
    load, shape, ceiling = document["workload"], document["workload"]["shape"], document["ceiling"]
    ranks = ", ".join(str(rank) for rank in load["ranks"])
    facts = (
        f"- Load: {load['num_requests']} requests at once, {load['num_prompt_tokens']} prompt and "
        f"{load['num_new_tokens']} new tokens each, greedy; a random Llama of "
        f"{shape['num_layers']} layers, width {shape['hidden_width']}, {shape['num_heads']} heads "
        f"over {shape['num_kv_heads']}, MLP {shape['mlp_width']}, vocabulary "
        f"{shape['vocab_size']}; {document['dtype']}, {document['threads']} threads.",
        f"- Adapters: one of each rank {ranks}, on all seven linears, requests in turn.",
        *_machine_facts(document["machine"]),
        f"- Command: `lorry bench throughput`. Load average before: "
        f"{document['load_average_before']:.1f}.",
        f"- Ceiling, the matrix products alone: {ceiling['tok_s']:.0f} tokens/s "
        f"({ceiling['decode_ms']:.1f} ms a decode step).",
    )
    rows = make_table(
        ("row", "tokens/s, median", "rounds", "how"),
        (
            (row["name"], f"{row['median_tok_s']:.0f}", _rounds(row["tok_s"]), row["how"])
            for row in document["rows"]
        ),
    )
    ratios = make_table(("ratio", "measured", "target", "stretch"), _ratio_rows(document))
    parts = [*facts, "", rows, "", ratios]
    if document["step_split"]:
        parts += ["", "Milliseconds of a step, by what they were spent on:", "", _split(document)]
    return "\n".join(parts)


def _ratio_rows(document: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    for name, value in document["ratios"].items():
        goal = document["targets"].get(name, {})
        over, _, under = name.partition("_over_")
        yield (
            f"{over} over {under}",
            f"{value:.2f}",
            f"{goal['target']:g}" if "target" in goal else "",
            f"{goal['stretch']:g}" if "stretch" in goal else "",
        )


def _split(document: Mapping[str, Any]) -> str:
    names = document["step_parts"]
    table = make_table(
        ("step", *names, "all", "untimed"),
        (
            (
                f"{load}, {kind}",
                *(_ms(split["parts_ms"].get(part)) for part in names),
                _ms(split["step_ms"]),
                _ms(split["untimed_ms"]),
            )
            for load, kinds in document["step_split"].items()
            for kind, split in kinds.items()
        ),
    )
    meanings = (f"- *{name}*: {says}." for name, says in names.items())
    return "\n".join([table, "", *meanings])


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _overhead(document: dict[str, Any]) -> str:
    help_s = sorted(document["help_s"])
    facts = (
        f"- Load: {document['num_requests']} requests at once, {document['num_new_tokens']} new "
        f"tokens each; model `{document['model']}`, {document['dtype']}.",
        *_machine_facts(document["machine"]),
        "- Command: `lorry bench overhead`.",
        f"- `lorry --help`: {help_s[len(help_s) // 2]:.2f} s, median of {len(help_s)}.",
    )
    table = make_table(
        ("row", "tokens/s, median", "rounds", "how"),
        (
            (
                row["name"],
                f"{row['median_tokens_per_s']:.0f}",
                _rounds(row["tokens_per_s"]),
                row["note"],
            )
            for row in document["rows"]
        ),
    )
    return "\n".join([*facts, "", table])


def _rounds(values: list[float]) -> str:
    return ", ".join(f"{value:.0f}" for value in values)


def _machine_facts(machine: Mapping[str, Any]) -> tuple[str, str, str]:
    cores = f"{machine['num_cores']} cores"
    hardware = ", ".join(part for part in (machine["cpu"], cores, machine["gpu"]) if part)
    versions = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    return (
        f"- Hardware: {hardware}; {machine['os']}.",
        f"- Versions: Python {machine['python']}, {versions}.",
        f"- Commit: `{machine['commit']}`.",
    )
