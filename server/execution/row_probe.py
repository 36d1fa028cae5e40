"""Which linears see the rows of a step, each in its place: found by looking, not by name.

Runs a few tokens through the model, changes one of them at a time, and looks at what every
linear is given. An expert of a mixture sees some rows, a router's relative may see them sorted,
a vision tower sees none: their rows cannot be told apart by adapter, so they are no sites.
Owns no module; called once, when sites are installed.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...kernels.attention import AttentionOptions
from .context import StepContext

NUM_TOKENS = 8
KEPT = (2, 5, 7)  # places whose logits are asked for: the head sees these rows alone
CHANGED = (2, 5)  # places whose token is changed, one at a time


@dataclass(frozen=True, slots=True)
class SeenLinear:
    """A linear that saw the step's rows in order."""

    name: str  # as in named_modules()
    module: nn.Module
    in_width: int
    out_width: int
    call: int  # its turn among the linears of a forward
    at_head: bool  # it saw the sampled rows only


@dataclass(slots=True)
class _Record:
    """What one linear was given and gave in one forward."""

    call: int
    inputs: list[Tensor] = field(default_factory=list[Tensor])
    outputs: list[Tensor] = field(default_factory=list[Tensor])


def widths_of(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a module that says of itself that it is a linear; None for any other."""
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    widths = getattr(module, "in_features", None), getattr(module, "out_features", None)
    in_width, out_width = widths
    if isinstance(in_width, int) and isinstance(out_width, int):
        return in_width, out_width
    return None


@torch.inference_mode()
def probe_linears(model: PreTrainedModel, context: StepContext) -> list[SeenLinear]:
    """Every linear whose input was the step's rows, or the sampled ones, in order."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    candidates = {name: m for name, m in modules.items() if widths_of(m) is not None}
    first_ids = [1 + place for place in range(NUM_TOKENS)]
    plain = _forward(model, context, candidates, first_ids)
    changed: list[dict[str, _Record]] = []
    for place in CHANGED:
        ids = list(first_ids)
        ids[place] = 1 + NUM_TOKENS + place
        changed.append(_forward(model, context, candidates, ids))
    seen: list[SeenLinear] = []
    for name, record in plain.items():
        found = [records[name] for records in changed if name in records]
        widths = widths_of(candidates[name])
        if len(found) != len(CHANGED) or widths is None:
            continue
        for at_head, places in ((False, range(NUM_TOKENS)), (True, KEPT)):
            if _fits(record, widths, len(places), model.dtype) and all(
                _only_row(record, other, list(places).index(place))
                for other, place in zip(found, CHANGED, strict=True)
            ):
                seen.append(SeenLinear(name, candidates[name], *widths, record.call, at_head))
    return seen


def _fits(record: _Record, widths: tuple[int, int], num_rows: int, dtype: torch.dtype) -> bool:
    """Whether it ran once over `num_rows` rows, in the model's own precision."""
    if len(record.inputs) != 1 or len(record.outputs) != 1:
        return False
    given, gave = record.inputs[0], record.outputs[0]
    rows = [tuple(tensor.shape[:-1]) for tensor in (given, gave)]
    return (
        all(shape in ((1, num_rows), (num_rows,)) for shape in rows)
        and (given.shape[-1], gave.shape[-1]) == widths
        and given.dtype == gave.dtype == dtype
    )


def _only_row(before: _Record, after: _Record, row: int) -> bool:
    """Whether `row` is the one that changed most.

    The others may move in their last digits, where a mixture groups rows by expert.
    """
    if len(after.inputs) != 1 or after.inputs[0].shape != before.inputs[0].shape:
        return False
    width = before.inputs[0].shape[-1]
    change_T = (after.inputs[0].float() - before.inputs[0].float()).abs().view(-1, width).amax(-1)
    return float(change_T[row]) > 0 and int(change_T.argmax()) == row


def _forward(
    model: PreTrainedModel,
    context: StepContext,
    candidates: Mapping[str, nn.Module],
    token_ids: Sequence[int],
) -> dict[str, _Record]:
    device = model.device
    vocab = int(model.config.get_text_config().vocab_size)
    context.attend = pass_values
    records: dict[str, _Record] = {}
    try:
        with _recording(candidates, records):
            model(
                input_ids=torch.tensor([[token % vocab for token in token_ids]], device=device),
                position_ids=torch.arange(len(token_ids), device=device)[None],
                use_cache=False,
                logits_to_keep=torch.tensor(KEPT, device=device),
            )
    finally:
        context.clear()
    return records


@contextmanager
def _recording(candidates: Mapping[str, nn.Module], records: dict[str, _Record]) -> Generator[None]:
    def hook_of(name: str):
        def note(_: nn.Module, args: tuple[object, ...], out: object) -> None:
            record = records.setdefault(name, _Record(len(records)))
            if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
                record.inputs.append(args[0].clone())
                record.outputs.append(out)

        return note

    handles = [module.register_forward_hook(hook_of(name)) for name, module in candidates.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def pass_values(
    layer: int, query_THK: Tensor, key_TGK: Tensor, value_TGK: Tensor, options: AttentionOptions
) -> Tensor:
    """Attention of every token to itself alone: rows stay apart, and still differ."""
    del layer, key_TGK, options
    return value_TGK.repeat_interleave(query_THK.shape[1] // value_TGK.shape[1], dim=1)
