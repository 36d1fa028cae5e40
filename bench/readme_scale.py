"""The README's figures of thousands of adapters, drawn from bench/results/scale.json.

Owns what of `lorry bench scale` is shown: a row for each question, with its target and what two
equal rows differed by. Where there is no file it reads "not measured". Called by readme.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .readme_results import RESULTS_DIR, render_result
from .readme_tables import ReadmeError, make_table

SCALE_PATH = RESULTS_DIR / "scale.json"
COLUMNS = ("what", "measured", "target", "two equal rows")


def render_scale(path: Path = SCALE_PATH) -> str:
    return render_result(path, "lorry bench scale", lambda document: _draw(document, path))


def _draw(document: Mapping[str, Any], path: Path) -> str:
    if document["quick"]:
        raise ReadmeError(f"{path.name} is of a quick run, which claims nothing")
    return f"{make_table(COLUMNS, _rows(document))}\n\n{_facts(document)}"


def _rows(document: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    sizes = document["sizes"]
    many, active = sizes["num_registered"], sizes["num_active"]
    pool = document["setting"]["pool_adapters"]
    same, same_active = document["throughput_a_vs_a"], document["throughput_active_a_vs_a"]
    short = document["throughput_active_short_host_a_vs_a"]
    ratio = f"throughput_{active}_active_vs_5"
    return [
        (
            f"tokens/s, {many:,} registered / 5, the same 5 active",
            *_figure(document[f"throughput_{many}_vs_5"], "at least 0.97, or the spread", same),
        ),
        (
            f"start, {many:,} registered - 5",
            f"{document[f'startup_{many}_extra_s']:+.2f} s",
            "1 s",
            "",
        ),
        (
            f"tokens/s, {active:,} active / 5, a pool for {pool}",
            *_figure(document[ratio], "at least 0.90", same_active),
        ),
        (
            "the same, a quarter of them in host memory",
            *_figure(document[f"throughput_{active}_active_short_host_vs_5"], "none", short),
        ),
        (
            "P95 of a decode step, loads on their way / none",
            *_figure(document["load_vs_quiet_p95_step"], "at most 1.10", None),
        ),
    ]


def _figure(value: float, target: str, equal: tuple[float, float] | None) -> tuple[str, str, str]:
    return f"{value:.3f}", target, "" if equal is None else f"{equal[0]:.3f} to {equal[1]:.3f}"


def _facts(document: Mapping[str, Any]) -> str:
    setting, machine = document["setting"], document["machine"]
    link_mb = document["crossing"]["link_bytes_per_s"] / 1e6
    return (
        f"{document['model']}; adapters of rank {setting['rank']}, "
        f"{setting['adapter_bytes'] / 1e6:.2f} MB each; `{' '.join(setting['flags'])}`; "
        f"prompts: {setting['prompts']}. Host memory held "
        f"{document['host_bytes_peak'] / 1e9:.2f} GB at most. "
        f"The link is emulated, {link_mb:.1f} MB/s; a load was on its way "
        f"{100 * document['load_on_its_way_share']:.0f} % of the time. "
        f"{machine['cpu']}, {machine['num_cores']} cores; commit {machine['commit']}; load average "
        f"before: {document['load_average_before']:.1f}."
    )
