"""Every field of PEFT's LoraConfig, and what Lorry does with it.

Owns one table. Applied: PEFT's own functions are given it (resolve.py). Harmless: no influence
on what a finished adapter computes. Refused: any value but the inert ones would change tokens
in a way this server does not compute. A field that is not in the table is refused by name, and
a test walks the installed class, so that a new PEFT cannot slip one in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import cast

from .errors import AdapterRefused
from .names import shown

MAX_NAMES = 1024  # of one list; 126 layers of 7 linears are 882
# Of one pattern table: `re` keeps 512 compiled patterns, and PEFT tries every pattern on every
# module, so that with more of them it would compile each anew each time.
MAX_PATTERNS = 256
# A float holds integers exactly up to here; alpha is divided in floats.
MAX_ALPHA = 2**53


class Verdict(Enum):
    APPLIED = "applied"
    HARMLESS = "harmless"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class FieldRule:
    verdict: Verdict
    accepts: Callable[[object], bool]
    allowed: str  # what `accepts` lets through, for the message
    why: str  # what the field does


def _is_null(value: object) -> bool:
    return value is None


def _is_false(value: object) -> bool:
    return value is None or value is False


def _is_empty(value: object) -> bool:
    return value in (None, [], {})


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_flag(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_object(value: object) -> bool:
    return value is None or isinstance(value, dict)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_rank(value: object) -> bool:
    return _is_int(value) and cast(int, value) >= 1


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and abs(value) <= MAX_ALPHA


def _is_names(value: object) -> bool:
    """Null, text, or a list of texts."""
    return value is None or isinstance(value, str) or _is_texts(value, MAX_NAMES)


def _is_layer_names(value: object) -> bool:
    return value is None or isinstance(value, str) or _is_texts(value, MAX_PATTERNS)


def _is_texts(value: object, max_entries: int) -> bool:
    if not isinstance(value, list) or len(cast(list[object], value)) > max_entries:
        return False
    return all(isinstance(item, str) for item in cast(list[object], value))


def _is_layers(value: object) -> bool:
    if value is None or _is_int(value):
        return True
    if not isinstance(value, list) or len(cast(list[object], value)) > MAX_NAMES:
        return False
    return all(_is_int(item) for item in cast(list[object], value))


def _is_table(accepts: Callable[[object], bool]) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        if value is None:
            return True
        if not isinstance(value, dict) or len(cast(dict[str, object], value)) > MAX_PATTERNS:
            return False
        return all(accepts(item) for item in cast(dict[str, object], value).values())

    return check


# Ways to start A and B that leave the base's own weights as they are: EVA takes A from the data,
# MiCA takes B from the base, and both save what came of it.
_FRESH_STARTS = ("gaussian", "orthogonal", "eva", "mica")


def _is_fresh_start(value: object) -> bool:
    if isinstance(value, str):
        # PEFT knows these two in any case, the others as they are.
        return value in _FRESH_STARTS or value.lower() in ("gaussian", "mica")
    return value is None or _is_bool(value)


def _is_causal_lm(value: object) -> bool:
    return value is None or value == "CAUSAL_LM"


def _applied(accepts: Callable[[object], bool], allowed: str, why: str) -> FieldRule:
    return FieldRule(Verdict.APPLIED, accepts, allowed, why)


def _harmless(accepts: Callable[[object], bool], allowed: str, why: str) -> FieldRule:
    return FieldRule(Verdict.HARMLESS, accepts, allowed, why)


def _refused(accepts: Callable[[object], bool], allowed: str, why: str) -> FieldRule:
    return FieldRule(Verdict.REFUSED, accepts, allowed, why)


_NAMES = f"text or a list of at most {MAX_NAMES} texts"
_LAYER_NAMES = f"text or a list of at most {MAX_PATTERNS} texts"
_TEXT = "text or null"
_NULL = "null"
_FALSE = "false"
_OBJECT = "an object or null"
_INIT = "details of init_lora_weights, which decides"

FIELD_RULES: Mapping[str, FieldRule] = MappingProxyType(
    {
        "r": _applied(_is_rank, "an integer from 1", "rank of modules without a pattern"),
        "lora_alpha": _applied(_is_number, f"a number up to {MAX_ALPHA}", "scale is alpha / r"),
        "use_rslora": _applied(_is_bool, "true or false", "scale is alpha / sqrt(r)"),
        "target_modules": _applied(_is_names, _NAMES, "which modules"),
        "exclude_modules": _applied(_is_names, _NAMES, "which modules not"),
        "layers_to_transform": _applied(
            _is_layers, f"null or up to {MAX_NAMES} integers", "in which layers"
        ),
        "layers_pattern": _applied(_is_layer_names, _LAYER_NAMES, "what a layer is called"),
        "rank_pattern": _applied(
            _is_table(_is_rank), f"at most {MAX_PATTERNS} integers from 1", "ranks by module"
        ),
        "alpha_pattern": _applied(
            _is_table(_is_number), f"at most {MAX_PATTERNS} numbers", "alphas by module"
        ),
        "fan_in_fan_out": _applied(
            _is_flag, "true, false or null", "how PEFT merges; it corrects it module by module"
        ),
        "peft_type": _harmless(lambda value: value == "LORA", "LORA", "the method"),
        "task_type": _harmless(_is_causal_lm, "CAUSAL_LM or null", "the head of the model"),
        "peft_version": _harmless(_is_text, _TEXT, "who wrote the file"),
        "auto_mapping": _harmless(_is_object, _OBJECT, "how PEFT finds the base"),
        "base_model_name_or_path": _harmless(_is_text, _TEXT, "a name; sites and shapes decide"),
        "revision": _harmless(_is_text, _TEXT, "of the base's name"),
        "inference_mode": _harmless(_is_bool, "true or false", "whether weights are frozen"),
        "lora_dropout": _harmless(_is_number, "a number", "acts in training alone"),
        "init_lora_weights": _harmless(
            _is_fresh_start,
            'true, false, null, "gaussian", "orthogonal", "eva" or "mica"',
            "the other ways train against a changed base; PiSSA, OLoRA, CorDA and LoRA-GA can be "
            "saved as plain LoRA: save_pretrained(path_initial_model_for_weight_conversion=...)",
        ),
        "loftq_config": _harmless(_is_object, _OBJECT, _INIT),
        "eva_config": _harmless(_is_object, _OBJECT, _INIT),
        "corda_config": _harmless(_is_object, _OBJECT, _INIT),
        "lora_ga_config": _harmless(_is_object, _OBJECT, _INIT),
        "qalora_group_size": _harmless(_is_int, "an integer", "read with use_qalora alone"),
        "megatron_core": _harmless(_is_text, _TEXT, "read with megatron_config alone"),
        "runtime_config": _harmless(_is_object, _OBJECT, "PEFT drops it on loading"),
        "use_dora": _refused(_is_false, _FALSE, "DoRA also rescales the base's weights"),
        "bias": _refused(lambda value: value in (None, "none"), '"none"', "trains base biases"),
        "lora_bias": _refused(_is_false, _FALSE, "adds a bias to B"),
        "modules_to_save": _refused(_is_empty, _NULL, "replaces whole modules of the base"),
        "trainable_token_indices": _refused(_is_null, _NULL, "changes rows of the embedding"),
        "layer_replication": _refused(_is_empty, _NULL, "repeats layers of the base"),
        "target_parameters": _refused(_is_empty, _NULL, "adapts parameters, not modules"),
        "megatron_config": _refused(_is_null, _NULL, "parallel linears of Megatron"),
        "velora_config": _refused(_is_null, _NULL, "another LoRA variant"),
        "alora_invocation_tokens": _refused(_is_null, _NULL, "acts after certain tokens only"),
        "use_qalora": _refused(_is_false, _FALSE, "pools the input in groups"),
        "monteclora_config": _refused(_is_null, _NULL, "samples its weights"),
        "use_bdlora": _refused(_is_null, _NULL, "block-diagonal A or B"),
        "arrow_config": _refused(_is_null, _NULL, "routes among adapters"),
        "kasa_config": _refused(_is_null, _NULL, "a diagonal between A and B"),
        "ensure_weight_tying": _refused(_is_false, _FALSE, "adapts tied embeddings"),
    }
)


# Fields that PEFT has had and dropped, all before 0.3; today's PEFT passes over them in silence.
RETIRED_RULES: Mapping[str, FieldRule] = MappingProxyType(
    {
        "merge_weights": _harmless(_is_flag, "true, false or null", "whether to merge in use"),
        "enable_lora": _refused(_is_null, _NULL, "adapts some of a merged linear's outputs"),
    }
)


def check_fields(config: Mapping[str, object]) -> dict[str, object]:
    """The applied fields of a config, once every field of it has passed its rule.

    Raises:
        AdapterRefused: `field` is the first field that cannot be applied exactly.
    """
    if "peft_type" not in config:
        raise AdapterRefused("peft_type is missing; it must be LORA", field="peft_type")
    for name, value in config.items():
        rule = FIELD_RULES.get(name) or RETIRED_RULES.get(name)
        if rule is None:
            raise AdapterRefused(
                f"{shown(name)} is not a field this server knows (value {shown(value)}); "
                "it would have to be dropped in silence",
                field=name[:128],
            )
        if not rule.accepts(value):
            raise AdapterRefused(
                f"{name} is {shown(value)}; allowed is {rule.allowed} ({rule.why})", field=name
            )
    # A null means the default to PEFT's readers, but not to every one of its computations.
    return {
        name: value
        for name, value in config.items()
        if name in FIELD_RULES
        and FIELD_RULES[name].verdict is Verdict.APPLIED
        and value is not None
    }
