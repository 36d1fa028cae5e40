"""Which linears see the rows of a step, each in its place: found by looking, not by name.

Runs a few tokens through the model, changes one of them at a time, and looks at what every
linear is given. An expert of a mixture sees some rows, a router's relative may see them sorted,
a vision tower sees none: their rows cannot be told apart by adapter, so they are no sites.
Owns no module; called once, when sites are installed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
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
    # The turn of the first linear that was given the very same tensor, unchanged: its own, if none.
    first_call: int


@dataclass(slots=True)
class _Record:
    """What one linear was given and gave in one forward."""

    call: int
    inputs: list[Tensor] = field(default_factory=list[Tensor])  # as they were
    given: list[Tensor] = field(default_factory=list[Tensor])  # the very tensors
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
                first = _first_given(plain.values(), record).call
                seen.append(
                    SeenLinear(name, candidates[name], *widths, record.call, at_head, first)
                )
    return seen


def probe_shapes(model: PreTrainedModel, context: StepContext) -> list[SeenLinear]:
    """The same from shapes alone, for a model on the meta device, which has no numbers to follow:
    a linear that sees all rows in another order would pass here.
    """
    modules = {name: m for name, m in model.named_modules() if widths_of(m) is not None}
    records = _forward(model, context, modules, [1 + place for place in range(NUM_TOKENS)])
    return [
        SeenLinear(name, modules[name], *widths, record.call, at_head, record.call)
        for name, record in records.items()
        if (widths := widths_of(modules[name])) is not None
        for at_head, num_rows in ((False, NUM_TOKENS), (True, len(KEPT)))
        if _fits(record, widths, num_rows, model.dtype)
    ]


def find_siblings(seen: Sequence[SeenLinear]) -> list[list[SeenLinear]]:
    """Linears of one module that were given the very same tensor, in the order of their calls."""
    groups: dict[tuple[str, int], list[SeenLinear]] = {}
    for linear in sorted(seen, key=lambda linear: linear.call):
        if not linear.at_head:
            parent = linear.name.rpartition(".")[0]
            groups.setdefault((parent, linear.first_call), []).append(linear)
    return [group for group in groups.values() if len(group) > 1]


@torch.inference_mode()
def take_columns(
    model: PreTrainedModel, context: StepContext, linears: Sequence[nn.Module]
) -> bool:
    """Whether the model takes columns of a wider buffer for what these linears say.

    Any code may ask for a view that only rows which lie close together have.
    """

    def widen(_: nn.Module, __: object, out: Tensor) -> Tensor:
        return torch.cat([out, out], dim=-1)[..., out.shape[-1] :]

    handles = [module.register_forward_hook(widen) for module in linears]
    try:
        run_rows(model, context, range(1, 1 + NUM_TOKENS))
    except RuntimeError:
        return False
    finally:
        for handle in handles:
            handle.remove()
    return True


def _first_given(records: Iterable[_Record], record: _Record) -> _Record:
    """The first that was given the same tensor as `record`, with the same numbers in it."""
    for other in records:
        same = len(other.given) == 1 and other.given[0] is record.given[0]
        if same and torch.equal(other.inputs[0], record.inputs[0]):
            return other
    return record


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
    records: dict[str, _Record] = {}
    with _recording(candidates, records):
        run_rows(model, context, token_ids)
    return records


def run_rows(
    model: PreTrainedModel,
    context: StepContext,
    token_ids: Sequence[int],
    *,
    kept: Sequence[int] = KEPT,
) -> None:
    """A step of these tokens without a pool: attention of each to itself."""
    device = model.device
    vocab = int(model.config.get_text_config().vocab_size)
    num_tokens = len(token_ids)
    # Like a step's own, they are no inference tensors, and positions lie in a longer buffer: the
    # compiler tells such things apart (fusing.py).
    with torch.inference_mode(mode=False):
        ids_1T = torch.tensor([[token % vocab for token in token_ids]], device=device)
        position_1T = torch.arange(2 * num_tokens + 1, device=device)[:num_tokens][None]
        kept_idx = torch.tensor(kept, device=device)
    context.attend = pass_values
    try:
        with torch.inference_mode():
            model(
                input_ids=ids_1T,
                position_ids=position_1T,
                use_cache=False,
                logits_to_keep=kept_idx,
            )
    finally:
        context.clear()


@contextmanager
def _recording(candidates: Mapping[str, nn.Module], records: dict[str, _Record]) -> Generator[None]:
    def hook_of(name: str):
        def note(_: nn.Module, args: tuple[object, ...], out: object) -> None:
            record = records.setdefault(name, _Record(len(records)))
            if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
                record.inputs.append(args[0].clone())
                record.given.append(args[0])
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
