"""From a config to a runner that serves: load, prove, rehearse, reserve the pool, warm up.

Owns that order and what a GPU's pool gets. Does not know steps (runner.py) nor what a proof is
(selfproof.py, graph_proof.py). Called once, by the engine's process.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import torch

from ..config import ServerConfig
from .backends import choose_kernels
from .batch import StepCapacity
from .exact_products import keep_products_exact
from .graph_proof import num_kv_pages
from .host_memory import keep_freed_memory
from .model import LoadedModel, load_model
from .pool_size import (
    GPU_MARGIN_BYTES,
    choose_num_pages,
    default_pool_bytes,
    free_device_bytes,
)
from .recorder import CudaRecorder, Recorder
from .runner import Runner
from .selfproof import prove
from .threads import choose_num_threads
from .warm_up import rehearsal_pages
from .workspace_size import choose_workspace_rows, workspace_bytes

Build = Callable[[int, StepCapacity], Runner]  # (pages, limits) -> a runner that is warm


def load_runner(config: ServerConfig, *, recorder: Recorder | None = None) -> Runner:
    """A runner that has proved itself and has taken all memory that it will ever need.

    `recorder`: instead of the device's own; a CPU has none.

    Raises:
        ConfigError: a flag does not fit the machine or the model.
        ModelRefused: the model cannot be served exactly.
    """
    keep_freed_memory()
    loaded = load_model(config.model)
    _use_device(config, loaded)
    kernels = choose_kernels(config.model.kernels, loaded.device)
    proof = prove(loaded, kernels=kernels)
    if loaded.device.type == "cuda" and kernels != "triton" and config.model.cuda_graphs:
        proof += f"; decode steps run without CUDA graphs: --kernels is {kernels}"
    limits = StepCapacity(
        max_running=config.scheduling.max_running,
        max_step_tokens=config.scheduling.max_step_tokens,
        max_model_len=loaded.max_model_len,
        max_rank=config.memory.max_rank,
        max_rows=config.scheduling.max_running + config.scheduling.max_waiting,
    )

    def build(num_pages: int, limits: StepCapacity) -> Runner:
        # Graphs are of kernels that read a step's lists from the device.
        graphs = loaded.device.type == "cuda" and kernels == "triton" and config.model.cuda_graphs
        runner = Runner(
            loaded,
            num_pages=num_pages,
            limits=limits,
            self_proof=proof,
            kernels=kernels,
            recorder=recorder or (CudaRecorder(loaded.device) if graphs else None),
        )
        # Its own workspaces are made here and not in the first request's step.
        runner.warm_up()
        return runner

    pool_bytes = config.memory.pool_bytes
    if not pool_bytes and loaded.device.type == "cuda":
        pool_bytes = rehearse(loaded, limits, build, lambda: free_device_bytes(loaded.device))
    elif not pool_bytes:
        pool_bytes = default_pool_bytes()
    limits = replace(limits, workspace_rows=choose_workspace_rows(loaded, pool_bytes))
    pool_bytes -= workspace_bytes(loaded, limits.workspace_rows)
    return build(choose_num_pages(pool_bytes, loaded.page_bytes), limits)


def _use_device(config: ServerConfig, loaded: LoadedModel) -> None:
    torch.set_num_threads(
        choose_num_threads(
            config.model.num_threads,
            num_cores=torch.get_num_threads(),
            max_running=config.scheduling.max_running,
            sites=loaded.image_spec.sites,
        )
    )
    if loaded.device.type == "cuda":
        torch.cuda.set_device(loaded.device)
        keep_products_exact()


def rehearse(
    loaded: LoadedModel, limits: StepCapacity, build: Build, free_bytes: Callable[[], int]
) -> int:
    """Bytes for the pool of a GPU: what is left, less a margin, while a runner with a small pool is
    up, and everything else that a server takes: weights, buffers, libraries, the largest steps
    and all recordings.
    """
    torch.cuda.empty_cache()  # of the self-proof
    num_pages = rehearsal_pages(loaded.image_spec, limits.max_rank)
    num_pages += num_kv_pages(limits, loaded.geometry.tokens_per_page)
    runner = build(num_pages, limits)
    left_bytes = free_bytes() + num_pages * loaded.page_bytes
    # A recording holds on to what it recorded in a circle of references.
    del runner
    gc.collect()
    torch.cuda.empty_cache()
    return max(left_bytes - GPU_MARGIN_BYTES, 0)
