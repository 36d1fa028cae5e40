"""Packed weights: the same numbers, held once, and the plain ones back when they are asked for."""

import copy

import pytest
import torch

from lorry.server.execution.model import LoadedModel, prepare_model
from lorry.server.execution.packed import PackedLinear, pack_linears
from lorry.server.execution.proof_reference import eager_logits
from lorry.server.execution.selfproof import prove
from lorry.tests.execution_builders import make_prompt, tiny_llama

WIDE = {"hidden_size": 256, "intermediate_size": 320}  # wide enough to be packed


def packed_model(dtype: torch.dtype = torch.float32, **overrides: object) -> LoadedModel:
    loaded = prepare_model(tiny_llama(**WIDE, **overrides).to(dtype))
    assert pack_linears(loaded.model) > 0
    return loaded


def packed_linears(loaded: LoadedModel) -> list[PackedLinear]:
    return [module for module in loaded.model.modules() if isinstance(module, PackedLinear)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_packed_model_proves_itself(dtype: torch.dtype) -> None:
    """The reference side needs plain weights, in fp32 too, and must leave packed ones behind."""
    loaded = packed_model(dtype, attention_bias=True)
    assert "off by" in prove(loaded)
    for linear in packed_linears(loaded):
        assert linear.packed is not None and linear.weight.isnan().all()
        assert linear.weight.dtype == dtype


def test_the_reference_computes_with_the_very_weights() -> None:
    """The way to the packed order and back must not change a bit."""
    model = tiny_llama(**WIDE)
    plain, packed = prepare_model(copy.deepcopy(model)), packed_model()
    prompt = make_prompt(20)
    expected = eager_logits(plain, prompt, None)
    for _ in range(2):
        assert torch.equal(eager_logits(packed, prompt, None), expected)
    assert all(linear.packed is not None for linear in packed_linears(packed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_weight_is_held_once(dtype: torch.dtype) -> None:
    """Half the memory of the base for a copy that nobody reads, from the proof on."""
    loaded = packed_model(dtype)
    prove(loaded)
    for linear in packed_linears(loaded):
        assert linear.weight.untyped_storage().nbytes() == linear.weight.itemsize
        assert linear.weight.shape == (linear.out_features, linear.in_features)
        assert linear.weight.isnan().all(), "whoever reads it must not get a number"


def test_tied_and_small_weights_stay_plain() -> None:
    """The embedding reads a tied head's weight; a small product is slower when packed."""
    loaded = packed_model(tie_word_embeddings=True, vocab_size=400)
    head = loaded.model.get_output_embeddings()
    assert not isinstance(head, PackedLinear) and head.weight.isfinite().all()
    untied = packed_model(tie_word_embeddings=False, vocab_size=400)
    assert isinstance(untied.model.get_output_embeddings(), PackedLinear)
    assert pack_linears(prepare_model(tiny_llama()).model) == 0
    assert pack_linears(prepare_model(tiny_llama()).model, min_elements=1) > 0
    assert pack_linears(prepare_model(tiny_llama(**WIDE).to(torch.float16)).model) == 0
