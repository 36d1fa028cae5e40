"""What makes an architecture peculiar must show: left out, the self-proof refuses.

A case whose windows or sinks change nothing would be equal to PEFT without them as well.
"""

import dataclasses

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lorry.bench.exactness.cases import CASES, find_case
from lorry.bench.exactness.world import disturb
from lorry.kernels.attention import AttentionOptions, AttentionWork
from lorry.kernels.attention import cpu as attention_cpu
from lorry.server.errors import ModelRefused
from lorry.server.execution.model import LoadedModel, prepare_model
from lorry.server.execution.selfproof import prove


class WithoutOption(attention_cpu.CpuBackend):
    """The serving path, with one option of the interface left out."""

    def __init__(self, option: str) -> None:
        super().__init__(workspace_elements=1 << 20)
        self._option = option
        self.seen: set[object] = set()

    def paged_attention(
        self,
        query: Tensor,
        kv: Tensor,
        work: AttentionWork,
        *,
        layer: int,
        options: AttentionOptions,
    ) -> Tensor:
        value = getattr(options, self._option)
        self.seen.add(None if value is None else str(value))
        changed = dataclasses.replace(options, **{self._option: None})
        return super().paged_attention(query, kv, work, layer=layer, options=changed)


def loaded_case(label: str) -> LoadedModel:
    torch.manual_seed(0)
    case = find_case(label)
    model = AutoModelForCausalLM.from_config(case.config(), attn_implementation="eager").eval()
    disturb(model)
    return prepare_model(model, max_model_len=case.max_model_len)


WINDOWED = [case.label for case in CASES if "window" in case.shows]
LEFT_OUT = [(label, "sliding_window") for label in WINDOWED] + [
    ("gemma2", "softcap"),
    ("gpt_oss", "sinks_H"),
]


@pytest.mark.parametrize(("label", "option"), LEFT_OUT)
def test_what_is_left_out_is_missed(label: str, option: str) -> None:
    """An option that a case claims to have must be given to us and change its logits."""
    loaded, broken = loaded_case(label), WithoutOption(option)
    with pytest.raises(ModelRefused, match="does not prove itself"):
        prove(loaded, attention_backend=broken)
    assert broken.seen - {None}


def test_windows_differ_by_layer_where_they_should() -> None:
    """Mixed windows are the hard case: one value for all layers would pass a uniform model."""
    for label in ("qwen2", "gemma2", "gemma3_text", "gpt_oss", "exaone4", "cohere2", "olmo3"):
        broken = WithoutOption("sliding_window")
        with pytest.raises(ModelRefused):
            prove(loaded_case(label), attention_backend=broken)
        assert len(broken.seen) == 2, label


def test_head_sizes_of_the_table_are_covered() -> None:
    """Pages and kernels must take the odd ones as well."""
    sizes = {loaded_case(case.label).geometry.head_dim for case in CASES[:21]}
    assert {64, 80, 96, 112, 128, 256} <= sizes
