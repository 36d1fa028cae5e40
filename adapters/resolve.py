"""Which modules a config means, at which rank and scale: asked of PEFT, never copied from it.

Owns the base as an empty shape on the meta device and a cache by config, so that thousands of
adapters trained with one config cost one injection. Each question is put to a copy of the
shape: PEFT changes the model it is given. Knows no tensors of the adapter; called by the store.
"""

from __future__ import annotations

import copy
import json
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from peft.mapping import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from .errors import AdapterRefused
from .names import shown
from .patterns import MATCH_LIMIT_S, check_patterns

_CACHED_CONFIGS = 256
_ADAPTER = "default"
_PEFTS_REFUSALS = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    NotImplementedError,
    # A pattern nested so deeply that it compiles only on the shorter stack of its trial.
    RecursionError,
    re.error,
)


@dataclass(frozen=True, slots=True)
class ModuleRank:
    """One module PEFT adapts."""

    name: str  # as in model.named_modules()
    rank: int
    scale: float  # PEFT's own `scaling`


@dataclass(frozen=True, slots=True)
class Resolution:
    modules: tuple[ModuleRank, ...]  # in the model's order
    notes: tuple[str, ...]  # what PEFT warned of


class PeftResolver:
    """Thread-safe; one injection at a time."""

    def __init__(
        self, model: nn.Module, *, base_name: str = "", match_limit_s: float = MATCH_LIMIT_S
    ) -> None:
        self.base_name = base_name  # what the operator calls the base
        self._model = model
        self._match_limit_s = match_limit_s
        self._names = [name for name, _ in model.named_modules()]
        self._lock = threading.Lock()
        self._trial_lock = threading.Lock()
        self._known: OrderedDict[str, Resolution] = OrderedDict()

    @classmethod
    def of_model(cls, model_dir: str) -> PeftResolver:
        """Of a directory with a config.json, or an id in the local cache; no weights are read."""
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(model_dir, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return cls(model, base_name=model_dir)

    def resolve(self, applied: Mapping[str, object]) -> Resolution:
        """`applied`: fields of a LoraConfig that passed `fields.check_fields`.

        Raises:
            AdapterRefused: PEFT cannot apply it, or it matches nothing.
        """
        # Only the fields are sorted, not the pattern tables in them: PEFT takes the first
        # pattern of a table that matches.
        key = json.dumps(sorted(applied.items()))
        with self._lock:
            if (known := self._recall(key)) is not None:
                return known
        # Outside the lock of those who know their answer already, and one at a time: a burst of
        # bad patterns must not take the cores that the engine computes on.
        check_patterns(applied, self._names, limit_s=self._match_limit_s, turn=self._trial_lock)
        with self._lock:
            known = self._recall(key)
            if known is None:
                known = self._known[key] = self._inject(applied)
                if len(self._known) > _CACHED_CONFIGS:
                    self._known.popitem(last=False)
            return known

    def _recall(self, key: str) -> Resolution | None:
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
        return known

    def _inject(self, applied: Mapping[str, object]) -> Resolution:
        model = copy.deepcopy(self._model)
        values: dict[str, Any] = dict(applied)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            try:
                inject_adapter_in_model(
                    LoraConfig(**values), model, adapter_name=_ADAPTER, low_cpu_mem_usage=True
                )
            except _PEFTS_REFUSALS as error:
                raise AdapterRefused(
                    f"target_modules {shown(applied.get('target_modules'))} cannot be applied to "
                    f"this base: {str(error)[:400]}",
                    field="target_modules",
                ) from error
        modules = tuple(
            ModuleRank(name, int(layer.r[_ADAPTER]), float(layer.scaling[_ADAPTER]))
            for name, layer in model.named_modules()
            if isinstance(layer, LoraLayer) and _ADAPTER in layer.r
        )
        if not modules:
            raise AdapterRefused(
                f"target_modules {shown(applied.get('target_modules'))} match no module of this "
                "base",
                field="target_modules",
            )
        return Resolution(modules, tuple(str(warning.message)[:400] for warning in heard))
