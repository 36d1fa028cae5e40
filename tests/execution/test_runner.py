"""The runner against transformers' and PEFT's own `generate`."""

import dataclasses

import pytest
import torch

from lorry.server.execution.batch import StepRow
from lorry.server.execution.warm_up import TAIL_TOKENS
from lorry.server.scheduling.sampling import SamplingParams
from lorry.tests.execution_builders import (
    LIMITS,
    Ask,
    greedy,
    make_bench,
    make_prompt,
    pack_peft,
    random_peft,
    serve,
    tiny_llama,
)
from lorry.tests.parity import assert_same_tokens

MODELS = {
    "gqa-untied": {},
    "mha-tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "one-kv-head-bias": {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
}


@pytest.mark.parametrize("overrides", MODELS.values(), ids=MODELS)
def test_base_tokens_equal_generate(overrides: dict[str, object]) -> None:
    """Packed, chunked, staggered requests say what the model alone says."""
    model = tiny_llama(**overrides)
    prompts = [make_prompt(n, seed=n) for n in (1, 16, 37, 50)]
    asks = [
        Ask(p, chunk=c, delay=d)
        for p, c, d in zip(prompts, (5, 16, 7, 99), (0, 2, 0, 3), strict=True)
    ]
    for prompt, ours in zip(prompts, serve(make_bench(model), asks), strict=True):
        assert_same_tokens(model, prompt, ours, greedy(model, prompt))


def test_mixed_batch_equals_peft() -> None:
    """Adapters of mixed ranks, targets and scales beside base rows equal PEFT's tokens; no row
    takes anything from its neighbours (anchors 26 to 29)."""
    model = tiny_llama()
    adapters = [
        random_peft(model, rank=1, seed=1),
        random_peft(model, rank=5, seed=2, targets=["q_proj", "down_proj"]),
        random_peft(model, rank=24, seed=3, use_rslora=True),
        random_peft(
            model,
            rank=8,
            seed=4,
            rank_pattern={"v_proj": 40, "layers.1.mlp.up_proj": 3},
            alpha_pattern={"o_proj": 2},
        ),
    ]
    bench = make_bench(model)
    for slot, adapter in enumerate(adapters):
        bench.put_adapter(slot, adapter)
    slots = [-1, 0, 0, 1, -1, 2, 3, 3]
    asks = [
        Ask(make_prompt(9 + 5 * i, seed=i), slot=slot, chunk=6 + i, delay=i % 3)
        for i, slot in enumerate(slots)
    ]
    changed = 0
    for ask, ours in zip(asks, serve(bench, asks), strict=True):
        reference = adapters[ask.slot] if ask.slot >= 0 else model
        assert_same_tokens(reference, ask.prompt, ours, greedy(reference, ask.prompt))
        base = greedy(model, ask.prompt)
        changed += sum(a != b for a, b in zip(ours, base, strict=True)) if ask.slot >= 0 else 0
    assert changed > 0.3 * 12 * sum(slot >= 0 for slot in slots), "the adapters change too little"


def test_zeroed_pages_give_the_base() -> None:
    """An adapter lives in its pages and nowhere else: what a CPU lays out of it for its products
    is read again when the slot is attached, and when pages are cleared."""
    model = tiny_llama()
    bench = make_bench(model)
    adapter = random_peft(model, rank=8)
    bench.put_adapter(0, adapter)
    prompt = make_prompt(20)
    with_adapter = serve(bench, [Ask(prompt, slot=0)])[0]
    assert_same_tokens(adapter, prompt, with_adapter, greedy(adapter, prompt))
    base = greedy(model, prompt)
    assert with_adapter != base
    pages = bench.adapter_pages[0]
    bench.runner.pool_PE[pages] = 0
    bench.runner.attach(0, pack_peft(bench.loaded, adapter)[0], pages)
    assert_same_tokens(model, prompt, serve(bench, [Ask(prompt, slot=0)])[0], base)
    bench.put_adapter(1, adapter)
    assert serve(bench, [Ask(prompt, slot=1)])[0] == with_adapter
    bench.runner.poison(bench.adapter_pages[1])
    rows = [StepRow(0, prompt, 20, 0, bench.take(2), 1, True, SamplingParams())]
    assert bench.runner.run(rows).not_finite == (0,), "a copy outlived its pages"


def test_a_slot_can_be_given_to_another_adapter() -> None:
    """After detach and attach a slot means the new adapter, in whatever pages it lies."""
    model = tiny_llama()
    bench, prompt = make_bench(model), make_prompt(20)
    for seed, rank in ((1, 16), (2, 4)):
        adapter = random_peft(model, rank=rank, seed=seed)
        bench.put_adapter(0, adapter)
        ours = serve(bench, [Ask(prompt, slot=0)])[0]
        assert_same_tokens(adapter, prompt, ours, greedy(adapter, prompt))
        bench.runner.detach(0)


def test_an_image_outside_its_pages_is_refused() -> None:
    """A layout that does not belong to the pages would make a slot of somebody else's numbers."""
    bench = make_bench(tiny_llama())
    layout, _ = pack_peft(bench.loaded, random_peft(tiny_llama(), rank=16))
    assert layout.num_pages > 1
    with pytest.raises(ValueError, match="does not fit 1 pages"):
        bench.runner.attach(0, layout, [0])
    short = dataclasses.replace(layout, num_pages=1)
    with pytest.raises(ValueError, match="of an image of 1"):
        bench.runner.attach(0, short, [0])
    first = dataclasses.replace(layout.sites[0], a_offsets=(-64, *layout.sites[0].a_offsets[1:]))
    early = dataclasses.replace(layout, sites=(first, *layout.sites[1:]))
    with pytest.raises(ValueError, match="page -1 of an image"):
        bench.runner.attach(0, early, range(layout.num_pages))


def test_freed_pages_can_be_used_again() -> None:
    """A page comes with what its last owner left; none of it may be seen (NaN shows it)."""
    model = tiny_llama()
    bench, prompt = make_bench(model, num_pages=3), make_prompt(30)
    pages = list(bench.free)
    first = serve(bench, [Ask(prompt)])[0]
    bench.runner.poison(pages)
    bench.free = pages[::-1]
    assert serve(bench, [Ask(prompt)])[0] == first == greedy(model, prompt)


def test_sampled_tokens_do_not_depend_on_the_batch() -> None:
    """A seed gives the same answer alone, in a batch, chunked or not."""
    model = tiny_llama()
    bench = make_bench(model)
    prompts = [make_prompt(10 + i, seed=i) for i in range(4)]
    alone = [serve(bench, [Ask(p, temperature=0.9, seed=7 + i)])[0] for i, p in enumerate(prompts)]
    together = serve(
        bench,
        [Ask(p, temperature=0.9, seed=7 + i, chunk=4 + i, delay=i) for i, p in enumerate(prompts)],
    )
    assert together == alone
    assert serve(bench, [Ask(prompts[0], temperature=0.9, seed=8)])[0] != alone[0]


def test_a_step_larger_than_its_buffers_is_refused() -> None:
    """Bounds are the planner's to keep; a broken one must not write past a buffer."""
    bench = make_bench(tiny_llama())

    def row(num_tokens: int, pages: int) -> StepRow:
        return StepRow(0, [1] * num_tokens, num_tokens, 0, range(pages), -1, True, SamplingParams())

    with pytest.raises(ValueError, match="256"):
        bench.runner.run([row(200, 13), row(57, 4)])
    with pytest.raises(ValueError, match="need 3 pages, it has 2"):
        bench.runner.run([row(33, 2)])
    with pytest.raises(ValueError, match="at least one row"):
        bench.runner.run([])


def test_the_warm_up_leaves_clean_pages() -> None:
    """What the warm-up wrote must not be met later, and it must fill the largest step."""
    bench = make_bench(tiny_llama(), num_pages=4)
    bench.runner.warm_up()
    assert torch.equal(bench.runner.pool_PE, torch.zeros_like(bench.runner.pool_PE))


def test_the_warm_up_runs_the_largest_and_the_longest_step() -> None:
    """A server would take more memory at the first request that is longer than its warm-up."""
    bench = make_bench(tiny_llama(), num_pages=4)
    steps: list[list[StepRow]] = []
    run = bench.runner.run
    bench.runner.run = lambda rows: steps.append(list(rows)) or run(rows)  # pyright: ignore
    bench.runner.warm_up()
    largest, longest = steps
    assert sum(row.num_tokens for row in largest) == LIMITS.max_step_tokens
    assert len(largest) == len(longest) == LIMITS.max_running
    assert longest[0].start + longest[0].num_tokens == LIMITS.max_model_len
    assert longest[0].num_tokens == TAIL_TOKENS
    asked = largest[0].sampling
    assert asked.temperature > 0 and asked.top_p < 1 and asked.needs_history, "the sampler's share"
    places = sum(len(row.tell) + row.sample for row in largest)
    assert places == LIMITS.max_logit_rows, "the logits' share is left out"


def test_a_row_that_is_no_number_gets_no_token() -> None:
    """An adapter whose products overflow, or a read of a poisoned page, answered token 0; the
    rows beside it must not suffer."""
    model = tiny_llama()
    bench, prompt = make_bench(model), make_prompt(20)
    adapter = random_peft(model, rank=4)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "lora_" in name:
                parameter.mul_(1e25)
    bench.put_adapter(0, adapter)
    base, broken = bench.take(2), bench.take(2)
    rows = [
        StepRow(3, prompt, 20, 0, base, -1, True, SamplingParams()),
        StepRow(5, prompt, 20, 0, broken, 0, True, SamplingParams(temperature=0.9, seed=1)),
        StepRow(6, prompt[:8], 8, 0, bench.take(1), 0, False, SamplingParams()),
    ]
    result = bench.runner.run(rows)
    assert result.tokens == {3: greedy(model, prompt, 1)[0]}
    assert result.not_finite == (5,)
    # A page that nobody has written shows the same way.
    bench.runner.poison(base)
    result = bench.runner.run([StepRow(3, [1], 1, 20, base, -1, True, SamplingParams())])
    assert (result.tokens, result.not_finite) == ({}, (3,))
