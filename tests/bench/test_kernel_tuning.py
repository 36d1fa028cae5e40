"""Tuning the peers: the fastest that runs, in tables that they find, for this device and case."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lorry.bench.kernels.cases import Case
from lorry.bench.kernels.inputs import Inputs
from lorry.bench.kernels.measure import DeviceBroken
from lorry.bench.kernels.rivals.tables import ship, unpack, why_untuned, write_about
from lorry.bench.kernels.rivals.tune import pick_best, write_vllm
from lorry.bench.kernels.shapes import LAYERS


def make_inputs(*, num_rows: int = 4, dtype: torch.dtype = torch.float32) -> Inputs:
    case = Case(LAYERS["tiny"], "decode", num_rows, 3, "mixed")
    return Inputs(case, num_layers=1, dtype=dtype, device=torch.device("cpu"))


def test_tuning_takes_the_fastest_that_runs() -> None:
    """A config that asks for too much shared memory is no reason to give up tuning."""
    times = {1: 3.0, 2: 1.0, 4: 2.0}

    def measure(config: dict[str, int]) -> float:
        if config["size"] == 3:
            raise RuntimeError("out of resource: shared memory")
        return times[config["size"]]

    sizes = [{"size": size} for size in (1, 3, 2, 4)]
    assert pick_best(sizes, measure, lambda: False) == {"size": 2}
    assert pick_best(sizes, measure, lambda: True) is None

    def break_down(config: dict[str, int]) -> float:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(DeviceBroken):
        pick_best(sizes, break_down, lambda: False)


def test_vllms_tables_are_nested_as_it_reads_them(tmp_path: Path) -> None:
    """A table that vLLM does not find would make "tuned" another word for default."""
    config = {"block_m": 16}
    write_vllm({"SHRINK": {(9, 3, 64, 4096, 128): config}, "EXPAND_TRUE": {}}, "A B-C", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["A_B_C_SHRINK.json"]
    nested = json.loads((tmp_path / "A_B_C_SHRINK.json").read_text())
    assert nested == {"9": {"3": {"64": {"4096": {"128": config}}}}}


def test_tuned_tables_travel_as_one_file(tmp_path: Path) -> None:
    """`make gpu` would compare with peers that nobody tuned, or tuned for something else."""
    there, here, file = tmp_path / "there", tmp_path / "here", tmp_path / "tables.json"
    inputs, config = make_inputs(), {"block_m": 16}
    assert "no tables" in why_untuned(inputs, there)
    write_vllm({"SHRINK": {(9, 3, 64, 4096, 128): config}}, "A", there / "vllm")
    write_about(inputs.device, inputs.dtype, [inputs.case.name], there)
    ship(file, there)
    (here / "old").mkdir(parents=True)
    unpack(file, here)
    assert sorted(path.name for path in here.iterdir()) == ["about.json", "vllm"]
    assert json.loads((here / "vllm/A_SHRINK.json").read_text())["9"]["3"]["64"]["4096"]["128"]
    assert why_untuned(inputs, here) == ""
    assert "this case" in why_untuned(make_inputs(num_rows=5), here)
    assert "no tables" in why_untuned(make_inputs(dtype=torch.float16), here)
    unpack(tmp_path / "none.json", here)
    assert why_untuned(inputs, here) == ""
