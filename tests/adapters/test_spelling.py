"""Names of tensors: taken where PEFT itself reads them, refused where it would pass over them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from lorry.adapters.errors import AdapterRefused
from lorry.adapters.format import match_sites, read_weights
from lorry.adapters.image import ImageSpec, Site
from lorry.adapters.resolve import PeftResolver
from lorry.adapters.spelling import plain_names
from lorry.tests.adapters_builders import make_spec

P = "base_model.model."
# Each, and whether PEFT reads it on a Llama, on a Mixtral. The second has carried old names over
# since transformers 5, and PEFT's way to that takes the wrapper's prefix off and puts it on.
SPELLINGS: dict[str, tuple[Callable[[str], str], bool, bool]] = {
    "as PEFT saves": (lambda name: name, True, True),
    "adapter named": (lambda name: name.replace(".weight", ".default.weight"), True, True),
    "another adapter named": (lambda name: name.replace(".weight", ".cat.weight"), False, False),
    "without prefix": (lambda name: name.removeprefix(P), False, True),
    "half a prefix": (lambda name: name.replace(P, "base_model.", 1), False, False),
    "prefix twice": (lambda name: P + name, False, False),
    "DDP": (lambda name: f"module.{name}", False, False),
    "torch.compile": (lambda name: f"_orig_mod.{name}", False, False),
    "torch.compile inside": (lambda name: name.replace(P, f"{P}_orig_mod."), False, False),
    "FSDP": (lambda name: f"_fsdp_wrapped_module.{name}", False, False),
    "vision-language": (
        lambda name: name.replace("model.layers", "language_model.layers"),
        False,
        False,
    ),
    "other tools": (
        lambda name: name.replace("lora_A", "lora_down").replace("lora_B", "lora_up"),
        False,
        False,
    ),
}
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 50,
}
APPLIED = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "k_proj"]}


def make_llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def make_mixtral() -> PreTrainedModel:
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2))


@dataclass(frozen=True)
class Case:
    """An adapter that PEFT saved on a base of this kind."""

    make: Callable[[], PreTrainedModel]
    resolver: PeftResolver
    spec: ImageSpec
    folder: Path
    tensors: dict[str, Tensor]

    def read(self, tensors: dict[str, Tensor]) -> dict[int, tuple[Tensor, Tensor]]:
        path = self.folder / "adapter_model.safetensors"
        save_file(tensors, path)
        ranks = match_sites(self.resolver.resolve(APPLIED), self.spec)
        read = read_weights(
            path, self.spec, ranks, lambda names: self.resolver.locate(APPLIED, names)
        )
        return dict(read.weights)

    def is_read_by_peft(self, tensors: dict[str, Tensor]) -> bool:
        save_file(tensors, self.folder / "adapter_model.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = PeftModel.from_pretrained(self.make(), str(self.folder))
        state = model.state_dict()
        return all(
            torch.equal(state[name.replace(".weight", ".default.weight")], tensor)
            for name, tensor in self.tensors.items()
        )


def make_case(make: Callable[[], PreTrainedModel], folder: Path) -> Case:
    model = make()
    sites = tuple(
        Site(name, 0, module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    )
    resolver = PeftResolver(make().to("meta"))
    peft_model = get_peft_model(model, LoraConfig(**APPLIED, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    peft_model.save_pretrained(str(folder))
    tensors = load_file(folder / "adapter_model.safetensors")
    return Case(make, resolver, make_spec(sites=sites), folder, tensors)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(make_llama, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(make_mixtral, tmp_path_factory.mktemp("mixtral"))


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("base", ["llama", "mixtral"])
def test_a_spelling_is_taken_where_peft_reads_it(
    request: pytest.FixtureRequest, base: str, spelling: str
) -> None:
    """PEFT passes over what it does not know with a warning, and answers as the base does."""
    case: Case = request.getfixturevalue(base)
    respell, *readable = SPELLINGS[spelling]
    expected = readable[["llama", "mixtral"].index(base)]
    renamed = {respell(name): tensor for name, tensor in case.tensors.items()}
    assert case.is_read_by_peft(renamed) == expected
    if expected:
        for site, (lora_a, lora_b) in case.read(renamed).items():
            stem = f"{P}{case.spec.sites[site].name}"
            assert torch.equal(lora_a, case.tensors[f"{stem}.lora_A.weight"])
            assert torch.equal(lora_b, case.tensors[f"{stem}.lora_B.weight"])
    else:
        with pytest.raises(AdapterRefused) as caught:
            case.read(renamed)
        assert caught.value.field in case.tensors
        assert "PEFT loads no tensor named" in caught.value.message


@pytest.mark.parametrize("expert", ["block_sparse_moe.experts.0.w1", "mlp.experts.0.up_proj"])
def test_experts_of_older_checkpoints_are_refused_by_name(mixtral: Case, expert: str) -> None:
    """What PEFT would fuse into parameters is no pair of factors of a linear."""
    name = f"{P}model.layers.0.{expert}.lora_A.weight"
    with pytest.raises(AdapterRefused) as caught:
        mixtral.read(mixtral.tensors | {name: torch.ones(3, 32)})
    assert caught.value.field in (name, "weights")


def test_names_alike_are_asked_once(llama: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of adapters saved alike would cost an injection each."""
    resolver = PeftResolver(make_llama().to("meta"))
    built: list[object] = []
    build = PeftModel.__init__

    def counting(self: PeftModel, *args: Any, **kwargs: Any) -> None:
        built.append(self)
        build(self, *args, **kwargs)

    monkeypatch.setattr(PeftModel, "__init__", counting)
    modules = [module.name for module in resolver.resolve(APPLIED).modules]
    for _ in range(3):
        assert len(resolver.locate(APPLIED, plain_names(modules))) == len(modules) * 2
    assert len(built) == 1
    named = [name.replace(".weight", ".default.weight") for name in plain_names(modules)]
    for _ in range(3):
        assert len(resolver.locate(APPLIED, named)) == len(modules) * 2
    assert len(built) == 2
