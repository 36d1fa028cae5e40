"""Rows that are lost: an adapter's product does not come in time, and nobody else notices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from torch import Tensor
from transformers import PreTrainedModel

from lorry.adapters.host_tier import HeldImage
from lorry.server.execution.batch import StepRow
from lorry.server.execution.cold_start.handover import Errand
from lorry.server.scheduling.sampling import SamplingParams
from lorry.server.scheduling.starts import Way
from lorry.tests.cold_builders import Cargo, ColdBench, make_cold_bench
from lorry.tests.execution_builders import make_prompt, random_peft, tiny_llama

STREAM, ASSIST = Way.STREAM, Way.ASSIST
ABOUT = SamplingParams(logprobs=0, prompt_logprobs=0)
PROMPTS = {3: make_prompt(9, seed=3), 4: make_prompt(12, seed=4), 5: make_prompt(7, seed=5)}


def model_of() -> PreTrainedModel:
    return tiny_llama(num_hidden_layers=3)


def prompt_row(
    cold: ColdBench, row: int, slot: int, *, sampling: SamplingParams = ABOUT
) -> StepRow:
    prompt = PROMPTS[row]
    count = len(prompt)
    tell = range(count - 1 if sampling.prompt_logprobs >= 0 else 0)
    pages = cold.bench.take(2)
    return StepRow(row, prompt, count, 0, pages, slot, True, sampling, prompt, count, tell)


def two_lost_one_not(patience_s: float = 10.0) -> tuple[ColdBench, list[StepRow]]:
    """A base row, a warm slot's, and a cold slot's whose way a test chooses."""
    model = model_of()
    cold = make_cold_bench(model, patience_s=patience_s)
    cold.bench.put_adapter(0, random_peft(model, rank=5, seed=1))
    cold.put_cold(1, random_peft(model, rank=9, seed=2))
    return cold, [prompt_row(cold, row, slot) for row, slot in ((3, -1), (4, 0), (5, 1))]


def nothing_comes(cargo: Cargo, layer: int, to_pool: bool, timeout_s: float) -> None:
    """A link that stands still."""


def gives_up_at(last: int) -> Callable[[Cargo, int, bool, float], None]:
    """A load that fails behind so many layers."""

    def on_wait(cargo: Cargo, layer: int, to_pool: bool, timeout_s: float) -> None:
        del to_pool, timeout_s
        if layer < last:
            cargo.land(layer + 1)
        else:
            cargo.board.void(cargo.slot, cargo.load_id)

    return on_wait


def assert_only_the_cold_row_is_lost(cold: ColdBench, rows: Sequence[StepRow]) -> None:
    result = cold.run(rows)
    assert result.lost == (5,)
    assert result.tokens.keys() == result.logprobs.keys() == {3, 4}
    assert [one.row for one in result.told] == [3, 4] and not result.not_finite
    expected = cold.runner.run(rows[:2])
    assert expected.tokens == result.tokens
    for row, one in expected.logprobs.items():
        assert abs(one.logprob - result.logprobs[row].logprob) < 1e-5


@pytest.mark.parametrize("way", [STREAM, ASSIST])
@pytest.mark.parametrize(
    "on_wait", [nothing_comes, gives_up_at(0), gives_up_at(2)], ids=["late", "failed", "midway"]
)
def test_a_load_that_does_not_come_costs_its_own_rows_alone(
    way: Way, on_wait: Callable[[Cargo, int, bool, float], None]
) -> None:
    """What is not there must not be read, not by a neighbour either, nor be waited for again."""
    cold, rows = two_lost_one_not()
    cold.ways[1] = way
    waits: list[int] = []

    def watch(cargo: Cargo, layer: int, to_pool: bool, timeout_s: float) -> None:
        waits.append(layer)
        on_wait(cargo, layer, to_pool, timeout_s)

    cold.board.on_wait = watch
    assert_only_the_cold_row_is_lost(cold, rows)
    assert waits == sorted(set(waits)), "it was waited for after it was lost"


def test_one_patience_for_all() -> None:
    """Thirty cold slots and a link that stands still would hold everybody up for minutes."""
    model = model_of()
    cold = make_cold_bench(model, patience_s=3.0)
    slots = range(4)
    for slot in slots:
        cold.put_cold(slot, random_peft(model, rank=4, seed=slot))
    began_s = cold.clock.now_s()

    def pass_time(cargo: Cargo, layer: int, to_pool: bool, timeout_s: float) -> None:
        del to_pool
        if cargo.slot == 0 and timeout_s >= 1.0:
            cold.clock.advance(1.0)
            cargo.land(layer + 1)
        else:
            cold.clock.advance(timeout_s)

    cold.board.on_wait = pass_time
    rows = [
        StepRow(slot, [1, 2], 2, 0, cold.bench.take(1), slot, True, SamplingParams())
        for slot in slots
    ]
    assert cold.run(rows).lost == tuple(slots)
    assert cold.clock.now_s() - began_s == pytest.approx(3.0)


def test_what_landed_meanwhile_makes_up_for_a_helper() -> None:
    """A killed helper costs a request its start only where there is no other way."""
    cold, rows = two_lost_one_not()
    cold.ways[1] = ASSIST
    cargo = cold.board.cargo[1]
    cargo.read(cargo.num_layers)
    expected = cold.run(rows)
    assert not expected.lost
    num_sent = len(cold.handover.sent)

    sites = cold.bench.loaded.image_spec.sites

    def dies(errand: Errand) -> bool:
        cargo.land(sites[errand.sites[0]].layer + 1)
        return True

    cold.handover.fails = dies
    result = cold.run(rows)
    assert result.tokens == expected.tokens and not result.lost
    assert len(cold.handover.sent) == num_sent + 1, "it was asked again"


def test_a_helper_that_fails_loses_the_row() -> None:
    """Its product is nowhere: the row's tokens would be somebody else's."""
    cold, rows = two_lost_one_not()
    cold.ways[1] = ASSIST
    cargo = cold.board.cargo[1]
    cargo.read(cargo.num_layers)
    cold.handover.fails = lambda errand: len(cold.handover.sent) > 5
    assert_only_the_cold_row_is_lost(cold, rows)
    assert len(cold.handover.sent) == 6, "it was asked again"
    cold.handover.fails = lambda errand: False
    assert not cold.run(rows).lost


@pytest.mark.parametrize("is_loose", [False, True], ids=["none-up", "loose"])
def test_who_cannot_be_helped_holds_up_nobody(is_loose: bool) -> None:
    """The last helper died after the plan was made, or the image lies where none can look: its
    layers are a whole load away, and everybody in the step waited for them.
    """
    model = model_of()
    cold = make_cold_bench(model)
    cold.bench.put_adapter(0, random_peft(model, rank=5, seed=1))
    cargo = cold.put_cold(1, random_peft(model, rank=9, seed=2), ASSIST, is_loose=is_loose)
    cargo.read(cargo.num_layers)
    cargo.land(1)
    waits: list[int] = []
    cold.board.on_wait = lambda cargo, layer, to_pool, timeout_s: waits.append(layer)
    cold.handover.refuses = True
    rows = [prompt_row(cold, row, slot) for row, slot in ((3, -1), (4, 0), (5, 1))]
    assert_only_the_cold_row_is_lost(cold, rows)
    assert not waits
    cargo.land(cargo.num_layers)
    assert not cold.run(rows).lost


def test_a_device_says_later_what_it_missed() -> None:
    """On a GPU the host does not look while the step runs; only then is the answer known."""
    cold, rows = two_lost_one_not()
    cold.ways[1] = ASSIST
    cold.handover.late = {1, 7}
    assert_only_the_cold_row_is_lost(cold, rows)
    assert not cold.handover.late


def test_a_lost_row_goes_on_from_its_last_token() -> None:
    """As a preempted one does: all but the last token is computed again, and the last one fed on
    the device, where the lost step must not have left another."""
    model = model_of()
    adapter = random_peft(model, rank=9, seed=2)
    model = model_of()
    adapter = random_peft(model, rank=9, seed=2)
    prompt, greedy = PROMPTS[5], SamplingParams(logprobs=0)

    def decode(cold: ColdBench, *, loses: bool) -> tuple[int, float]:
        cold.put_cold(1, adapter)
        pages = cold.bench.take(2)
        cold.run([StepRow(5, prompt, len(prompt), 0, pages, 1, True, greedy)])
        fed = StepRow(5, (), 1, len(prompt), pages, 1, True, greedy)
        if loses:
            cold.board.begin(1, 99)
            cold.board.on_wait = nothing_comes
            assert cold.run([fed]).lost == (5,)
            cold.arrive(1)
            pages = cold.bench.take(2)
            cold.run([StepRow(5, prompt, len(prompt), 0, pages, 1, False, greedy)])
            fed = StepRow(5, (), 1, len(prompt), pages, 1, True, greedy)
        result = cold.run([fed])
        return result.tokens[5], result.logprobs[5].logprob

    expected = decode(make_cold_bench(model), loses=False)
    assert decode(make_cold_bench(model), loses=True) == pytest.approx(expected, abs=1e-5)


def test_a_step_says_what_helpers_cost_it() -> None:
    """Their price would stay the calibration's."""
    model = model_of()
    cold = make_cold_bench(model)
    cargo = cold.put_cold(1, random_peft(model, rank=9, seed=2), ASSIST)
    cargo.read(cargo.num_layers)
    send = cold.handover.send

    def slowly(errand: Errand, hidden_TI: Tensor):
        cold.clock.advance(0.25)
        return send(errand, hidden_TI)

    cold.handover.send = slowly
    result = cold.run([prompt_row(cold, 5, 1)])
    num_sent = len(cold.handover.sent)
    assert num_sent and (result.num_errands, result.helped_s) == (num_sent, 0.25 * num_sent)
    assert cold.run([prompt_row(cold, 4, -1)]).num_errands == 0


def test_an_image_that_helpers_refuse_costs_its_own_rows_alone() -> None:
    """One broken layout would end the step, and the engine with it."""
    model = model_of()
    cold = make_cold_bench(model)
    cargo = cold.put_cold(1, random_peft(model, rank=9, seed=2), ASSIST)
    cargo.read(cargo.num_layers)

    def refuse(slot: int, image: HeldImage) -> None:
        raise ValueError(f"slot {slot} has a layout of other sites")

    cold.handover.open = refuse
    result = cold.run([prompt_row(cold, 3, -1), prompt_row(cold, 5, 1)])
    assert result.lost == (5,) and set(result.tokens) == {3}
    cold.runner.detach(1)
