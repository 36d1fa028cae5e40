"""Steps with adapters on their way: whatever way, and however layers land, they say what the step
of adapters in the pool says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from lorry.server.execution.batch import StepRow
from lorry.server.execution.model import LoadedModel, prepare_model
from lorry.server.execution.packed import pack_linears
from lorry.server.execution.recorder import PlainRecorder
from lorry.server.execution.siblings import merge_siblings
from lorry.server.scheduling.sampling import SamplingParams
from lorry.server.scheduling.starts import Way
from lorry.tests.builders import ALL_LINEAR
from lorry.tests.cold_builders import ColdBench, Wind, make_cold_bench
from lorry.tests.execution_builders import (
    LIMITS,
    Ask,
    Bench,
    make_bench,
    make_prompt,
    random_peft,
    serve,
    tiny_llama,
)

# What a log-probability may be off by in fp32, where sums are made in another order.
CLOSE = 1e-4
ALL_ABOUT = SamplingParams(logprobs=2, prompt_logprobs=0)
WARM, STREAM, ASSIST = Way.WARM, Way.STREAM, Way.ASSIST
# Adapters by slot: how each is had, its rank, what it changes.
FLEET = (
    (WARM, 5, ALL_LINEAR),
    (STREAM, 8, ALL_LINEAR),
    (ASSIST, 24, ALL_LINEAR),
    (WARM, 17, ("q_proj", "down_proj")),
    (ASSIST, 3, ("k_proj", "o_proj", "up_proj")),
    (STREAM, 1, ("v_proj",)),
)
SLOTS = (-1, 0, 1, 1, 2, 2, 3, 4, 5, -1)


def three_layers() -> PreTrainedModel:
    return tiny_llama(num_hidden_layers=3)


def merged(model: PreTrainedModel) -> LoadedModel:
    loaded = prepare_model(model)
    merge_siblings(loaded.model, loaded.siblings, min_packed_elements=1)
    pack_linears(loaded.model, min_elements=1)
    return loaded


def fleet_of(model: PreTrainedModel) -> list[PeftModel]:
    return [
        random_peft(model, rank=rank, seed=slot, targets=targets)
        for slot, (_, rank, targets) in enumerate(FLEET)
    ]


def asks_of(slots: Sequence[int], *, num_new: int = 4) -> list[Ask]:
    """Prompts in chunks, some late, so that chunks and decodes are in one step."""
    return [
        Ask(
            make_prompt(5 + 3 * i, seed=i),
            slot=slot,
            chunk=4 + i,
            delay=i % 3,
            num_new=num_new,
            sampling=ALL_ABOUT,
        )
        for i, slot in enumerate(slots)
    ]


def assert_alike(ours: Sequence[Ask], warm: Sequence[Ask]) -> None:
    for mine, theirs in zip(ours, warm, strict=True):
        assert mine.tokens == theirs.tokens
        for one, other in zip(
            [*mine.logprobs, *mine.told], [*theirs.logprobs, *theirs.told], strict=True
        ):
            assert abs(one.logprob - other.logprob) <= CLOSE


def put_fleet(cold: ColdBench, fleet: Sequence[PeftModel]) -> None:
    for slot, (adapter, (way, _, _)) in enumerate(zip(fleet, FLEET, strict=True)):
        if way is WARM:
            cold.bench.put_adapter(slot, adapter)
        else:
            cold.put_cold(slot, adapter, way)


def warm_bench(
    model: PreTrainedModel,
    fleet: Sequence[PeftModel],
    *,
    prepare: Callable[[PreTrainedModel], LoadedModel] = prepare_model,
) -> Bench:
    bench = make_bench(model, prepare=prepare)
    for slot, adapter in enumerate(fleet):
        bench.put_adapter(slot, adapter)
    return bench


@pytest.mark.parametrize("prepare", [prepare_model, merged], ids=["apart", "merged"])
def test_layers_may_land_in_any_order(
    prepare: Callable[[PreTrainedModel], LoadedModel],
) -> None:
    """Warm, streamed and assisted rows beside the base's, in chunks and decodes, while layers land
    at random moments of the steps: no page is read before its layer is there."""
    model = three_layers()
    fleet = fleet_of(model)
    expected = asks_of(SLOTS)
    serve(warm_bench(model, fleet, prepare=prepare), expected)
    num_helped = 0
    for seed, pace in enumerate((0.003, 0.03)):
        cold = make_cold_bench(model, prepare=prepare)
        put_fleet(cold, fleet)
        cold.board.on_look = Wind(cold.board, pace, seed=seed).blow
        ours = asks_of(SLOTS)
        cold.serve(ours)
        assert_alike(ours, expected)
        num_helped += len(cold.handover.sent)
    assert num_helped > 50, "the helpers were hardly asked"


@pytest.mark.parametrize("prepare", [prepare_model, merged], ids=["apart", "merged"])
def test_helpers_may_compute_every_layer(
    prepare: Callable[[PreTrainedModel], LoadedModel],
) -> None:
    """An assisted start would wait for layers that the wire has not brought; and one hand-over for
    each input, be its sites merged or not, is what its price is reckoned with."""
    model = three_layers()
    fleet = fleet_of(model)[2:3]
    expected, ours = asks_of([0, 0, -1]), asks_of([0, 0, -1])
    serve(warm_bench(model, fleet, prepare=prepare), expected)
    cold = make_cold_bench(model, prepare=prepare)
    cargo = cold.put_cold(0, fleet[0], ASSIST)
    cargo.read(cargo.num_layers)
    cold.serve(ours)
    assert_alike(ours, expected)
    assert cold.runner.num_hand_overs == 4 * 3
    assert len(cold.handover.sent) % cold.runner.num_hand_overs == 0
    assert cold.runner.pool_PE[cargo.pages].isnan().all()


def test_answers_for_sites_to_come_are_of_their_input_alone() -> None:
    """A model that now and then gives k what q was not given: its rows would get q's product, or
    both."""
    model = three_layers()
    fleet = fleet_of(model)[2:3]
    expected, ours = asks_of([0, -1]), asks_of([0, -1])
    serve(warm_bench(model, fleet), expected)
    cold = make_cold_bench(model)
    cargo = cold.put_cold(0, fleet[0], ASSIST)
    cargo.read(cargo.num_layers)
    for layer in cold.bench.loaded.model.model.layers:
        layer.self_attn.k_proj.register_forward_pre_hook(lambda _, args: (args[0].clone(),))
    cold.serve(ours)
    assert_alike(ours, expected)
    asked = [len(errand.sites) for errand in cold.handover.sent]
    assert asked[:3] == [3, 2, 1], "q, k and v; k and v anew; v alone, whose input is q's again"


def test_what_has_landed_is_not_sent() -> None:
    """Helpers would compute what the device could, and every row pay the way there and back."""
    model = three_layers()
    cold = make_cold_bench(model)
    cargo = cold.put_cold(0, fleet_of(model)[2], ASSIST)
    cargo.read(cargo.num_layers)
    cargo.land(1)
    cold.serve([Ask(make_prompt(9), slot=0, num_new=1)])
    sites = cold.bench.loaded.image_spec.sites
    assert {sites[site].layer for one in cold.handover.sent for site in one.sites} == {1, 2}


@pytest.mark.parametrize("way", [STREAM, ASSIST])
def test_an_adapter_with_a_head(way: Way) -> None:
    """The head sees the sampled rows alone, and lands last; helpers know nothing of its rows."""
    model = three_layers()
    fleet = [random_peft(model, rank=6, targets=[*ALL_LINEAR, "lm_head"])]
    expected, ours = asks_of([-1, 0, 0]), asks_of([-1, 0, 0])
    serve(warm_bench(model, fleet), expected)
    cold = make_cold_bench(model)
    cold.put_cold(0, fleet[0], way)
    cold.serve(ours)
    assert_alike(ours, expected)
    head = len(cold.bench.loaded.image_spec.sites) - 1
    assert all(head not in one.sites for one in cold.handover.sent)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True")
@pytest.mark.parametrize("way", [STREAM, ASSIST])
def test_linears_of_another_class(way: Way) -> None:
    """GPT-2's Conv1D computes with its own forward; help is asked before it all the same."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=131,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=256,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config).eval()
    targets = ("c_attn", "c_proj", "c_fc")
    fleet = [random_peft(model, rank=6, targets=targets, fan_in_fan_out=True)]
    expected, ours = asks_of([-1, 0]), asks_of([-1, 0])
    serve(warm_bench(model, fleet), expected)
    cold = make_cold_bench(model)
    cold.put_cold(0, fleet[0], way)
    cold.serve(ours)
    assert_alike(ours, expected)
    assert bool(cold.handover.sent) == (way is ASSIST)


def test_without_helpers_an_assisted_row_streams() -> None:
    model = three_layers()
    fleet = fleet_of(model)[2:3]
    expected, ours = asks_of([0], num_new=2), asks_of([0], num_new=2)
    serve(warm_bench(model, fleet), expected)
    cold = make_cold_bench(model, helps=False)
    cold.put_cold(0, fleet[0], ASSIST)
    cold.serve(ours)
    assert_alike(ours, expected)
    assert not cold.handover.images


def test_a_slot_becomes_warm() -> None:
    """After its arrival a slot is served as if it had never been cold: no helper is asked, and the
    products are those of the pool's adapters, to the bit."""
    model = three_layers()
    fleet = fleet_of(model)[2:3]
    expected = asks_of([-1, 0])
    serve(warm_bench(model, fleet), expected)
    cold = make_cold_bench(model)
    cold.put_cold(0, fleet[0], ASSIST)
    cold.serve([Ask(make_prompt(9), slot=0, num_new=1)])
    num_sent, num_looks = len(cold.handover.sent), cold.board.num_looks
    cold.arrive(0)
    assert not cold.handover.images
    cold.ways[0] = STREAM  # a plan that did not know yet
    ours = asks_of([-1, 0])
    cold.serve(ours)
    assert (len(cold.handover.sent), cold.board.num_looks) == (num_sent, num_looks)
    for mine, theirs in zip(ours, expected, strict=True):
        assert (mine.tokens, mine.logprobs, mine.told) == (
            theirs.tokens,
            theirs.logprobs,
            theirs.told,
        )


def test_a_slot_that_leaves_is_closed_first() -> None:
    """Helpers would read cells that belong to another image by then."""
    model = three_layers()
    adapter = fleet_of(model)[2]
    cold = make_cold_bench(model)
    for _ in range(2):
        cargo = cold.put_cold(0, adapter, ASSIST)
        assert not cold.handover.images, "helpers were told of a load that nobody asks them for"
        cargo.read(cargo.num_layers)
        cold.serve([Ask(make_prompt(9), slot=0, num_new=1)])
        assert list(cold.handover.images) == [0]
        cold.runner.detach(0)
        assert not cold.handover.images
    row = StepRow(0, [1], 1, 0, cold.bench.take(1), 0, True, SamplingParams())
    with pytest.raises(ValueError, match="slot 0 holds no adapter"):
        cold.runner.run([row])


def test_a_warm_step_asks_nobody() -> None:
    """What a cold slot costs, others would pay while it is only on its way."""
    model = three_layers()
    fleet = fleet_of(model)
    cold = make_cold_bench(model)
    cold.bench.put_adapter(0, fleet[0])
    cold.put_cold(1, fleet[1], ASSIST)
    cold.serve(asks_of([-1, 0]))
    assert not cold.board.num_looks and not cold.handover.sent


def test_a_cold_slot_needs_a_way() -> None:
    """Run as a warm one it would read pages that have not landed, and the CPU keep what it read."""
    model = three_layers()
    cold = make_cold_bench(model)
    cold.put_cold(0, fleet_of(model)[1])
    row = StepRow(0, [1, 2], 2, 0, cold.bench.take(1), 0, True, SamplingParams())
    with pytest.raises(ValueError, match="slot 0 is cold: its rows need a way"):
        cold.runner.run([row])
    bench = make_bench(model)
    with pytest.raises(ValueError, match="was given no cold rooms"):
        replace(cold, bench=bench).put_cold(0, fleet_of(model)[1])


def test_recorded_steps_are_of_warm_slots() -> None:
    """A recording knows no waits: it would read what has not landed."""
    limits = replace(LIMITS, max_running=1)
    model = three_layers()
    cold = make_cold_bench(model, limits=limits, recorder=PlainRecorder())
    cold.put_cold(0, fleet_of(model)[1])
    cold.board.on_wait = lambda *_: None
    row = StepRow(0, (), 1, 4, cold.bench.take(1), 0, True, SamplingParams())
    result = cold.run([row])
    assert result.lost == (0,) and not result.tokens and not result.not_finite
