"""A model's pages and sites from its config alone: built on the meta device, no weight is read.

Owns the way from a config file to the geometry of a page and the sites of an adapter, by the same
looks as a real start where shapes are enough for them. A model that this server refuses has pages
and sites all the same; the reason goes with them. Called by `lorry info --memory` and by
`lorry bench memory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ...adapters.footprint import PageShape
from ...adapters.image import ImageSpec, Site
from ..errors import ModelRefused
from .context import StepContext
from .interface import KvShape, attach, probe_kv_shape
from .model import page_geometry
from .refusals import check_config, check_window
from .row_probe import SeenLinear, probe_shapes
from .sites import order_linears


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """What a model's config says of its memory."""

    architecture: str
    dtype: str
    num_parameters: int
    shape: PageShape
    head: str  # the output layer among the sites; empty: it is none
    refusal: str  # why this server would not serve it; empty: its config names no reason


def read_model_memory(source: Path, *, dtype: str = "auto") -> ModelMemory:
    """`source`: a folder with a config.json, or such a file under any name.

    Raises:
        ModelRefused: there is none, or it describes no model that pages and adapters are made for.
    """
    config = _read_config(source)
    chosen = _dtype(config, dtype)
    model = _build(config, chosen, source)
    refusal = _refusal(config)
    context = StepContext()
    attach(model, context)
    kv = probe_kv_shape(model, context)
    refusal = refusal or _window_refusal(config, kv)
    seen = _probe(model, context)
    sites = [
        Site(linear.name, layer, linear.in_width, linear.out_width)
        for linear, layer in order_linears(model, seen, num_layers=kv.num_layers)
    ]
    geometry = page_geometry(kv, element_bytes=chosen.itemsize)
    name = str(chosen).removeprefix("torch.")
    spec = ImageSpec(geometry.page_elements, name, tuple(sites))
    return ModelMemory(
        architecture=type(model).__name__,
        dtype=name,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        shape=PageShape(spec, geometry.tokens_per_page, chosen.itemsize),
        head=next((linear.name for linear in seen if linear.at_head), ""),
        refusal=refusal,
    )


def _read_config(source: Path) -> PreTrainedConfig:
    path = source / "config.json" if source.is_dir() else source
    if not path.is_file():
        raise ModelRefused(
            f"--model is {str(source)!r}: neither a folder with a config.json nor such a file",
            field="--model",
        )
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    # Each family checks its numbers in its own way, with errors of its own.
    except Exception as error:
        raise ModelRefused(
            f"--model is {str(source)!r}, which transformers does not read as a model's config: "
            f"{error}",
            field="--model",
        ) from error


def _dtype(config: PreTrainedConfig, name: str) -> torch.dtype:
    if name != "auto":
        return getattr(torch, name)
    own = getattr(config, "dtype", None)
    return own if isinstance(own, torch.dtype) else torch.bfloat16


def _build(config: PreTrainedConfig, dtype: torch.dtype, source: Path) -> PreTrainedModel:
    maker: Any = AutoModelForCausalLM
    try:
        with torch.device("meta"):
            return maker.from_config(config, dtype=dtype, attn_implementation="eager").eval()
    # Whatever a model's own code raises says that these numbers make no model.
    except Exception as error:
        raise ModelRefused(
            f"--model is {str(source)!r}: its config makes no language model: "
            f"{type(error).__name__}: {error}",
            field="--model",
        ) from error


def _refusal(config: PreTrainedConfig) -> str:
    try:
        check_config(config)
    except ModelRefused as error:
        return str(error)
    return ""


def _window_refusal(config: PreTrainedConfig, kv: KvShape) -> str:
    text_config = config.get_text_config()
    max_len = int(getattr(text_config, "max_position_embeddings", 0) or 0)
    try:
        check_window(text_config, seen=kv.max_window, max_model_len=max_len)
    except ModelRefused as error:
        return str(error)
    return ""


def _probe(model: PreTrainedModel, context: StepContext) -> Sequence[SeenLinear]:
    try:
        return probe_shapes(model, context)
    # A mixture of experts asks for numbers to send rows by.
    except Exception as error:
        raise ModelRefused(
            f"{type(model).__name__} cannot be followed without its weights: "
            f"{type(error).__name__}: {error}",
            field="--model",
        ) from error
