"""The table of LoraConfig's fields against the installed class."""

from __future__ import annotations

import dataclasses

import pytest
from peft import LoraConfig

from lorry.adapters.errors import AdapterRefused
from lorry.adapters.fields import FIELD_RULES, Verdict, check_fields
from lorry.tests.adapters_builders import make_config

REFUSED = {
    "use_dora": True,
    "bias": "all",
    "lora_bias": True,
    "modules_to_save": ["lm_head"],
    "trainable_token_indices": [1],
    "layer_replication": [[0, 2]],
    "target_parameters": ["experts.gate_up_proj"],
    "megatron_config": {},
    "velora_config": {},
    "alora_invocation_tokens": [1],
    "use_qalora": True,
    "monteclora_config": {},
    "use_bdlora": {},
    "arrow_config": {},
    "kasa_config": {},
    "ensure_weight_tying": True,
}
WRONG_VALUES = [
    ("r", 0),
    ("r", "8"),
    ("r", True),
    ("r", 8.0),
    ("r", None),
    ("lora_alpha", float("inf")),
    ("lora_alpha", 1e300),
    ("lora_alpha", "16"),
    ("use_rslora", 1),
    ("fan_in_fan_out", 1),
    ("target_modules", {"q_proj": 1}),
    ("target_modules", ["q_proj", 3]),
    ("target_modules", ["q_proj"] * 1025),
    ("layers_to_transform", [0.5]),
    ("layers_to_transform", [0] * 1025),
    ("layers_pattern", ["layers"] * 257),
    ("rank_pattern", {f"q{index}": 1 for index in range(257)}),
    ("alpha_pattern", {f"q{index}": 1 for index in range(257)}),
    ("rank_pattern", {"q_proj": 0}),
    ("rank_pattern", ["q_proj"]),
    ("alpha_pattern", {"q_proj": None}),
    ("peft_type", "IA3"),
    ("task_type", "SEQ_CLS"),
    ("init_lora_weights", "pissa"),
    ("init_lora_weights", "olora"),
    ("init_lora_weights", "loftq"),
    ("init_lora_weights", "corda"),
    ("init_lora_weights", "lora_ga"),
    ("init_lora_weights", "pissa_niter_16"),
    ("init_lora_weights", "PiSSA"),
    ("eva_config", 3),
    ("enable_lora", [True, False, True]),
    ("merge_weights", "yes"),
]


def test_every_field_of_the_installed_class_is_in_the_table() -> None:
    """A field PEFT adds would be dropped in silence, or a row would outlive its field."""
    assert set(FIELD_RULES) == {field.name for field in dataclasses.fields(LoraConfig)}


def test_defaults_of_the_installed_class_pass() -> None:
    """Adapters saved with defaults, as most are, would be refused."""
    defaults = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM").to_dict()
    saved = {k: list(v) if isinstance(v, set) else v for k, v in defaults.items()}
    applied = check_fields(saved)
    assert applied["target_modules"] == ["q_proj"]
    assert {FIELD_RULES[name].verdict for name in applied} == {Verdict.APPLIED}


def test_every_refused_field_has_an_example_here() -> None:
    """A refusal nobody tries may not refuse."""
    assert set(REFUSED) == {
        name for name, rule in FIELD_RULES.items() if rule.verdict is Verdict.REFUSED
    }


@pytest.mark.parametrize(("field", "value"), [*REFUSED.items(), *WRONG_VALUES])
def test_what_cannot_be_applied_is_refused_by_name(field: str, value: object) -> None:
    """The adapter would answer with other tokens than PEFT's, without an error."""
    with pytest.raises(AdapterRefused, match=field) as caught:
        check_fields(make_config(**{field: value}))
    assert caught.value.field == field


def test_unknown_field_is_refused_by_name() -> None:
    """A field of a later PEFT may change what the adapter computes."""
    with pytest.raises(AdapterRefused, match="use_warp_drive") as caught:
        check_fields(make_config(use_warp_drive=False))
    assert caught.value.field == "use_warp_drive"


def test_missing_peft_type_is_refused() -> None:
    """A config of another method would be read as LoRA."""
    config = make_config()
    del config["peft_type"]
    with pytest.raises(AdapterRefused) as caught:
        check_fields(config)
    assert caught.value.field == "peft_type"


def test_what_peft_0_2_saved_passes() -> None:
    """Adapters of PEFT's first releases carry two fields that it dropped later, both inert."""
    saved = {
        "base_model_name_or_path": "decapoda-research/llama-7b-hf",
        "bias": "none",
        "enable_lora": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "merge_weights": False,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 16,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
    }
    assert check_fields(saved) == {
        "fan_in_fan_out": False,
        "lora_alpha": 16,
        "r": 16,
        "target_modules": ["q_proj", "v_proj"],
    }


@pytest.mark.parametrize("how", ["pissa", "olora", "corda", "lora_ga"])
def test_a_start_from_the_base_says_how_to_convert_it(how: str) -> None:
    """The owner would be left with an adapter that no server without his base can use."""
    with pytest.raises(AdapterRefused, match="path_initial_model_for_weight_conversion"):
        check_fields(make_config(init_lora_weights=how))


@pytest.mark.parametrize("how", ["eva", "mica", "Gaussian", "orthogonal", True, False, None])
def test_a_start_that_leaves_the_base_alone_passes(how: object) -> None:
    """What such a training saved is a plain pair of factors."""
    check_fields(make_config(init_lora_weights=how, eva_config={"rho": 2.0}))
