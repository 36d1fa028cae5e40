"""Workload W's adapters as the engine is told of them, without a server.

Fills a store of its own and closes it: the images stay as files for whoever loads them. Used by
the step split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ...adapters.image import ImageSpec
from ...adapters.key import AdapterCard
from ...adapters.limits import StoreLimits
from ...adapters.resolve import PeftResolver
from ...adapters.store import AdapterStore
from ...server.clock import unix_now_s
from ..store_folder import put_folder
from .workload_files import WorkloadFiles

LIMITS = StoreLimits(max_upload_bytes=1 << 30, max_rank=256)


def make_cards(files: WorkloadFiles, image_spec: ImageSpec, home: Path) -> dict[str, AdapterCard]:
    """By name; the images lie below `home` and are read when an adapter is loaded."""
    loader: Any = AutoModelForCausalLM
    with torch.device("meta"):
        skeleton = loader.from_config(AutoConfig.from_pretrained(files.base))
    resolver = PeftResolver(skeleton, base_name="workload-w")
    store = AdapterStore(home, LIMITS, resolver, unix_now_s=unix_now_s)
    try:
        store.configure(image_spec)
        return {name: put_folder(store, name, folder) for name, folder in files.adapters.items()}
    finally:
        store.close()
