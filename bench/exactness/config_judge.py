"""One random config: PEFT makes and saves an adapter of it, Lorry refuses it or does the same.

Owns the comparison. A refusal must name a field that says something, or a tensor. What is taken
must be PEFT's: the same modules, the very numbers of A, B and scale, the base left as it is, the
same logits when the factors are added by hand, and other logits than the base's. Knows no
engine; used by configs.py and by its test.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...adapters.errors import AdapterError
from ...adapters.format import read_config
from ...adapters.image import matrix_tiles
from ...adapters.image_file import HostImage, read_image
from ...adapters.intake import pack_adapter, plan_adapter
from ...adapters.limits import StoreLimits
from ...adapters.names import PEFT_PREFIX
from ...adapters.spelling import plain_names
from .config_draws import Drawn
from .config_worlds import VOCAB, World

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LIMITS = StoreLimits(max_upload_bytes=1 << 24, max_rank=64)
TOLERANCE = 1e-4  # of a logit, of the largest; sums in float32 in another order

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# A, B [float32] and scale, by module.
Factors = Mapping[str, tuple[Tensor, Tensor, float]]


class Mismatch(AssertionError):
    """Lorry took what it does not do as PEFT does, or refused what it should take."""


@dataclass(frozen=True, slots=True)
class Outcome:
    kind: str  # impossible (PEFT itself raises), refused, equal
    field: str = ""  # of the refusal
    num_modules: int = 0  # adapted
    # Of what is equal: PEFT's own, and Lorry's image.
    reference: PeftModel | None = None
    image: HostImage | None = None


@dataclass(frozen=True, slots=True)
class Saved:
    """What lies in the folder."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    supported: bool  # it must be taken


def judge(rng: Random, world: World, drawn: Drawn, folder: Path) -> Outcome:
    """Raises Mismatch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            saved = _save(rng, world, drawn, folder)
            base = copy.deepcopy(world.model)
            reference = PeftModel.from_pretrained(base, str(folder)).eval()
        # PEFT raises whatever Python raises; each means that there is nothing to compare with.
        except Exception:
            return Outcome("impossible")
        try:
            image = _lorry(world, folder)
        except AdapterError as error:
            _check_refusal(world, saved, reference, error)
            return Outcome("refused", error.field)
        factors = unpack(world, image)
        _check_factors(factors, reference)
        _check_base(world, reference)
        _check_logits(world, factors, reference)
    return Outcome("equal", num_modules=len(factors), reference=reference, image=image)


def _save(rng: Random, world: World, drawn: Drawn, folder: Path) -> Saved:
    peft_model = get_peft_model(copy.deepcopy(world.model), LoraConfig(**drawn.options))
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            # What is trained besides A and B moves too: dropped in silence, it must show.
            if parameter.requires_grad or "lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    peft_model.save_pretrained(str(folder), save_embedding_layers=rng.choice([True, False]))
    tensors, whole = _rewrite_tensors(rng, load_file(folder / WEIGHTS))
    save_file(tensors, folder / WEIGHTS)
    config = json.loads((folder / CONFIG).read_text())
    added, known = rng.choice(
        [({}, True)] * 8
        + [
            ({"merge_weights": False, "enable_lora": None}, True),
            ({"runtime_config": {"ephemeral_gpu_offload": False}}, True),
            ({"use_warp_drive": False}, False),
        ]
    )
    config |= added
    (folder / CONFIG).write_text(json.dumps(config))
    # What all-linear means on a base with experts, by PEFT's own hand.
    experts = bool(config.get("target_parameters"))
    return Saved(config, tensors, drawn.supported and whole and known and not experts)


def _rewrite_tensors(rng: Random, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """In other dtypes and spellings, one trained or lost; whether Lorry must still take them."""
    dtypes = rng.choice([[torch.float32], [torch.float32], [torch.bfloat16], list(_DTYPES)])
    spelling = rng.choice(["plain"] * 12 + ["adapter", "bare", "module.", "_orig_mod."])
    damage = rng.choice([""] * 8 + ["trained", "lost"])
    # The base's own stay as they are: rounded, they are the base's with a note, not PEFT's.
    rewritten = {
        _respell(name, spelling): tensor.to(rng.choice(dtypes)) if ".lora_" in name else tensor
        for name, tensor in tensors.items()
    }
    for name in sorted(rewritten):
        if damage == "trained" and ".lora_" not in name:
            rewritten[name] = rewritten[name] + 0.5
        elif damage == "lost" and ".lora_" in name:
            del rewritten[name]
            break
    return rewritten, spelling in ("plain", "adapter") and not damage


def _respell(name: str, spelling: str) -> str:
    if spelling == "adapter" and ".lora_" in name:
        return name.removesuffix(".weight") + ".default.weight"
    if spelling == "bare":
        return name.removeprefix(PEFT_PREFIX)
    return spelling + name if spelling.endswith(".") else name


def _lorry(world: World, folder: Path) -> HostImage:
    config = read_config((folder / CONFIG).read_bytes(), LIMITS)
    plan = plan_adapter(config, world.spec, world.resolver, LIMITS, max_pages=None)
    pack_adapter(plan, folder / WEIGHTS, world.resolver, image_path=folder / "image")
    return read_image(folder / "image")


def _check_refusal(world: World, saved: Saved, reference: PeftModel, error: AdapterError) -> None:
    if saved.supported:
        raise Mismatch(f"{world.name}: refused, and should not be: {error.message}")
    defaults = LoraConfig().to_dict() | {"target_modules": ...}
    says_something = error.field in saved.config and (
        saved.config[error.field] != defaults.get(error.field, ...)
    )
    missing = plain_names(_layers(reference))
    if not (says_something or error.field in saved.tensors or error.field in missing):
        raise Mismatch(f"{world.name}: the refusal names {error.field!r}: {error.message}")


def _layers(reference: PeftModel) -> dict[str, LoraLayer]:
    return {
        name: module
        for name, module in reference.get_base_model().named_modules()
        if isinstance(module, LoraLayer)
    }


def unpack(world: World, image: HostImage) -> Factors:
    """The dense factors that lie in an image."""
    flat, cols = image.pages.flatten(), image.layout.tile_cols
    factors: dict[str, tuple[Tensor, Tensor, float]] = {}
    for tiles in image.layout.sites:
        site = world.spec.sites[tiles.site]
        pair: list[Tensor] = []
        for offsets, width in ((tiles.a_offsets, site.in_width), (tiles.b_offsets, site.out_width)):
            matrix = torch.full((tiles.rank, width), float("nan"))
            for start, tile in zip(offsets, matrix_tiles(tiles.rank, width, cols), strict=True):
                block = flat[start : start + tile.num_elements].view(-1, tile.row_stride)
                matrix[tile.row : tile.row + tile.num_rows, tile.col : tile.col + tile.num_cols] = (
                    block[:, : tile.num_cols]
                )
            pair.append(matrix)
        factors[site.name] = (pair[0], pair[1].T, tiles.scale)
    return factors


def _check_factors(factors: Factors, reference: PeftModel) -> None:
    layers = _layers(reference)
    if set(layers) != set(factors):
        raise Mismatch(f"modules differ: {sorted(set(layers) ^ set(factors))}")
    for name, (lora_a, lora_b, scale) in factors.items():
        layer = cast(Any, layers[name])
        if layer.scaling["default"] != scale:
            raise Mismatch(f"{name}: scale {scale}, PEFT's is {layer.scaling['default']}")
        for ours, theirs in ((lora_a, layer.lora_A), (lora_b, layer.lora_B)):
            if not torch.equal(ours, theirs["default"].weight):
                raise Mismatch(f"{name}: other numbers than PEFT's")


def _check_base(world: World, reference: PeftModel) -> None:
    """What PEFT laid over the base is the base's own."""
    base = world.model.state_dict()
    for name, tensor in reference.get_base_model().state_dict().items():
        if ".lora_" not in name:
            own = base.get(name.replace(".base_layer.", "."))
            if own is None or not torch.equal(own, tensor):
                raise Mismatch(f"PEFT has another {name} than the base")


@torch.no_grad()
def _check_logits(world: World, factors: Factors, reference: PeftModel) -> None:
    ids = torch.arange(3, 19)[None] % VOCAB
    model = copy.deepcopy(world.model)
    plain = model(ids).logits
    for name, factor in factors.items():
        model.get_submodule(name).register_forward_hook(partial(_add, factor))
    ours, theirs = model(ids).logits, reference(ids).logits
    largest = float(theirs.abs().max())
    if float((ours - theirs).abs().max()) > TOLERANCE * largest:
        raise Mismatch("the factors alone do not give PEFT's logits")
    if float((theirs - plain).abs().max()) <= 10 * TOLERANCE * largest:
        raise Mismatch("the adapter changes nothing: nothing is proven")


def _add(factor: tuple[Tensor, Tensor, float], _: Any, given: Any, out: Tensor) -> Tensor:
    lora_a, lora_b, scale = factor
    return out + given[0] @ lora_a.T @ lora_b.T * scale


def field_names() -> set[str]:
    """Of the installed class."""
    return {field.name for field in dataclasses.fields(LoraConfig)}
