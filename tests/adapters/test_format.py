"""What PEFT saved is what lies in the image: files written by PEFT itself, not by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import LlamaForCausalLM

from lorry.adapters.image import matrix_tiles
from lorry.adapters.image_file import read_image
from lorry.adapters.store import AdapterStore
from lorry.tests.adapters_builders import make_llama_config, make_spec, upload

SAVED = {
    "plain": LoraConfig(r=4, lora_alpha=3, target_modules=["q_proj", "down_proj"]),
    "all": LoraConfig(r=2, target_modules="all-linear", use_rslora=True, lora_alpha=5),
    "mixed": LoraConfig(
        r=3,
        task_type="CAUSAL_LM",
        target_modules=r"model\.layers\.\d\.(self_attn|mlp)\.(k_proj|gate_proj)",
        rank_pattern={"gate_proj": 20},
        alpha_pattern={"k_proj": 7},
    ),
    "one_layer": LoraConfig(
        r=5, target_modules=["v_proj", "o_proj"], layers_to_transform=1, lora_dropout=0.1
    ),
    "orthogonal": LoraConfig(r=4, target_modules=["up_proj"], init_lora_weights="orthogonal"),
}


@pytest.mark.parametrize("case", SAVED)
def test_image_equals_pefts_own_layers(store: AdapterStore, tmp_path: Path, case: str) -> None:
    """A module, rank, scale or weight that differs from PEFT's gives other tokens."""
    torch.manual_seed(0)
    model = get_peft_model(LlamaForCausalLM(make_llama_config()), SAVED[case])
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }
    for layer in layers.values():
        torch.nn.init.normal_(layer.lora_B["default"].weight)
    model.save_pretrained(tmp_path / "saved")
    files = tuple(
        (tmp_path / "saved" / name).read_bytes()
        for name in ("adapter_config.json", "adapter_model.safetensors")
    )
    image = read_image(upload(store, files=(files[0], files[1])).card.image_path)

    spec = make_spec()
    assert {spec.sites[tiles.site].name for tiles in image.layout.sites} == set(layers)
    flat = image.pages.flatten()
    for tiles in image.layout.sites:
        layer = layers[spec.sites[tiles.site].name]
        assert tiles.scale == layer.scaling["default"]
        lora_a, lora_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        for offsets, matrix in ((tiles.a_offsets, lora_a), (tiles.b_offsets, lora_b.T)):
            blocks = matrix_tiles(*matrix.shape, image.layout.tile_cols)
            for start, tile in zip(offsets, blocks, strict=True):
                stored = flat[start : start + tile.num_elements].view(-1, tile.row_stride)
                rows = slice(tile.row, tile.row + tile.num_rows)
                cols = slice(tile.col, tile.col + tile.num_cols)
                assert torch.equal(stored[:, : tile.num_cols], matrix[rows, cols])


def test_front_end_modules_stay_light() -> None:
    """The front end and a client would spend seconds and hundreds of MiB on torch."""
    code = (
        "import sys\n"
        "import lorry.adapters.key, lorry.adapters.errors, lorry.adapters.image\n"
        "import lorry.adapters.limits, lorry.server.store_messages\n"
        "import lorry.server.store_worker\n"
        "heavy = {'torch', 'peft', 'transformers', 'numpy'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
