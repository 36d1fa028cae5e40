"""The README's simulator part, drawn from bench/results/sim-cpu.json (`lorry bench sim`).

Owns what of it is shown: the simulator beside the live server, S-LoRA's published runs beside the
simulated, the speed, on what and when. Where there is no file everything reads "not measured"; a
part that was not run says why. Called by readme.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .readme_results import NOT_MEASURED, RESULTS_DIR, render_result
from .readme_tables import make_table

SIM_PATH = RESULTS_DIR / "sim-cpu.json"
PICTURES = ("sim-cpu/ttft.png", "sim-cpu/attainment-rank.png")


def render_sim(path: Path = SIM_PATH) -> str:
    return render_result(path, "lorry bench sim", _draw)


def _draw(document: Mapping[str, Any]) -> str:
    parts = (_live(document), _slora(document), _scale(document), _facts(document))
    return "\n\n".join(part for part in parts if part)


def _live(document: Mapping[str, Any]) -> str:
    live = document["live"]
    if live is None:
        return f"Live server: {NOT_MEASURED} ({document['not_run']['live']})."
    judged = live["workloads"]["judged"]
    seen, better = live["cost_model"]["judged_on"], live["better"]
    table = make_table(
        ("policy", "figure", "live, each round", "simulated", "ratio", "may miss 1 by", ""),
        _live_rows(live["policies"]),
    )
    lines = (
        f"- Fitted on *{live['workloads']['fit']['name']}*, judged on *{judged['name']}*: "
        f"{judged['num_requests']} requests at {live['offered']['judged_load']:g} times the "
        f"capacity, ranks {', '.join(map(str, judged['ranks']))}.",
        f"- {live['server']['model']}.",
        f"- Cost model on {seen['num_steps']} steps it had not seen: R^2 {seen['r2']:.3f}, MAPE "
        f"{100 * seen['mape']:.1f} %.",
        f"- Better policy by goodput: {better['live'] or 'neither'} live, "
        f"{better['simulated'] or 'neither'} simulated.",
    )
    pictures = "\n".join(f"![{name}](bench/results/{name})" for name in PICTURES)
    return "\n\n".join([table, "\n".join(lines), pictures])


def _live_rows(policies: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for policy, one in policies.items():
        told = f"mean TTFT, s, of {one['num_compared']} of {one['num_requests']}"
        for name, key in (("goodput, req/s", "goodput_per_s"), (told, "ttft_s")):
            figure = one[key]
            yield (
                policy,
                name,
                ", ".join(f"{value:.3f}" for value in figure["live"]),
                f"{figure['simulated']:.3f}",
                NOT_MEASURED if figure["ratio"] is None else f"{figure['ratio']:.3f}",
                f"{figure['allowed']:.3f}",
                "holds" if figure["holds"] else "**missed**",
            )


def _slora(document: Mapping[str, Any]) -> str:
    slora = document["slora"]
    if slora is None:
        return f"S-LoRA's runs: {NOT_MEASURED} ({document['not_run']['slora']})."
    table = make_table(
        (
            "policy",
            "req/s",
            "cv",
            "attainment published",
            "simulated",
            "answers/s",
            "simulated",
            "",
        ),
        (_slora_row(run, slora["allowed"]) for run in slora["runs"]),
    )
    return (
        "S-LoRA's published runs (A100-80GB, Llama-13B, 400 adapters of ranks 16 to 64, first "
        f"token within 6 s) beside ours on the profile `{slora['profile']}`:\n\n{table}"
    )


def _slora_row(run: Mapping[str, Any], allowed: float) -> tuple[str, ...]:
    said = run["published"]
    remark = "within" if abs(run["difference"]) <= allowed else "**missed**"
    if run["set_the_profile"]:
        remark = "set the profile"
    return (
        said["served"],
        f"{said['rate_per_s']:g}",
        f"{said['cv']:g}",
        f"{said['attainment']:.2f}",
        f"{run['attainment']:.2f}",
        f"{said['throughput_per_s']:.2f}",
        f"{run['throughput_per_s']:.2f}",
        f"{remark} {allowed:g}" if not run["set_the_profile"] else remark,
    )


def _scale(document: Mapping[str, Any]) -> str:
    scale = document["scale"]
    if scale is None:
        return f"Speed: {NOT_MEASURED} ({document['not_run']['scale']})."
    return (
        f"Speed: {scale['requests']} requests over {scale['adapters']} adapters in "
        f"{scale['wall_s']:.0f} s on one core, "
        f"{document['requests_per_s_simulated']:.0f} requests/s."
    )


def _facts(document: Mapping[str, Any]) -> str:
    machine = document["machine"]
    hardware = ", ".join(
        part for part in (machine["cpu"], f"{machine['num_cores']} cores", machine["gpu"]) if part
    )
    missed = "; ".join(document["failures"]) or "nothing that was claimed"
    return "\n".join(
        [
            f"- {hardware}; {machine['os']}, Python {machine['python']}. Load average before: "
            f"{document['load_average_before']:.1f}.",
            f"- Command: `lorry bench sim`. Commit: `{machine['commit']}`.",
            f"- Missed: {missed}.",
        ]
    )
