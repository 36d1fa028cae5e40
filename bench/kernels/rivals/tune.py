"""Tuned tables for the peers, searched as their documentation says: by the clock, on this device.

Owns the candidates (the parts of the documented spaces that can matter at these shapes), the
search (one kernel after the other, a group at a time, over the same cycling layers as the bench)
and the tables in the peers' own formats under peers/tuned. Lorry's own kernels are never tuned by
a clock while they serve; peers are, so that they stand here at their best.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..cases import Case, num_layers
from ..inputs import Inputs
from ..measure import FATAL, MAX_LAYERS, DeviceBroken
from ..timing import cache_bytes, time_step
from ..way import Way
from . import sglang_way, vllm_way
from .folder import PEERS
from .loading import load
from .tables import clear, ship, write_about

Config = dict[str, int]
# (max_loras, slices, rows, k, n) -> config, as vLLM nests them.
VllmTable = dict[tuple[int, int, int, int, int], Config]
# (kernel, K, rank, slices) -> chunk -> config.
SglangTable = dict[tuple[str, int, int, int], dict[int, Config]]


def _grid(**space: Sequence[int]) -> list[Config]:
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]


# Of vLLM's README_TUNING.md; num_ctas is 1 in all of it.
VLLM_SHRINK = [
    {**config, "num_ctas": 1, "group_size_m": 8}
    for config in _grid(
        block_m=(16, 32),
        block_n=(16, 32),
        block_k=(128, 256),
        split_k=(8, 16, 32),
        num_warps=(4,),
        num_stages=(2, 4),
    )
]
VLLM_EXPAND = [
    {**config, "num_ctas": 1}
    for config in _grid(
        block_m=(16, 32, 64),
        block_n=(64, 128, 256),
        block_k=(16, 32),
        num_warps=(4, 8),
        num_stages=(2,),
    )
]
# Of the ranges that the tables in SGLang's wheel were picked from.
SGLANG_SHRINK = _grid(
    BLOCK_N=(16, 32, 64), BLOCK_K=(64, 128, 256), num_warps=(4, 8), num_stages=(2, 3)
)
SGLANG_EXPAND = _grid(
    BLOCK_N=(32, 64, 128), BLOCK_K=(16, 32, 64), num_warps=(4, 8), num_stages=(2, 3)
)


def pick_best(
    candidates: Iterable[Config], measure: Callable[[Config], float], is_late: Callable[[], bool]
) -> Config | None:
    """The fastest of those measured before it is late; one that does not run is passed over."""
    best: tuple[float, Config] | None = None
    for config in candidates:
        if is_late():
            break
        try:
            ms = measure(config)
        except Exception as error:
            if any(text in str(error) for text in FATAL):
                raise DeviceBroken(f"tuning {config}: {error}") from error
            # Too much shared memory, mostly.
            continue
        if best is None or ms < best[0]:
            best = (ms, config)
    return best[1] if best else None


def tune(
    cases: Sequence[Case],
    device: torch.device,
    dtype: torch.dtype,
    minutes: float,
    *,
    shipped: Path,
) -> int:
    """Tables for these cases, in their order; returns how many were finished.

    They are written after each case, the one file that travels (`shipped`) too, and a case cut
    short leaves no half entries.
    """
    end_s = time.perf_counter() + 60 * minutes
    if not all(peer.is_there() for peer in PEERS):
        return 0
    vllm: dict[str, VllmTable] = {"SHRINK": {}, "EXPAND_TRUE": {}}
    sglang: SglangTable = {}
    clear()
    for done, case in enumerate(cases):
        layers = num_layers(case, dtype.itemsize, cache_bytes(device), MAX_LAYERS[device.type])
        inputs = Inputs(case, num_layers=layers, dtype=dtype, device=device)
        found = _tune_vllm(inputs, end_s)
        chunks = _tune_sglang(inputs, end_s, sglang)
        torch.cuda.empty_cache()
        if time.perf_counter() > end_s:
            return done
        for name, table in found.items():
            vllm[name].update(table)
        for key, by_chunk in chunks.items():
            sglang.setdefault(key, {}).update(by_chunk)
        write_vllm(vllm, torch.cuda.get_device_name(), vllm_way.TUNED)
        write_sglang(sglang, torch.cuda.get_device_name(), sglang_way.TUNED)
        write_about(device, dtype, [case.name for case in cases[: done + 1]])
        ship(shipped)
    return len(cases)


def _tune_vllm(inputs: Inputs, end_s: float) -> dict[str, VllmTable]:
    case = inputs.case
    way = vllm_way.VllmWay(inputs, vllm_way.Setting())
    way.prepare()
    tables: dict[str, VllmTable] = {"SHRINK": {}, "EXPAND_TRUE": {}}
    rank, max_loras = max(case.ranks), case.num_adapters + 1  # one more for rows without any
    for group, shape in enumerate(case.layer.groups):
        head = (max_loras, len(shape.out_widths), case.num_rows)
        for name, module, candidates, tail in (
            ("SHRINK", "lora_shrink_op", VLLM_SHRINK, (shape.in_width, rank)),
            ("EXPAND_TRUE", "lora_expand_op", VLLM_EXPAND, (rank, max(shape.out_widths))),
        ):
            op = load(f"{vllm_way.OPS}.{module}")
            best = _search(
                op,
                "get_lora_op_configs",
                candidates,
                way=way,
                inputs=inputs,
                group=group,
                end_s=end_s,
            )
            if best is not None:
                tables[name][(*head, *tail)] = best
    return tables


def _tune_sglang(inputs: Inputs, end_s: float, known: SglangTable) -> SglangTable:
    case = inputs.case
    found: SglangTable = {}
    rank = max(case.ranks)
    for max_chunk in (16, 128):
        way = sglang_way.SglangWay(inputs, sglang_way.Setting(max_chunk))
        way.prepare()
        chunk = sglang_way.chunk_rows(case.num_rows, max_chunk)
        for group, shape in enumerate(case.layer.groups):
            slices = len(shape.out_widths)
            for kernel, candidates, width in (
                ("shrink", SGLANG_SHRINK, shape.in_width),
                ("expand", SGLANG_EXPAND, shape.out_width),
            ):
                key = (kernel, width, rank, slices)
                # SGLang has one entry for all steps with such chunks: the first case's.
                if chunk in known.get(key, {}) or chunk in found.get(key, {}):
                    continue
                op = load(f"{sglang_way.OPS}.chunked_sgmv_{kernel}")
                name = f"get_lora_{kernel}_config"
                best = _search(
                    op, name, candidates, way=way, inputs=inputs, group=group, end_s=end_s
                )
                if best is not None:
                    found.setdefault(key, {})[chunk] = best
    return found


def _search(
    module: Any,
    lookup: str,
    candidates: Sequence[Config],
    *,
    way: Way,
    inputs: Inputs,
    group: int,
    end_s: float,
) -> Config | None:
    """The best config for one kernel of a group, all else as it is."""
    original = getattr(module, lookup)

    def step() -> None:
        for layer in range(inputs.num_layers):
            way.add(layer, group)

    def measure(config: Config) -> float:
        setattr(module, lookup, lambda *args, **options: config)
        return time_step(step, inputs.device).ms

    try:
        return pick_best(candidates, measure, lambda: time.perf_counter() > end_s)
    finally:
        setattr(module, lookup, original)


def write_vllm(tables: Mapping[str, VllmTable], gpu: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = gpu.replace(" ", "_").replace("-", "_")
    for kernel, table in tables.items():
        nested: dict[str, Any] = {}
        for key, config in table.items():
            level = nested
            for part in key[:-1]:
                level = level.setdefault(str(part), {})
            level[str(key[-1])] = config
        if nested:
            (folder / f"{name}_{kernel}.json").write_text(json.dumps(nested, indent=1) + "\n")


def write_sglang(table: SglangTable, gpu: str, folder: Path) -> None:
    import triton

    home = folder / "csgmv_configs" / f"triton_{triton.__version__.replace('.', '_')}"
    home.mkdir(parents=True, exist_ok=True)
    for (kernel, width, rank, slices), by_chunk in table.items():
        name = f"lora_{kernel},K={width},R={rank},S={slices},device={gpu.replace(' ', '_')}.json"
        text = json.dumps({str(chunk): config for chunk, config in sorted(by_chunk.items())})
        (home / name).write_text(text + "\n")
