"""bf16 and fp16: how far from PEFT's fp32 logits we are, and how far PEFT is in that precision.

Nothing is exact in 16 bits, so tokens prove little; the promise is an error no larger than PEFT's
own, for each adapter and for the base. Owns that comparison and its bounds, over pages, in chunks,
with all adapters side by side and linears packed, straight on the paged model: an engine hands
out tokens, not logits. Called by the bench and by tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from ...adapters.image_file import HostImage, read_image
from ...server.execution.batch import StepBuffers, StepCapacity, StepRow, build_batch
from ...server.execution.paged_model import PagedModel
from ...server.scheduling.sampling import SamplingParams
from .fleet import make_peft
from .world import BASE, MAX_RANK, CaseWorld

CHUNK_TOKENS = 3  # logits are compared at the end of each chunk
# Two sets of roundings, equally good, differ by chance, and we round the factors, which PEFT does
# not: an error this much larger than PEFT's is still "no larger". Beyond it something is wrong.
ALLOWED_RATIO = 1.25  # at the median of all places
ALLOWED_RATIO_OF_ONE = 2.0  # of one adapter's: medians of 36 places are up to 1.7 by chance
ALLOWED_WORST = 3.0  # of PEFT's worst place in the case, for each place; up to 2.2 by chance
# Where two experts are as good as tied another rounding chooses the other one, and the place is
# off by far more, on either side. Of a mixture, this share of an adapter's places may be.
FLIPPED_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Share:
    """Errors of some places against PEFT in fp32, in shares of the logit range.

    Of one place: the root of the mean square over its logits.
    """

    ours: float  # at the median place
    peft: float  # the same of PEFT in the same precision
    ours_worst: float  # at the worst place
    peft_worst: float
    beyond: int  # places where we are off by more than ALLOWED_WORST times PEFT's worst of the case
    places: int  # logit vectors compared

    @property
    def ratio(self) -> float:
        return self.ours / self.peft if self.peft else math.inf

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "ratio": round(self.ratio, 3)}


@dataclass(frozen=True, slots=True)
class Rounding:
    """One case in one precision."""

    whole: Share  # all places
    adapters: Mapping[str, Share]  # adapter, or BASE, -> its places
    has_experts: bool

    def failures(self) -> list[str]:
        """Why our error is larger than PEFT's; empty if it is not."""
        found: list[str] = []
        if not self.whole.ratio <= ALLOWED_RATIO:
            found.append(_too_large("the error", self.whole.ratio, ALLOWED_RATIO))
        for adapter, share in self.adapters.items():
            who = f"the error of {adapter or 'the base'}"
            if not share.ratio <= ALLOWED_RATIO_OF_ONE:
                found.append(_too_large(who, share.ratio, ALLOWED_RATIO_OF_ONE))
            exempt = int(share.places * FLIPPED_SHARE) if self.has_experts else 0
            if share.beyond > exempt:
                found.append(
                    f"{who} is more than {ALLOWED_WORST} of PEFT's worst, "
                    f"{self.whole.peft_worst:.3g}, at {share.beyond} of {share.places} places, up "
                    f"to {share.ours_worst:.3g}; allowed are {exempt}"
                )
        return found

    def to_json(self) -> dict[str, object]:
        by_name = {name or "base": share.to_json() for name, share in self.adapters.items()}
        return {**self.whole.to_json(), "adapters": by_name}


def measure_rounding(
    world: CaseWorld, *, read: Callable[[Path], HostImage] = read_image
) -> Rounding:
    """`world` must be of a 16-bit precision; `read` fetches an adapter's image from its file."""
    asked = [(name, ids) for name in (BASE, *world.cards) for ids in world.prompts]
    exact = [_at_ends(world.logits(name, ids)) for name, ids in asked]
    low = _LowPeft(world)
    peft = [_at_ends(low.logits(name, ids)) for name, ids in asked]
    whole_PV = torch.cat(exact)
    logit_range = float(whole_PV.max() - whole_PV.min())
    images = {name: read(card.image_path) for name, card in world.cards.items()}
    ours_P, peft_P = (
        (torch.cat(found) - whole_PV).square().mean(dim=1).sqrt() / logit_range
        for found in (_over_pages(world, asked, images), peft)
    )
    names = [name for (name, _), logits_PV in zip(asked, exact, strict=True) for _ in logits_PV]
    limit = ALLOWED_WORST * float(peft_P.max())
    shares: dict[str, Share] = {}
    for adapter in (BASE, *world.cards):
        mine_P = torch.tensor([name == adapter for name in names])
        shares[adapter] = _share(ours_P[mine_P], peft_P[mine_P], limit)
    return Rounding(_share(ours_P, peft_P, limit), shares, world.case.has_experts)


def _share(ours_P: Tensor, peft_P: Tensor, limit: float) -> Share:
    return Share(
        ours=float(ours_P.median()),
        peft=float(peft_P.median()),
        ours_worst=float(ours_P.max()),
        peft_worst=float(peft_P.max()),
        beyond=int((~(ours_P <= limit)).sum()),  # what is no number is beyond
        places=len(ours_P),
    )


def _too_large(what: str, ratio: float, allowed: float) -> str:
    return f"{what} is {ratio:.2f} of PEFT's, allowed is {allowed}"


class _LowPeft:
    """PEFT over the base in its own precision: as a user runs it, factors kept in fp32."""

    def __init__(self, world: CaseWorld) -> None:
        base = world.plain.to(world.loaded.dtype)
        self._model = make_peft(base, world.fleet, loud=world.case.loud)

    @torch.inference_mode()
    def logits(self, adapter: str, token_ids: Sequence[int]) -> Tensor:
        ids_1T = torch.tensor([list(token_ids)])
        if adapter == BASE:
            with self._model.disable_adapter():
                return self._model(input_ids=ids_1T, use_cache=False).logits[0].float()
        self._model.set_adapter(adapter)
        return self._model(input_ids=ids_1T, use_cache=False).logits[0].float()


def _ends(num_tokens: int) -> list[int]:
    """The last place of each chunk."""
    return [min(i + CHUNK_TOKENS, num_tokens) - 1 for i in range(0, num_tokens, CHUNK_TOKENS)]


def _at_ends(logits_TV: Tensor) -> Tensor:
    return logits_TV[_ends(len(logits_TV))]


def _over_pages(
    world: CaseWorld,
    asked: Sequence[tuple[str, Sequence[int]]],
    images: Mapping[str, HostImage],
) -> list[Tensor]:
    """Logits at the chunk ends of each sequence, all side by side, packed as a CPU serves."""
    loaded = world.packed
    pages = _Pages(world, asked, images)
    limits = StepCapacity(
        max_running=len(asked),
        max_step_tokens=CHUNK_TOKENS * len(asked),
        max_model_len=loaded.max_model_len,
        max_rank=MAX_RANK,
        max_rows=len(asked),
    )
    paged = PagedModel(loaded, num_pages=pages.num_pages, limits=limits)
    paged.poison(range(pages.num_pages))
    slots = {name: slot for slot, name in enumerate((BASE, *images), start=-1)}
    for name, image in images.items():
        paged.pool_PE[pages.of_image[name]] = image.pages.to(loaded.device)
        paged.attach(slots[name], image.layout, pages.of_image[name])
    buffers = StepBuffers(
        limits,
        tokens_per_page=loaded.geometry.tokens_per_page,
        device=loaded.device,
    )
    found: list[list[Tensor]] = [[] for _ in asked]
    for start in range(0, max(len(ids) for _, ids in asked), CHUNK_TOKENS):
        rows: list[StepRow] = []
        for i, (name, ids) in enumerate(asked):
            chunk = list(ids[start : start + CHUNK_TOKENS])
            if chunk:
                place = (i, chunk, len(chunk), start, pages.of_row[i], slots[name])
                rows.append(StepRow(*place, sample=True, sampling=SamplingParams()))
        logits_BV = paged.forward(build_batch(rows, buffers))
        for row, logits_V in zip(rows, logits_BV, strict=True):
            found[row.row].append(logits_V.cpu())
    return [torch.stack(logits) for logits in found]


class _Pages:
    """Pages of a pool just large enough, dealt out in no order."""

    def __init__(
        self,
        world: CaseWorld,
        asked: Sequence[tuple[str, Sequence[int]]],
        images: Mapping[str, HostImage],
    ) -> None:
        size = world.loaded.geometry.tokens_per_page
        row_sizes = [-(-len(ids) // size) for _, ids in asked]
        self.num_pages = sum(row_sizes) + sum(i.layout.num_pages for i in images.values())
        generator = torch.Generator().manual_seed(1)
        free: list[int] = torch.randperm(self.num_pages, generator=generator).tolist()
        deal = iter(free)
        self.of_image = {
            name: list(islice(deal, image.layout.num_pages)) for name, image in images.items()
        }
        self.of_row = [list(islice(deal, count)) for count in row_sizes]
