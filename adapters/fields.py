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


def _is_fresh_start(value: object) -> bool:
    """Ways to start A and B that leave the base's own weights as they are."""
    return value is None or _is_bool(value) or value in ("gaussian", "orthogonal")


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
        "peft_type": _harmless(lambda value: value == "LORA", "LORA", "the method"),
        "task_type": _harmless(_is_causal_lm, "CAUSAL_LM or null", "the head of the model"),
        "peft_version": _harmless(_is_text, _TEXT, "who wrote the file"),
        "auto_mapping": _harmless(_is_object, "an object or null", "how PEFT finds the base"),
        "base_model_name_or_path": _harmless(_is_text, _TEXT, "a name; sites and shapes decide"),
        "revision": _harmless(_is_text, _TEXT, "of the base's name"),
        "inference_mode": _harmless(_is_bool, "true or false", "whether weights are frozen"),
        "lora_dropout": _harmless(_is_number, "a number", "acts in training alone"),
        "init_lora_weights": _harmless(
            _is_fresh_start,
            'true, false, null, "gaussian" or "orthogonal"',
            "the other ways change the base's own weights or depend on data",
        ),
        "qalora_group_size": _harmless(_is_int, "an integer", "read with use_qalora alone"),
        "megatron_core": _harmless(_is_text, _TEXT, "read with megatron_config alone"),
        "runtime_config": _harmless(_is_object, "an object or null", "PEFT drops it on loading"),
        "use_dora": _refused(_is_false, _FALSE, "DoRA also rescales the base's weights"),
        "bias": _refused(lambda value: value in (None, "none"), '"none"', "trains base biases"),
        "lora_bias": _refused(_is_false, _FALSE, "adds a bias to B"),
        "modules_to_save": _refused(_is_empty, _NULL, "replaces whole modules of the base"),
        "fan_in_fan_out": _refused(_is_false, _FALSE, "weights stored as (in, out)"),
        "trainable_token_indices": _refused(_is_null, _NULL, "changes rows of the embedding"),
        "layer_replication": _refused(_is_empty, _NULL, "repeats layers of the base"),
        "target_parameters": _refused(_is_empty, _NULL, "adapts parameters, not modules"),
        "megatron_config": _refused(_is_null, _NULL, "parallel linears of Megatron"),
        "loftq_config": _refused(_is_empty, "null or {}", "quantizes the base"),
        "eva_config": _refused(_is_null, _NULL, "initialisation from data"),
        "corda_config": _refused(_is_null, _NULL, "changes the base's own weights"),
        "lora_ga_config": _refused(_is_null, _NULL, "changes the base's own weights"),
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


def check_fields(config: Mapping[str, object]) -> dict[str, object]:
    """The applied fields of a config, once every field of it has passed its rule.

    Raises:
        AdapterRefused: `field` is the first field that cannot be applied exactly.
    """
    if "peft_type" not in config:
        raise AdapterRefused("peft_type is missing; it must be LORA", field="peft_type")
    for name, value in config.items():
        rule = FIELD_RULES.get(name)
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
        if FIELD_RULES[name].verdict is Verdict.APPLIED and value is not None
    }
