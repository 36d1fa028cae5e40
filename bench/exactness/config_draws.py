"""Random LoraConfigs: every field of the installed class, legal and illegal values of each.

Owns one table of draws and how often a field is left at its default. A draw may be impossible
(PEFT raises) or not supported here (then Lorry must refuse it); what is drawn from SUPPORTED
alone must be taken. Knows nothing of the judgement; used by configs.py and by its test.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from .config_worlds import World

Draw = Callable[[Random, World], Any]


@dataclass(frozen=True, slots=True)
class Drawn:
    options: Mapping[str, Any]  # arguments of LoraConfig
    supported: bool  # drawn from SUPPORTED alone


def _leaves(world: World) -> list[str]:
    """Last names of the linears of the decoder layers."""
    return sorted({name.rpartition(".")[2] for name in world.site_names[:-1]})


def _some(rng: Random, items: list[str]) -> list[str]:
    return rng.sample(items, rng.randint(1, min(4, len(items))))


def _targets(rng: Random, world: World) -> Any:
    """Lists of last, longer and whole names, patterns, `all-linear`, and PEFT's own choice."""
    leaves, head = _leaves(world), world.site_names[-1]
    whole = rng.choice(world.site_names)
    return rng.choice(
        [
            _some(rng, leaves),
            _some(rng, leaves),
            [*_some(rng, leaves), head],
            [whole, *_some(rng, leaves)],
            [".".join(whole.split(".")[-2:]), head],
            [rng.choice(leaves), "no_such_module"],
            ".*(" + "|".join(map(re.escape, _some(rng, leaves))) + ")",
            rf".*\.[0-{rng.randint(0, 2)}]\..*({rng.choice(leaves)}|{rng.choice(leaves)})",
            rf"(.*\.)?({rng.choice(leaves)}|{re.escape(head)})",
            "all-linear",
            None,
        ]
    )


def _patterns(rng: Random, world: World, value: Callable[[], Any]) -> dict[str, Any]:
    """Keys as people write them: last names, paths, anchored, overlapping, and useless ones."""
    keys: list[str] = []
    for _ in range(rng.randint(1, 3)):
        whole = rng.choice(world.site_names)
        leaf = whole.rpartition(".")[2]
        keys.append(
            rng.choice(
                [
                    leaf,
                    leaf,
                    whole,
                    f"^{re.escape(whole)}",
                    rf".*\.1\..*{leaf}",
                    f"{leaf[:3]}.*",
                    "x",
                ]
            )
        )
    return {key: value() for key in keys}


def _layers(rng: Random, _: World) -> Any:
    return rng.choice([0, 2, [1], [0, 2], [], [7], [-1]])


def _exclusions(rng: Random, world: World) -> Any:
    leaf = rng.choice(_leaves(world))
    return rng.choice([[leaf], [rng.choice(world.site_names)], rf".*\.0\..*{leaf}", [], "nothing"])


def _strange_targets(rng: Random, world: World) -> Any:
    leaf = rng.choice(_leaves(world))
    return rng.choice([[world.embedding, leaf], rf".*({world.embedding}|{leaf})", [leaf, "norm"]])


def _pick(*values: Any) -> Draw:
    return lambda rng, _: rng.choice(values)


# All of these must be taken where PEFT itself takes them.
SUPPORTED: Mapping[str, Draw] = {
    "r": lambda rng, _: rng.choice([1, 2, 3, 4, 8, 17]),
    "lora_alpha": _pick(1, 2, 8, 16, 0.5, 3.75),
    "use_rslora": _pick(True, False),
    "target_modules": _targets,
    "exclude_modules": _exclusions,
    "layers_to_transform": _layers,
    "layers_pattern": _pick("layers", ["layers", "h"], "h", "nothing", []),
    "rank_pattern": lambda rng, world: _patterns(rng, world, lambda: rng.choice([1, 5, 9, 20])),
    "alpha_pattern": lambda rng, world: _patterns(rng, world, lambda: rng.choice([1, 3.5, 32])),
    "fan_in_fan_out": _pick(True, False),
    "lora_dropout": _pick(0.0, 0.1, 0.9),
    "init_lora_weights": _pick(True, False, "gaussian", "orthogonal", "mica"),
    "task_type": _pick("CAUSAL_LM", None),
    "peft_type": _pick("LORA"),
    "peft_version": _pick("0.5.0", None),
    "auto_mapping": _pick(None, {"parent_library": "transformers"}),
    "base_model_name_or_path": _pick(None, "tiny", "some/where"),
    "revision": _pick(None, "main"),
    "inference_mode": _pick(True, False),
    "qalora_group_size": _pick(4, 16),
    "megatron_core": _pick("megatron.core", None),
    "eva_config": _pick(None, {}),
    "corda_config": _pick(None, {}),
    "lora_ga_config": _pick(None, {}),
    "loftq_config": _pick({}, {"loftq_bits": 4}),
}
# These must be refused where they mean anything, but may mean nothing for the base at hand.
UNSUPPORTED: Mapping[str, Draw] = {
    "target_modules": _strange_targets,
    "init_lora_weights": _pick("pissa", "pissa_niter_2", "olora", "corda", "lora_ga", "loftq"),
    "task_type": _pick("SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"),
    "use_dora": _pick(True),
    "bias": _pick("all", "lora_only"),
    "lora_bias": _pick(True),
    "modules_to_save": lambda rng, world: [rng.choice([world.site_names[-1], world.embedding])],
    "trainable_token_indices": lambda rng, world: rng.choice([[1, 5], {world.embedding: [3]}]),
    "layer_replication": _pick([[0, 2], [1, 3]]),
    "target_parameters": lambda rng, world: [f"{rng.choice(world.site_names)}.weight"],
    "megatron_config": _pick({"hidden_size": 32}),
    "velora_config": _pick({}),
    "alora_invocation_tokens": _pick([7], [3, 9]),
    "use_qalora": _pick(True),
    "monteclora_config": _pick({}),
    "use_bdlora": _pick({"nblocks": 2, "target_modules_bd_a": ["q_proj"]}),
    "arrow_config": _pick({}),
    "kasa_config": _pick({}),
    "ensure_weight_tying": _pick(True),
}
ALWAYS = ("r", "lora_alpha", "target_modules")
P_SUPPORTED = 0.15  # that a field not always drawn gets a value at all
P_UNSUPPORTED = 0.4  # that a config gets one or two unsupported values


def draw_config(rng: Random, world: World) -> Drawn:
    """Most are plain, so that many adapters are taken; the rest has one or two strange values."""
    options: dict[str, Any] = {}
    for name, draw in SUPPORTED.items():
        if name in ALWAYS or rng.random() < P_SUPPORTED:
            options[name] = draw(rng, world)
    if isinstance(options["target_modules"], str) and rng.random() < 0.9:
        # PEFT takes neither with a pattern.
        options.pop("layers_to_transform", None)
        options.pop("layers_pattern", None)
    if "layers_to_transform" not in options and rng.random() < 0.9:
        options.pop("layers_pattern", None)
    strange = rng.random() < P_UNSUPPORTED
    if strange:
        for name in rng.sample(sorted(UNSUPPORTED), rng.choice([1, 1, 2])):
            options[name] = UNSUPPORTED[name](rng, world)
    return Drawn(options, supported=not strange)
