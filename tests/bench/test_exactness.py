"""The architectures that were promised first, served for real, say what PEFT says; and the verdict
of `make exact`, which holds all others against PEFT too, can be "no"."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorry.adapters.image_file import HostImage, read_image
from lorry.bench.exactness.cases import CASES, Case, find_case
from lorry.bench.exactness.rounding import measure_rounding
from lorry.bench.exactness.serving import AS_SERVED, ON_GPU, serve, settings_of
from lorry.bench.exactness.verdict import Hollow, judge
from lorry.bench.exactness.world import CaseWorld

TABLE = 21  # of the list: the architectures that were promised first
PECULIAR = ("phi3-longrope-long", "qwen2_moe", "gpt_bigcode", "ministral3", "nanochat")
TESTED = (*CASES[:TABLE], *map(find_case, PECULIAR))


@pytest.mark.parametrize("case", TESTED, ids=lambda case: case.label)
def test_an_architecture_equals_peft(case: Case, tmp_path: Path) -> None:
    """Mixed ranks and subsets, the head adapted, base rows between, chunks, evictions, slots handed
    on and preemptions: any row, page or factor in the wrong place changes a token (anchors 26 to
    29)."""
    world = CaseWorld(case, tmp_path)
    try:
        verdict = judge(world, serve(world, AS_SERVED), AS_SERVED)
    finally:
        world.close()
    assert verdict.tokens == 5 * len(world.prompts) * AS_SERVED.answer_tokens
    assert verdict.ties < 4
    assert world.num_packed or case.label == "gpt2", "a Conv1D is the only one that stays plain"


def test_the_setting_of_a_gpu_overlaps(tmp_path: Path) -> None:
    """Every step waited for at once would leave the loop that serves there unseen."""
    world = CaseWorld(find_case("llama"), tmp_path)
    try:
        served = serve(world, ON_GPU)
        judge(world, served, ON_GPU)
    finally:
        world.close()
    assert ON_GPU in settings_of("cuda:0") and ON_GPU not in settings_of("cpu")
    with pytest.raises(Hollow, match="before another's end"):
        judge(world, replace(served, overtakes=0), ON_GPU)


def test_an_adapter_left_out_is_no_rounding(tmp_path: Path) -> None:
    """One adapter of four without its factors moved the median over all by a fifth, and passed."""
    world = CaseWorld(find_case("llama"), tmp_path, dtype=torch.bfloat16)

    def read_emptied(path: Path) -> HostImage:
        image = read_image(path)
        if path == world.cards["r8-rslora"].image_path:
            return replace(image, pages=torch.zeros_like(image.pages))
        return image

    try:
        good, emptied = measure_rounding(world), measure_rounding(world, read=read_emptied)
    finally:
        world.close()
    assert world.num_packed and not good.failures()
    assert emptied.whole.ratio < 1.25
    ratio, worst = emptied.failures()
    assert "r8-rslora is" in ratio and "r8-rslora is" in worst


def test_a_mixture_may_flip_a_few_places(tmp_path: Path) -> None:
    """Experts as good as tied excuse a place here and there, not an adapter, and nobody else."""
    world = CaseWorld(find_case("mixtral"), tmp_path, dtype=torch.bfloat16)
    try:
        found = measure_rounding(world)
    finally:
        world.close()
    assert not found.failures()
    for beyond, num_failures in ((3, 0), (4, 1)):
        shares = {"": replace(found.adapters[""], beyond=beyond)}
        assert len(replace(found, adapters=shares).failures()) == num_failures
        assert replace(found, adapters=shares, has_experts=False).failures()


def test_the_list_is_long_enough_and_has_no_twins() -> None:
    """A case that replaced another of its name would take it away in silence."""
    assert len({case.label for case in CASES}) == len(CASES) >= TABLE
