"""An adapter of the output layer, and the weights of the base that PEFT saves with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import LlamaForCausalLM, PhiConfig, PhiForCausalLM, PreTrainedModel

from lorry.adapters.errors import AdapterRefused
from lorry.adapters.image import BaseWeight, ImageSpec, Site
from lorry.adapters.image_file import read_image
from lorry.adapters.resolve import PeftResolver
from lorry.adapters.store import AdapterStore
from lorry.tests.adapters_builders import (
    HEAD,
    SITES,
    TENANT,
    make_base_weight,
    make_llama_config,
    make_spec,
    make_store,
    upload,
)

# Said by PEFT at each save of this kind, and on each head tied to an embedding.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
]
SAVED = "base_model.model.lm_head.base_layer.weight"
EMBEDDING = "base_model.model.model.embed_tokens.weight"


def make_model(*, tied: bool = False) -> LlamaForCausalLM:
    config = make_llama_config()
    config.tie_word_embeddings = tied
    torch.manual_seed(3)
    return LlamaForCausalLM(config)


def spec_of(
    model: PreTrainedModel, *, sites: tuple[Site, ...] = (*SITES, HEAD), dtype: str = "float32"
) -> ImageSpec:
    """With the base's head and embedding, as an engine lists them."""
    weights: list[BaseWeight] = []
    for name, module in model.named_modules():
        if module in (model.get_input_embeddings(), model.get_output_embeddings()):
            weights.append(make_base_weight(name, module.weight))
            if getattr(module, "bias", None) is not None:
                weights.append(make_base_weight(f"{name}.bias", module.bias))
    return make_spec(sites=sites, dtype=dtype, base_weights=tuple(weights))


def save_by_peft(
    model: PreTrainedModel,
    folder: Path,
    *,
    targets: tuple[str, ...] = ("q_proj", "lm_head"),
    save_embedding_layers: bool | str = "auto",
) -> tuple[bytes, dict[str, Tensor]]:
    """The config, and the tensors of the file."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(targets), task_type="CAUSAL_LM")
    peft_model = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    peft_model.save_pretrained(folder, save_embedding_layers=save_embedding_layers)
    config_json = (folder / "adapter_config.json").read_bytes()
    return config_json, load_file(folder / "adapter_model.safetensors")


@pytest.fixture
def parts(tmp_path: Path) -> tuple[ImageSpec, bytes, dict[str, Tensor]]:
    model = make_model()
    spec = spec_of(model)
    return spec, *save_by_peft(model, tmp_path / "saved")


def take(
    store: AdapterStore, spec: ImageSpec, config_json: bytes, tensors: dict[str, Tensor]
) -> tuple[str, ...]:
    """Upload; the notes of the card."""
    store.configure(spec)
    return upload(store, files=(config_json, save(tensors))).card.notes


@pytest.mark.parametrize("tied", [False, True], ids=["own-head", "tied-head"])
def test_a_head_adapter_as_peft_saves_it_is_taken(tmp_path: Path, tied: bool) -> None:
    """A head's adapter would be refused for the base weight that PEFT saved beside it."""
    model = make_model(tied=tied)
    spec = spec_of(model)
    resolver = PeftResolver(model.to("meta"))
    config_json, tensors = save_by_peft(make_model(tied=tied), tmp_path / "saved")
    assert SAVED in tensors
    store = make_store(tmp_path / "store", resolver, spec=spec)
    card = upload(store, files=(config_json, save(tensors))).card
    image = read_image(card.image_path)
    assert card.target_modules == ("lm_head", "q_proj")
    assert [tiles.site for tiles in image.layout.sites][-1] == len(SITES)
    assert any("tie_word_embeddings" in note for note in card.notes) == tied
    store.close()


def test_a_head_without_a_site_is_refused_by_name(
    store: AdapterStore, parts: tuple[ImageSpec, bytes, dict[str, Tensor]]
) -> None:
    """The head's part would be dropped where the server cannot adapt it."""
    spec, config_json, tensors = parts
    with pytest.raises(AdapterRefused, match="lm_head") as caught:
        take(store, dataclasses.replace(spec, sites=SITES), config_json, tensors)
    assert caught.value.field == "target_modules"


@pytest.mark.parametrize("spelling", [EMBEDDING, "base_model.model.lm_head.weight"])
def test_saved_without_being_adapted(store: AdapterStore, tmp_path: Path, spelling: str) -> None:
    """`save_embedding_layers=True` writes both ends of the model, adapted or not."""
    model = make_model()
    spec = spec_of(model)
    config_json, tensors = save_by_peft(
        model, tmp_path / "saved", targets=("q_proj",), save_embedding_layers=True
    )
    assert spelling in tensors
    assert take(store, spec, config_json, tensors) == ()
    tensors[spelling][0, 0] += 1
    with pytest.raises(AdapterRefused, match=r"differs from the base's") as caught:
        take(store, spec, config_json, tensors)
    assert caught.value.field == spelling


def test_a_head_that_was_trained_is_refused(
    store: AdapterStore, parts: tuple[ImageSpec, bytes, dict[str, Tensor]]
) -> None:
    """A trained head would be dropped in silence; the last element counts as the first."""
    spec, config_json, tensors = parts
    tensors[SAVED][-1, -1] += 1e-3
    with pytest.raises(AdapterRefused, match="differs from the base's lm_head") as caught:
        take(store, spec, config_json, tensors)
    assert caught.value.field == SAVED
    assert store.count() == 0


def test_a_grown_vocabulary_is_refused(
    store: AdapterStore, parts: tuple[ImageSpec, bytes, dict[str, Tensor]]
) -> None:
    """Rows of tokens that the base does not have would be cut off."""
    spec, config_json, tensors = parts
    tensors[SAVED] = torch.cat([tensors[SAVED], tensors[SAVED][:1]])
    with pytest.raises(AdapterRefused, match=r"\[129, 64\].*\[128, 64\]") as caught:
        take(store, spec, config_json, tensors)
    assert caught.value.field == SAVED


def test_a_base_that_is_not_listed_is_no_base(
    store: AdapterStore, parts: tuple[ImageSpec, bytes, dict[str, Tensor]]
) -> None:
    """What cannot be compared would be believed."""
    spec, config_json, tensors = parts
    with pytest.raises(AdapterRefused, match="no module") as caught:
        take(store, dataclasses.replace(spec, base_weights=()), config_json, tensors)
    assert caught.value.field == SAVED


@pytest.mark.parametrize(
    ("served", "saved", "noted"),
    [
        (torch.float32, torch.float32, False),
        (torch.bfloat16, torch.bfloat16, False),
        (torch.bfloat16, torch.float32, False),  # PEFT casts it to what is served
        (torch.float32, torch.bfloat16, True),  # PEFT would serve the rounded one
    ],
    ids=str,
)
def test_alike_after_the_cast_is_alike(
    store: AdapterStore,
    parts: tuple[ImageSpec, bytes, dict[str, Tensor]],
    served: torch.dtype,
    saved: torch.dtype,
    noted: bool,
) -> None:
    """Trained in bf16 and served in fp32, or the other way, an honest head would be refused."""
    _, config_json, tensors = parts
    dtype = str(served).removeprefix("torch.")
    spec = spec_of(make_model().to(served), dtype=dtype)
    tensors[SAVED] = tensors[SAVED].to(saved)
    notes = take(store, spec, config_json, tensors)
    assert any("rounded to bfloat16" in note for note in notes) == noted


def test_rows_are_read_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
    store: AdapterStore,
    parts: tuple[ImageSpec, bytes, dict[str, Tensor]],
) -> None:
    """The hash of a large head would be of its first or last piece only."""
    monkeypatch.setattr("lorry.adapters.base_weights._CHUNK_ELEMENTS", 200)
    spec, config_json, tensors = parts
    take(store, spec, config_json, tensors)
    for row in (0, 70, 127):
        changed = tensors[SAVED].clone()
        changed[row, 0] += 1
        with pytest.raises(AdapterRefused, match="differs"):
            take(store, spec, config_json, tensors | {SAVED: changed})


def test_the_bias_of_a_head_is_compared_too(tmp_path: Path) -> None:
    """A trained bias would be dropped in silence."""
    config = PhiConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=50,
    )
    model = PhiForCausalLM(config)
    resolver = PeftResolver(PhiForCausalLM(config).to("meta"))
    spec = spec_of(model, sites=(Site("lm_head", 1, 32, 50),))
    config_json, tensors = save_by_peft(model, tmp_path / "saved", targets=("lm_head",))
    bias = "base_model.model.lm_head.base_layer.bias"
    assert bias in tensors
    store = make_store(tmp_path / "store", resolver, spec=spec)
    assert upload(store, files=(config_json, save(tensors))).created
    tensors[bias][3] = 1.0
    with pytest.raises(AdapterRefused, match=r"lm_head\.bias") as caught:
        upload(store, files=(config_json, save(tensors)))
    assert caught.value.field == bias
    store.close()


def test_another_base_is_compared_anew(
    store: AdapterStore, parts: tuple[ImageSpec, bytes, dict[str, Tensor]]
) -> None:
    """Stored beside one base and used on the next of its shape, with that one's head."""
    spec, config_json, tensors = parts
    take(store, spec, config_json, tensors)
    other = make_base_weight("lm_head", torch.zeros(128, 64))
    store.configure(dataclasses.replace(spec, base_weights=(other,)))
    assert store.ready(TENANT, "cat") is None
    with pytest.raises(AdapterRefused, match="differs"):
        store.get(TENANT, "cat")
    store.configure(spec)
    assert store.get(TENANT, "cat").num_pages


def test_a_bias_is_no_factor(
    store: AdapterStore, parts: tuple[ImageSpec, bytes, dict[str, Tensor]]
) -> None:
    """A tensor of one dimension passes the header; as A or B it must not."""
    spec, config_json, tensors = parts
    name = "base_model.model.lm_head.lora_A.weight"
    tensors[name] = tensors[name].flatten()
    with pytest.raises(AdapterRefused, match=r"\[256\].*\[4, 64\]") as caught:
        take(store, spec, config_json, tensors)
    assert caught.value.field == name
