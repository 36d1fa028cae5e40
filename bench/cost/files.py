"""The adapters of this bench, on every linear of the SLO bench's base: so that they weigh much.

Owns their cache: one folder for each rank and number, put in place whole. At rank 256 one is three
quarters of the base in bytes; on the four linears of attention alone it would be a quarter, and
what a rank costs would drown in what an adapter costs whatever its rank. Called by live_logs.py.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from ..slo.fleet import SHAPE, FleetFiles, num_parameters, prepare_fleet
from ..throughput.workload_files import RECIPE, STORED_DTYPE, save_adapter
from ..workload.records import WorkloadAdapter


def prepare_files(adapters: Sequence[WorkloadAdapter], cache: Path) -> FleetFiles:
    """By the workload's names; what is not there is made, in seconds."""
    base = prepare_fleet([], cache).base
    home = base.parent / f"all-linears-{RECIPE}"
    model: Any = None
    paths: dict[str, Path] = {}
    num_of_rank: Counter[int] = Counter()
    for adapter in adapters:
        number = num_of_rank[adapter.rank]
        num_of_rank[adapter.rank] += 1
        path = home / f"r{adapter.rank}-{number}"
        if not path.exists():
            model = model or _load(base)
            unfinished = path.with_suffix(".part")
            shutil.rmtree(unfinished, ignore_errors=True)
            save_adapter(model, adapter.rank, unfinished, seed=100_000 * adapter.rank + number)
            unfinished.rename(path)
        paths[adapter.name] = path
    told = (
        f"random Llama of {num_parameters(SHAPE) / 1e6:.0f} M parameters, adapters on all linears"
    )
    return FleetFiles(base, paths, told)


def _load(base: Path) -> Any:
    loader: Any = AutoModelForCausalLM
    return loader.from_pretrained(base, dtype=STORED_DTYPE).eval()
