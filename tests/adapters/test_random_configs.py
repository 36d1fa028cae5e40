"""Random LoraConfigs: each is refused by a field it names, or does exactly what PEFT does.

A larger number is `python -m lorry.bench.exactness.configs`.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorry.adapters.image_file import HostImage
from lorry.bench.exactness import config_judge
from lorry.bench.exactness.config_draws import SUPPORTED, UNSUPPORTED, Drawn, draw_config
from lorry.bench.exactness.config_judge import Mismatch, Outcome, field_names, judge
from lorry.bench.exactness.config_worlds import WORLDS, World, make_world
from lorry.bench.exactness.configs import run
from lorry.tests.execution_builders import Ask, greedy, make_bench, serve

NUM_EXAMPLES = 90


@pytest.fixture(scope="module")
def worlds() -> dict[str, World]:
    return {name: make_world(name) for name in WORLDS}


def judge_once(world: World, drawn: Drawn, seed: int = 0) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        return judge(Random(seed), world, drawn, Path(folder))


def test_each_example_is_refused_by_name_or_equal_to_peft(worlds: dict[str, World]) -> None:
    """A config that means something else here than in PEFT gives wrong tokens, silently."""
    kinds: Counter[str] = Counter()
    seen: set[str] = set()

    @settings(
        max_examples=NUM_EXAMPLES,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(sorted(WORLDS)), st.integers(0, 2**32 - 1))
    def try_one(name: str, seed: int) -> None:
        drawn = draw_config(Random(seed), worlds[name])
        outcome = judge_once(worlds[name], drawn, seed)
        kinds[outcome.kind] += 1
        seen.update(drawn.options)

    try_one()
    assert kinds["equal"] >= NUM_EXAMPLES // 4, kinds
    assert kinds["refused"] >= NUM_EXAMPLES // 6, kinds
    assert len(seen) >= len(SUPPORTED)


def test_every_field_of_the_installed_class_is_drawn() -> None:
    """A field nobody draws is a field nobody compares."""
    # PEFT leaves it out when it saves; the judge writes it into files.
    assert {*SUPPORTED, *UNSUPPORTED, "runtime_config"} == field_names()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_batch_of_random_adapters_answers_as_peft_does(
    worlds: dict[str, World], name: str
) -> None:
    """Factors may be right and still be added at another module, or with another scale."""
    drawing = worlds[name]
    bench = make_bench(drawing.model)
    spec = dataclasses.replace(bench.loaded.image_spec, base_weights=drawing.spec.base_weights)
    world = dataclasses.replace(drawing, spec=spec)
    asks: list[Ask] = []
    expected: list[list[int]] = []
    head = Drawn({"r": 5, "target_modules": [drawing.site_names[-1]]}, supported=False)
    drawn = [head, *(draw_config(Random(seed), drawing) for seed in range(40))]
    for seed, config in enumerate(drawn):
        outcome = judge_once(world, config, seed)
        if outcome.image is None:
            continue
        layout, pages_PE = outcome.image.layout, outcome.image.pages
        slot, prompt = len(asks), [3 + seed, 7, 5 + seed]
        pages = bench.take(layout.num_pages)
        bench.runner.pool_PE[pages] = pages_PE
        bench.runner.attach(slot, layout, pages)
        asks.append(Ask(prompt, slot, num_new=6))
        expected.append(greedy(outcome.reference, prompt, 6))
        if len(asks) == 6:
            break
    assert len(asks) == 6
    assert serve(bench, asks) == expected
    plain = [greedy(world.model, ask.prompt, 6) for ask in asks]
    assert sum(given != base for given, base in zip(expected, plain, strict=True)) >= 3


@pytest.mark.parametrize("changed", ["modules", "A", "B", "scale"])
def test_the_judge_sees_each_difference(
    worlds: dict[str, World], monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    """A judge that cannot fail proves nothing."""
    unpack = config_judge.unpack

    def bent(world: World, image: HostImage) -> dict[str, tuple[Tensor, Tensor, float]]:
        factors = dict(unpack(world, image))
        name, (lora_a, lora_b, scale) = factors.popitem()
        if changed != "modules":
            factors[name] = {
                "A": (lora_a + 1e-6, lora_b, scale),
                "B": (lora_a, lora_b + 1e-6, scale),
                "scale": (lora_a, lora_b, 2 * scale),
            }[changed]
        return factors

    drawn = Drawn({"r": 4, "target_modules": ["q_proj", "v_proj"]}, supported=True)
    assert judge_once(worlds["llama"], drawn).kind == "equal"
    monkeypatch.setattr(config_judge, "unpack", bent)
    with pytest.raises(Mismatch):
        judge_once(worlds["llama"], drawn)


def test_the_record_counts_every_example() -> None:
    """Examples that vanish from the record would make it look better than it is."""
    record = run(10, seed=3)
    kinds = ("equal", "refused", "impossible")
    assert sum(record[kind] for kind in kinds) == record["examples"] == 10
    by_base = record["by_base"]
    assert [sum(by_base[name].values()) for name in WORLDS] == [10 // len(WORLDS)] * len(WORLDS)
    assert sum(record["refused_by"].values()) == record["refused"]
