"""The README's figures of policies under load, drawn from bench/results/slo-cpu.json.

Owns what of that result is shown: what it was measured on, the bounds, the ceiling, a row for each
policy and load, the comparisons that could tell policies apart, and the plots beside the file.
Where there is no file it reads "not measured". Called by readme.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .readme_results import NOT_MEASURED, RESULTS_DIR, render_result
from .readme_tables import ReadmeError, make_table
from .slo.pictures import PICTURES

SLO_PATH = RESULTS_DIR / "slo-cpu.json"
WORDS = {
    "slo-attainment.png": "SLO attainment against load",
    "slo-goodput.png": "goodput against load",
    "slo-ttft.png": "time to first token",
    "slo-rank.png": "SLO attainment by rank",
    "slo-popularity.png": "SLO attainment by popularity",
}


def render_slo(path: Path = SLO_PATH) -> str:
    return render_result(path, "lorry bench slo", lambda document: _draw(document, path))


def _draw(document: Mapping[str, Any], path: Path) -> str:
    if document["quick"]:
        raise ReadmeError(f"{path.name} is of a quick run, which claims nothing")
    parts = [*_facts(document), "", _rows(document), "", *_comparisons(document)]
    return "\n".join([*parts, "", *_pictures(path.parent)]).rstrip()


def _facts(document: Mapping[str, Any]) -> Iterator[str]:
    load, place, machine = document["workload"], document["servers_on"], document["machine"]
    ceiling = document["capacity"]
    ranks = ", ".join(f"{count} of rank {rank}" for rank, count in load["ranks"].items())
    hardware = f"{machine['cpu']}, {machine['num_cores']} cores"
    yield (
        f"- Load: workload `{load['name']}`, seed {load['seed']}, digest `{load['digest'][:16]}`: "
        f"{load['num_requests']} requests a cell, open loop, {load['mean_prompt_tokens']:.0f} "
        f"prompt and {load['mean_new_tokens']:.0f} new tokens on average; "
        f"{load['num_adapters']} adapters ({ranks}), {load['num_asked_for']} of them asked for, "
        f"{load['num_to_base']} requests to the base."
    )
    yield f"- Model: {document['model']}; {place['dtype']}."
    yield f"- Servers: one a policy, `{' '.join(document['server_flags'])}`."
    yield f"- Bounds: {_bounds(document['bounds'])}."
    yield (
        f"- Hardware: {', '.join(part for part in (hardware, machine['gpu']) if part)}; "
        f"{machine['os']}; load average before: {document['load_average_before']:.1f}."
    )
    yield f"- Command: `{document['command']}`. Commit: `{machine['commit']}`."
    yield (
        f"- Ceiling, a closed loop with {ceiling['num_in_flight']} requests always out: "
        f"{ceiling['requests_per_s']:.2f} requests/s, {ceiling['tokens_per_s']:.0f} new tokens/s; "
        "a load of 2x is twice that."
    )
    yield (
        "- TTFT below is of the requests that got a token, TPOT of whole answers: who refuses many "
        "has times of few. Intervals are Wilson's of one round's requests, which rounds repeat."
    )


def _bounds(bounds: Mapping[str, Any]) -> str:
    if bounds["kind"] == "fixed":
        return f"TTFT {bounds['ttft_s']:g} s and TPOT {bounds['tpot_s'] * 1e3:g} ms for all"
    runs = min(cell["num_runs"] for cell in bounds["unloaded"])
    ttft = _range([cell["ttft_s"] for cell in bounds["unloaded"]])
    tpot = _range([cell["tpot_s"] for cell in bounds["unloaded"]])
    return (
        f"TTFT {bounds['ttft_x']:g} times and TPOT {bounds['tpot_x']:g} times the same request's "
        f"alone on the server, which by length and rank is {ttft} and {tpot} "
        f"(medians of {runs} runs)"
    )


def _range(values_s: list[float]) -> str:
    return f"{min(values_s) * 1e3:.0f} to {max(values_s) * 1e3:.0f} ms"


def _rows(document: Mapping[str, Any]) -> str:
    head = (
        *("policy", "load", "requests/s", "attainment, 95 % interval", "goodput/s"),
        *("TTFT P50, P99 s", "TPOT P50, P99 ms", "refused, timed out, failed", "send lag P99 ms"),
    )
    return make_table(head, (tuple(_row(row)) for row in document["rows"]))


def _row(row: Mapping[str, Any]) -> Iterator[str]:
    share, outcomes = row["attainment"], row["outcomes"]
    yield row["policy"]
    yield row["load"]
    yield f"{row['rate_per_s']:.2f}"
    yield f"{share['value']:.2f} [{share['low']:.2f}, {share['high']:.2f}]"
    yield f"{row['goodput_per_s']['value']:.2f}"
    yield f"{_number(row['ttft_p50_s'], 2)}, {_number(row['ttft_p99_s'], 2)}"
    yield f"{_number(row['tpot_p50_s'], 0, 1e3)}, {_number(row['tpot_p99_s'], 0, 1e3)}"
    yield ", ".join(str(outcomes[kind]) for kind in ("refused", "timeout", "failed"))
    yield f"{row['send_lag_p99_ms']:.1f}"


def _number(value: float | None, digits: int, factor: float = 1.0) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f}"


def _comparisons(document: Mapping[str, Any]) -> Iterator[str]:
    """Attainment only: the other metrics are in the file."""
    rounds = document["num_rounds"]
    yield (
        f"Attainment over {rounds} rounds of interleaved pairs, beside the largest difference "
        "between rounds of one policy:"
    )
    yield ""
    yield make_table(
        ("load", "pair", "difference", "rounds differ by", "verdict"),
        (
            (
                one["load"],
                f"{one['b']} less {one['a']}",
                f"{one['difference']:+.2f}",
                _spread(one),
                one["verdict"],
            )
            for one in document["comparisons"]
            if one["metric"] == "attainment"
        ),
    )


def _spread(one: Mapping[str, Any]) -> str:
    if one["spread_a"] is None or one["spread_b"] is None:
        return NOT_MEASURED
    return f"{one['spread_a']:.2f} ({one['a']}), {one['spread_b']:.2f} ({one['b']})"


def _pictures(folder: Path) -> Iterator[str]:
    """Those that are there, as they lie in the repository."""
    for name in PICTURES:
        if (folder / name).exists():
            yield f"![{WORDS[name]}](bench/results/{name})"
            yield ""
