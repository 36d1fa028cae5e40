"""The whole engine over the Triton backends, in their interpreter: PEFT's tokens from pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lorry.server.execution.recorder import PlainRecorder, Reads, Recorder, Replay
from lorry.tests.builders import (
    AdapterSpec,
    generate,
    load_peft,
    load_reference,
    make_adapter,
    make_llama,
)
from lorry.tests.engine_builders import make_submit, open_store, register, start_engine
from lorry.tests.parity import assert_same_tokens

SPECS = (
    AdapterSpec("r1", rank=1, seed=1),
    AdapterSpec("r5-attention", rank=5, seed=2, target_modules=("q_proj", "v_proj")),
    AdapterSpec("r20", rank=20, seed=3),
)
# (adapter or base, tokens of the prompt): more than run at once, chunks longer than a page.
ASKS = (("", 3), ("r1", 20), ("r20", 9), ("r5-attention", 2), ("", 17), ("r20", 5))
NUM_NEW = 4
PAGE_BYTES = 8192


class Watching(PlainRecorder):
    """Counts the steps that were replayed."""

    def __init__(self) -> None:
        self.num_replays = 0

    def record(self, work: Callable[[], None], reads: Reads) -> Replay:
        again = super().record(work, reads)

        def replay() -> None:
            self.num_replays += 1
            again()

        return replay


class Place:
    """A model and its adapters on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # One layer: in the interpreter each costs seconds, and the kernels' own tests have several.
        self.model_dir = make_llama(
            root / "model", vocab_size=97, max_position_embeddings=24, num_hidden_layers=1
        )
        model = load_reference(self.model_dir)
        self.adapters = {spec.name: make_adapter(model, root, spec) for spec in SPECS}
        self.prompts = [
            [(7 * i + 3 * length) % 90 + 3 for i in range(length)] for _, length in ASKS
        ]

    def answer(self, kernels: str, recorder: Recorder | None) -> list[list[int]]:
        """What an engine with these kernels says, whose free pages hold NaN."""
        ours = start_engine(
            self.model_dir,
            num_pages=40,
            page_bytes=PAGE_BYTES,
            kernels=kernels,
            recorder=recorder,
            max_rank=20,
            max_running=4,
            max_step_tokens=16,
        )
        store = open_store(self.root / f"store-{kernels}", self.model_dir, ours.runner)
        cards = {
            name: register(
                store,
                name,
                (path / "adapter_config.json").read_bytes(),
                (path / "adapter_model.safetensors").read_bytes(),
            )
            for name, path in self.adapters.items()
        }
        return ours.ask(
            [
                make_submit(i, prompt, cards.get(name), max_new_tokens=NUM_NEW)
                for i, ((name, _), prompt) in enumerate(zip(ASKS, self.prompts, strict=True))
            ]
        )


@pytest.mark.slow
@pytest.mark.interpreter
def test_mixed_steps_in_triton_give_the_tokens_of_the_reference_and_of_peft(tmp_path: Path) -> None:
    """Kernels right one by one, and wrong behind the engine: lists, pages, padding, feeding."""
    place, recorder = Place(tmp_path), Watching()
    ours = place.answer("triton", recorder)
    assert recorder.num_replays > 1, "no decode step went the recorded way"
    reference = place.answer("reference", None)
    for (name, _), prompt, tokens, theirs in zip(ASKS, place.prompts, ours, reference, strict=True):
        model = (
            load_peft(place.model_dir, place.adapters[name])
            if name
            else load_reference(place.model_dir)
        )
        peft = generate(model, prompt, NUM_NEW)
        for one in (tokens, theirs):
            assert_same_tokens(
                model, prompt, one, peft, max_new_tokens=NUM_NEW, stop_ids=frozenset({1})
            )
