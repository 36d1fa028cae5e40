"""What would be wrong without a word is refused, by the name of its field or class."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lorry.bench.exactness.cases import find_case
from lorry.bench.exactness.refused import REFUSED, RefusedCase
from lorry.server.config import ModelConfig
from lorry.server.errors import ModelRefused
from lorry.server.execution.model import load_model, prepare_model
from lorry.server.execution.refusals import check_config
from lorry.server.execution.selfproof import prove
from lorry.tests.builders import make_llama


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.label)
def test_a_model_that_cannot_be_exact_is_refused(case: RefusedCase) -> None:
    """The message names what is in the way; and no later request may find it out instead."""
    torch.manual_seed(0)
    with pytest.raises(ModelRefused) as caught:
        check_config(case.config())  # of a checkpoint: before its weights are read
        model: Any = AutoModelForCausalLM.from_config(case.config(), attn_implementation="eager")
        prove(prepare_model(model.eval(), max_model_len=case.max_model_len))
    for word in case.words:
        assert word in str(caught.value)


def _change_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_missing_weight_is_refused(tmp_path: Path) -> None:
    """transformers makes up what a checkpoint lacks, and says so in a warning only."""
    directory = make_llama(tmp_path / "m")
    path = directory / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelRefused, match=r"1 missing keys: model\.layers\.1\.mlp\.up_proj"):
        load_model(ModelConfig(str(directory)))


def test_a_tensor_that_a_linear_has_no_place_for_is_refused(tmp_path: Path) -> None:
    """A bias that the config does not know of, or the scale of a quantized weight, would be
    dropped, and every answer be a little or entirely wrong."""
    directory = make_llama(tmp_path / "m")
    path = directory / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.0.self_attn.q_proj.weight_scale"] = torch.ones(1)
    weights["model.layers.9.mtp.weight"] = torch.ones(1)  # a part that is not used may be there
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelRefused, match="1 tensors of linears"):
        load_model(ModelConfig(str(directory)))


def test_a_weight_of_another_shape_is_refused(tmp_path: Path) -> None:
    """A config that does not belong to the weights must not be filled up with random ones."""
    directory = make_llama(tmp_path / "m")
    _change_config(directory, intermediate_size=48)
    with pytest.raises(ModelRefused, match="--model is"):
        load_model(ModelConfig(str(directory)))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    """A .bin checkpoint is a program; only safetensors are read."""
    directory = make_llama(tmp_path / "m")
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save(weights, directory / "pytorch_model.bin")
    with pytest.raises(ModelRefused, match="safetensors"):
        load_model(ModelConfig(str(directory)))


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    """A model directory from elsewhere must not run its code in the engine."""
    directory = make_llama(tmp_path / "m")
    _change_config(
        directory,
        model_type="homemade",
        auto_map={"AutoConfig": "conf.C", "AutoModelForCausalLM": "mod.M"},
    )
    (directory / "conf.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelRefused, match=r"auto_map|trust_remote_code"):
        load_model(ModelConfig(str(directory)))
    assert not (tmp_path / "ran").exists()


def test_a_quantizer_that_is_not_here_is_named(tmp_path: Path) -> None:
    """Which method, and what it misses, must be in the message."""
    directory = make_llama(tmp_path / "m")
    _change_config(directory, quantization_config={"quant_method": "vptq", "bits": 4})
    with pytest.raises(ModelRefused, match="quant_method is 'vptq'"):
        load_model(ModelConfig(str(directory)))


def test_all_eos_ids_end_an_answer(tmp_path: Path) -> None:
    """Chat models list several; one left out lets an answer run on into the next turn."""
    directory = make_llama(tmp_path / "m", tied=True)
    path = directory / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [1, 7, 9]}))
    assert load_model(ModelConfig(str(directory))).eos_ids == (1, 7, 9)


def test_longrope_does_not_follow_the_batch() -> None:
    """transformers takes long frequencies for all as soon as one position is past pretraining:
    a long request would change its neighbours' answers."""
    case = find_case("phi3-longrope-short")
    for max_model_len, kind in ((128, "short"), (256, "long")):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(case.config(), attn_implementation="eager")
        rotary = model.model.rotary_emb
        asked = torch.zeros(1, 1, 192), torch.tensor([[7]])
        alone = rotary(*asked)[0]
        loaded = prepare_model(model.eval(), max_model_len=max_model_len)
        assert f"longrope uses its {kind} factors" in loaded.notes[0]
        fixed = rotary(*asked)[0]
        beside = rotary(torch.zeros(1, 2, 192), torch.tensor([[7, max_model_len - 1]]))[0]
        assert torch.equal(fixed[0, 0], beside[0, 0])
        assert torch.equal(fixed, alone) == (kind == "short")
        prove(loaded)
