"""Imports a peer's file without the peer: its packages are empty shells over the folder.

Owns the stand-ins for what those files import from the rest of their projects: settings, the
platform, a logger, Triton's own names. All of them are ours and only say what the kernels ask.
Importing a peer's real package would pull in its server and its compiled parts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from .folder import FOLDER


def load(name: str) -> Any:
    """A module out of the folder, by the name that its own project gives it."""
    peer = name.partition(".")[0]
    if peer not in sys.modules:
        shells = {"vllm": _vllm_shells, "sglang": _sglang_shells}[peer]
        for shell_name, content in shells().items():
            sys.modules[shell_name] = _shell(shell_name, content)
    for package in _parents(name):
        if package not in sys.modules:
            sys.modules[package] = _shell(package, {})
    return import_module(name)


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _shell(name: str, content: Mapping[str, Any]) -> ModuleType:
    """A module of that name; files below it are found in the folder."""
    module = ModuleType(name)
    module.__path__ = [str(FOLDER.joinpath(*name.split(".")))]
    for key, value in content.items():
        setattr(module, key, value)
    return module


class _Silent:
    """A logger that says nothing: the row's name tells which tables were used."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **options: None


def _vllm_shells() -> dict[str, dict[str, Any]]:
    import triton
    import triton.language as tl

    # The defaults of vLLM 0.32; a way sets the folder when it wants tuned tables.
    envs = SimpleNamespace(
        VLLM_BATCH_INVARIANT=False,
        VLLM_TUNED_CONFIG_FOLDER=None,
        VLLM_LORA_DISABLE_PDL=False,
        VLLM_LORA_ENABLE_DUAL_STREAM=False,
    )
    platform = SimpleNamespace(
        is_cuda=torch.cuda.is_available, has_device_capability=_has_capability
    )
    return {
        "vllm": {"envs": envs},
        "vllm.logger": {"init_logger": lambda name: _Silent()},
        "vllm.platforms": {"current_platform": platform},
        "vllm.triton_utils": {"tl": tl, "triton": triton},
        "vllm.utils": {},
        "vllm.utils.math_utils": {"next_power_of_2": triton.next_power_of_2},
        "vllm.utils.torch_utils": {
            "async_tensor_h2d": _to_device,
            "direct_register_custom_op": _no_custom_op,
        },
    }


def _has_capability(wanted: int) -> bool:
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor >= wanted


def _to_device(data: Any, device: Any = None, dtype: Any = None) -> torch.Tensor:
    return torch.tensor(data, dtype=dtype).to(device)


def _no_custom_op(*args: object, **options: object) -> None:
    """As on a torch without custom operators, for which vLLM's files call the function itself."""
    raise AttributeError("no custom operators here")


def _sglang_shells() -> dict[str, dict[str, Any]]:
    off = SimpleNamespace(get=lambda: False)
    envs = SimpleNamespace(
        SGLANG_ENABLE_LORA_CSGMV_SPLIT_K=off, SGLANG_ENABLE_DETERMINISTIC_INFERENCE=off
    )
    return {
        "sglang": {},
        "sglang.srt": {},
        "sglang.srt.environ": {"envs": envs},
        "sglang.srt.lora": {},
        # Only an annotation there: what is handed over is sglang_way.BatchInfo.
        "sglang.srt.lora.utils": {"LoRABatchInfo": object},
        "sglang.srt.utils": {
            # Saves launch overhead on the host, which a recorded graph does not have.
            "cached_triton_kernel": lambda key: lambda kernel: kernel,
            "get_device_name": _device_name,
        },
    }


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
