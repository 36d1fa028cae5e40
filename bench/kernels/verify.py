"""Proof without a GPU that the bench feeds all kernels right: ours and the peers', interpreted.

Run as a process of its own with TRITON_INTERPRET=1 (a kernel is interpreted or compiled for good
when its file is imported). Prints a line a way; exit code 1 when one disagrees with the
reference. Nothing is timed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import torch

from .cases import Case
from .check import WrongResult, check, make_expected
from .inputs import Inputs
from .ours import make_triton_anywhere
from .rivals import sglang_way, vllm_way
from .rivals.folder import PEERS
from .rivals.sglang_way import SglangWay
from .rivals.vllm_way import VllmWay
from .shapes import LayerShape
from .way import Way

# Odd widths, and few programs: the interpreter runs them one by one in Python.
LAYER = LayerShape("verify", hidden=80, q_out=48, kv_out=16, mlp=112, model_layers=2)
DECODE = Case(LAYER, "decode", num_rows=3, num_adapters=2, ranks_name="mixed")
# An adapter's rows fill more than one block of either peer.
PREFILL = Case(LAYER, "prefill", num_rows=70, num_adapters=2, ranks_name="mixed")
# (name, case, layers, way)
Build = Callable[[Inputs], Way]
RUNS: tuple[tuple[str, Case, int, Build], ...] = (
    ("triton", DECODE, 2, make_triton_anywhere),
    ("triton", PREFILL, 1, make_triton_anywhere),
    ("vllm", DECODE, 2, lambda inputs: VllmWay(inputs, vllm_way.Setting())),
    (
        "vllm, larger buffers",
        DECODE,
        1,
        lambda inputs: VllmWay(
            inputs, vllm_way.Setting(max_rank=32, max_loras=3, is_specialized=False)
        ),
    ),
    ("vllm", PREFILL, 1, lambda inputs: VllmWay(inputs, vllm_way.Setting())),
    ("sglang", DECODE, 2, lambda inputs: SglangWay(inputs, sglang_way.Setting())),
    ("sglang, larger buffers", DECODE, 1, lambda i: SglangWay(i, sglang_way.Setting(16, 48))),
    ("sglang", PREFILL, 1, lambda inputs: SglangWay(inputs, sglang_way.Setting())),
    ("sglang, larger chunks", PREFILL, 1, lambda i: SglangWay(i, sglang_way.Setting(128))),
)


def main() -> int:
    if os.environ.get("TRITON_INTERPRET") != "1":
        print("verify: set TRITON_INTERPRET=1; on a GPU the bench itself checks every row")
        return 2
    wrong = 0
    missing = [peer.name for peer in PEERS if not peer.is_there()]
    for name, case, num_layers, build in RUNS:
        if name.startswith(tuple(missing)):
            print(f"{case.name} {name}: its files are not here")
            continue
        # bf16 products are silently wrong in the interpreter; vLLM takes no fp32.
        device = torch.device("cpu")
        inputs = Inputs(case, num_layers=num_layers, dtype=torch.float16, device=device)
        try:
            error = check(build(inputs), inputs, make_expected(inputs))
        except WrongResult as disagreement:
            wrong += 1
            print(f"{case.name} {name}: WRONG, {disagreement}")
        else:
            print(f"{case.name} {name}: equal (largest error of a row {error:.1e})")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
