"""Which modules a config means, at which rank and scale: asked of PEFT, never copied from it.

Owns the base as an empty shape on the meta device and caches by config and by names, so that
thousands of adapters trained and saved alike cost one injection. Each question is put to a copy
of the shape: PEFT changes the model it is given. Knows an adapter's tensors by name only; called
by the store.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from .errors import AdapterRefused
from .names import shown
from .patterns import MATCH_LIMIT_S, check_patterns
from .spelling import Places, find_places, plain_names

_CACHED_CONFIGS = 256
_ADAPTER = "default"
K = TypeVar("K")
V = TypeVar("V")
_NOT_OF_THE_ADAPTER = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
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
        self._places: OrderedDict[tuple[str, str], Places] = OrderedDict()

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
        key = _key(applied)
        with self._lock:
            if (known := _recall(self._known, key)) is not None:
                return known
        # Outside the lock of those who know their answer already, and one at a time: a burst of
        # bad patterns must not take the cores that the engine computes on.
        check_patterns(applied, self._names, limit_s=self._match_limit_s, turn=self._trial_lock)
        with self._lock:
            known = _recall(self._known, key)
            if known is None:
                known = self._inject(applied)
            return known

    def locate(self, applied: Mapping[str, object], names: Collection[str]) -> Places:
        """Where PEFT puts the tensors of a file by their names; `applied` has been resolved.

        Raises:
            AdapterRefused: PEFT cannot load them.
        """
        key = (_key(applied), _digest(names))
        with self._lock:
            places = _recall(self._places, key)
            if places is None:
                peft_model, _ = self._build(applied)
                places = _remember(self._places, key, _locate(peft_model, names))
            return places

    def _inject(self, applied: Mapping[str, object]) -> Resolution:
        peft_model, notes = self._build(applied)
        modules = tuple(
            ModuleRank(name, int(layer.r[_ADAPTER]), float(layer.scaling[_ADAPTER]))
            for name, layer in peft_model.get_base_model().named_modules()
            if isinstance(layer, LoraLayer) and _ADAPTER in layer.r
        )
        if not modules:
            raise AdapterRefused(
                f"target_modules {shown(applied.get('target_modules'))} match no module of this "
                "base",
                field="target_modules",
            )
        key = _key(applied)
        # Nearly every file has the names PEFT gives: asked now, they need no second injection.
        names = plain_names(module.name for module in modules)
        _remember(self._places, (key, _digest(names)), _locate(peft_model, names))
        return _remember(self._known, key, Resolution(modules, notes))

    def _build(self, applied: Mapping[str, object]) -> tuple[PeftModel, tuple[str, ...]]:
        """The injected shape, and what PEFT warned of."""
        values: dict[str, Any] = dict(applied)
        model: Any = copy.deepcopy(self._model)
        try:
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                peft_model = PeftModel(
                    model, LoraConfig(**values), adapter_name=_ADAPTER, low_cpu_mem_usage=True
                )
        except _PEFTS_REFUSALS as error:
            raise AdapterRefused(
                f"target_modules {shown(applied.get('target_modules'))} cannot be applied to "
                f"this base: {str(error)[:400]}",
                field="target_modules",
            ) from error
        # Of most things PEFT warns once for each module; what is deprecated is not the client's.
        told = [str(w.message)[:400] for w in heard if w.category not in _NOT_OF_THE_ADAPTER]
        return peft_model, tuple(dict.fromkeys(told))


def _locate(peft_model: PeftModel, names: Collection[str]) -> Places:
    try:
        return find_places(peft_model, _ADAPTER, names)
    except (*_PEFTS_REFUSALS, RuntimeError) as error:
        raise AdapterRefused(
            f"PEFT cannot load tensors of these names into this base: {str(error)[:400]}",
            field="weights",
        ) from error


def _key(applied: Mapping[str, object]) -> str:
    # Only the fields are sorted, not the pattern tables in them: PEFT takes the first pattern of a
    # table that matches.
    return json.dumps(sorted(applied.items()))


def _digest(names: Collection[str]) -> str:
    return hashlib.sha256(json.dumps(sorted(names)).encode()).hexdigest()


def _recall(cache: OrderedDict[K, V], key: K) -> V | None:
    known = cache.get(key)
    if known is not None:
        cache.move_to_end(key)
    return known


def _remember(cache: OrderedDict[K, V], key: K, value: V) -> V:
    cache[key] = value
    if len(cache) > _CACHED_CONFIGS:
        cache.popitem(last=False)
    return value
