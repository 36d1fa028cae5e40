"""The README's part on cold starts, drawn from bench/results/coldstart.json and its plots.

Owns what of `lorry bench coldstart` is shown: each row by server, one cold request by rank and
prompt, targets and misses. Where there is no file it reads "not measured". Called by readme.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .coldstart.pictures import PICTURES
from .readme_results import NOT_MEASURED, RESULTS_DIR
from .readme_tables import ReadmeError, make_table

COLDSTART_PATH = RESULTS_DIR / "coldstart.json"
ROW_COLUMNS = (
    *("load", "server", "TTFT mean, ms", "P50", "P99", "mean / cached"),
    *("TPOT, ms", "others' TPOT, ms", "started"),
)
ALT_TEXTS = (
    "time to first token under the sustained load, by server",
    "time to first token in a burst, by server",
    "the course of one cold start, by server",
)


def render_coldstart(path: Path = COLDSTART_PATH) -> str:
    if not path.exists():
        return NOT_MEASURED
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["quick"]:
            raise ReadmeError(f"{path.name} is of a quick run, which claims nothing")
        rows = [cells for row in document["rows"] for cells in _row(row)]
        parts = [make_table(ROW_COLUMNS, rows), *_points(document["points"])]
        parts += ["\n".join(_facts(document)), *_pictures(path.parent)]
        return "\n\n".join(parts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReadmeError(
            f"{path.name} is no result of lorry bench coldstart: {error!r}"
        ) from error


def _row(row: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    told = f"{row['part']}, ratio {row['ratio']:g}"
    for one in row["labels"]:
        ttft = one["ttft"]
        yield (
            told,
            one["label"],
            *(_ms(ttft[of]) for of in ("mean_s", "p50_s", "p99_s")),
            _number(one["ttft_vs_cached"]),
            _ms(one["tpot_s"]),
            _ms(one["bystander_tpot_s"]),
            ", ".join(f"{way} {count}" for way, count in one["chosen"].items()) or "warm",
        )


def _points(points: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One table a row of the part `single`: rank and prompt down, servers across."""
    for name in dict.fromkeys(one["row"] for one in points):
        found = [one for one in points if one["row"] == name]
        labels = list(dict.fromkeys(one["label"] for one in found))
        by_point: dict[tuple[int, int], dict[str, str]] = {}
        for one in found:
            point = one["point"]["rank"], one["point"]["num_prompt_tokens"]
            by_point.setdefault(point, {})[one["label"]] = _ms(one["ttft_s"])
        lines = [
            (str(rank), str(tokens), *(cells[label] for label in labels))
            for (rank, tokens), cells in by_point.items()
        ]
        table = make_table(("rank", "prompt", *labels), lines)
        yield f"One cold request beside eight who decode ({name}), mean TTFT in ms:\n\n{table}"


def _facts(document: Mapping[str, Any]) -> Iterator[str]:
    link, load, machine = document["link"], document["load"], document["machine"]
    links = ", ".join(
        f"{one['ratio']:g}: {one['bytes_per_s'] / 1e6:.1f} MB/s" for one in link["by_ratio"]
    )
    yield (
        f"- Ratio: load(rank 64) / prefill(256 tokens); the prefill takes "
        f"{_ms(link['prefill_256_s'])} ms alone, an adapter of rank 64 has "
        f"{document['setting']['adapter_bytes'] / 1e6:.2f} MB. Emulated links: {links}."
    )
    yield (
        f"- {document['model']}; s3: {load['num_s3']} requests of as many adapters, Poisson, "
        f"{load['share']:g} of {load['capacity_per_s']:.2f} requests/s; burst: {load['num_burst']}."
    )
    spread = ", ".join(
        f"{name} {value:.3f}"
        for name, value in document["cached_vs_cached_mean_ttft"].items()
        if value is not None
    )
    yield f"- Two equal servers, both cached, differ by at most: {spread}."
    yield (
        f"- auto / the best single way, worst row ({document['auto_vs_best_single_worst']}): "
        f"{_number(document['auto_vs_best_single'])}; TPOT of bystanders, auto / cached, worst: "
        f"{_number(document['bystander_tpot_ratio'])}."
    )
    for line in document["not_counted"]:
        yield f"- {line}."
    if misses := document["misses"]:
        yield f"- Missed: {'; '.join(misses)}."
    yield (
        f"- {machine['cpu']}, {machine['num_cores']} cores: one computes, one helps; "
        f"{machine['os']}, Python {machine['python']}; load average before: "
        f"{document['load_average_before']:.1f}."
    )
    yield f"- Command: `{document['command']}`. Commit: `{machine['commit']}`."


def _pictures(folder: Path) -> Iterator[str]:
    for name, alt in zip(PICTURES, ALT_TEXTS, strict=True):
        if (folder / name).exists():
            yield f"![{alt}](bench/results/{name})"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
