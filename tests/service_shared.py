"""The server that the tests of `tests/service` share, and what PEFT answers in its place.

Owns the model, the adapters that are always there and the pressure: a pool that holds neither all
adapters nor all requests, prompts that go in by chunks. Handed out by tests/service/conftest.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorry import Client
from lorry.bench.storm_audit import complaints
from lorry.proto import lorry_pb2 as pb
from lorry.server.clock import MonotonicClock
from lorry.tests.builders import (
    ALL_LINEAR,
    EOS_ID,
    AdapterSpec,
    generate,
    load_peft,
    load_reference,
    make_adapter,
    make_llama,
    make_tokenizer,
)
from lorry.tests.parity import assert_same_tokens
from lorry.tests.service_builders import ServerProcess, running_server

MAX_STEP_TOKENS = 24
MAX_RUNNING = 12
FLAGS = (
    *("--pool-bytes", "608KiB", "--debug"),
    *("--max-running", str(MAX_RUNNING), "--max-step-tokens", str(MAX_STEP_TOKENS)),
)
CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
SPECS = (
    AdapterSpec("r1", rank=1, seed=1),
    AdapterSpec("r5-attention", rank=5, seed=2, target_modules=ALL_LINEAR[:4]),
    AdapterSpec("r8", rank=8, seed=3, options=(("use_rslora", True),)),
    AdapterSpec("r12-mlp", rank=12, seed=4, target_modules=ALL_LINEAR[4:]),
    AdapterSpec("r24-regex", rank=24, seed=5, target_modules=r".*\.1\..*_proj"),
    AdapterSpec("r32", rank=32, seed=8, target_modules=("q_proj", "v_proj")),
    AdapterSpec("r48", rank=48, seed=9, target_modules=("down_proj",)),
    AdapterSpec("r64", rank=64, seed=6, target_modules="all-linear"),
    AdapterSpec(
        "patterns",
        rank=4,
        seed=7,
        options=(
            ("rank_pattern", {"q_proj": 17, r"layers\.1\.mlp\.up_proj": 33}),
            ("alpha_pattern", {"q_proj": 9}),
        ),
    ),
)
SETTLE_S = 30.0  # a test that leaves the server busy for longer has leaked


@dataclass
class SharedServer:
    """A server under pressure, a client of it, and the references to judge it by."""

    process: ServerProcess
    client: Client
    model_dir: Path
    step_log: Path
    adapter_dirs: dict[str, Path]  # of SPECS, by name; all are uploaded
    _models: dict[str, Any] = field(default_factory=dict[str, Any])
    _answers: dict[tuple[str, tuple[int, ...]], list[int]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return self.process.address

    def model(self, adapter: str) -> Any:
        """The base, or PEFT's model with this adapter of SPECS; it never says stop."""
        if adapter not in self._models:
            folder = self.adapter_dirs[adapter] if adapter else None
            model = load_peft(self.model_dir, folder) if folder else load_reference(self.model_dir)
            model.generation_config.eos_token_id = None
            self._models[adapter] = model
        return self._models[adapter]

    def expected(self, adapter: str, prompt_ids: Sequence[int], num_new: int) -> list[int]:
        """What PEFT generates greedily when end of sequence is ignored."""
        key = (adapter, tuple(prompt_ids))
        known = self._answers.get(key, [])
        if len(known) < num_new:
            known = generate(self.model(adapter), list(prompt_ids), num_new)
            self._answers[key] = known
        return known[:num_new]

    def check(
        self,
        adapter: str,
        prompt: str | Sequence[int],
        tokens: Sequence[int],
        num_new: int,
        *,
        ignore_eos: bool = False,
    ) -> int:
        """Number of ties; fails unless `tokens` are PEFT's answer to the same request."""
        ids = make_tokenizer().encode(prompt) if isinstance(prompt, str) else list(prompt)
        expected = self.expected(adapter, ids, num_new)
        stop_ids = set[int]() if ignore_eos else {EOS_ID}
        if not ignore_eos and EOS_ID in expected:
            expected = expected[: expected.index(EOS_ID) + 1]
        return assert_same_tokens(
            self.model(adapter), ids, tokens, expected, max_new_tokens=num_new, stop_ids=stop_ids
        )

    def settle(self) -> pb.Stats:
        """Waits until nobody is in; fails when anything was leaked.

        A client that was killed or closed is gone before its server has heard of it: so it is
        asked again, and only what it still says after long is a leak.
        """
        stats = self.client.stats(pages=True)
        for _ in until(SETTLE_S):
            if not complaints(stats):
                break
            stats = self.client.stats(pages=True)
        assert not complaints(stats), complaints(stats)
        return stats

    def tidy(self) -> None:
        """Deletes what a test uploaded, and sees its pages come back."""
        for card in list(self.client.adapters.list()):
            if card.name not in self.adapter_dirs:
                self.client.adapters.delete(card.name)
        names = {one.name for one in self.client.stats().residents}
        for _ in until(SETTLE_S):
            if names <= self.adapter_dirs.keys():
                break
            names = {one.name for one in self.client.stats().residents}
        assert names <= self.adapter_dirs.keys(), "a deleted adapter keeps its pages"


def until(seconds: float) -> Iterator[None]:
    """Turns of a loop that asks a server again and again, for so long at most."""
    clock = MonotonicClock()
    end_s = clock.now_s() + seconds
    while clock.now_s() < end_s:
        yield


@contextmanager
def open_shared_server(home: Path) -> Iterator[SharedServer]:
    model_dir = make_llama(home / "model")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(model_dir)
    reference = load_reference(model_dir)
    folders = {spec.name: make_adapter(reference, home / "adapters", spec) for spec in SPECS}
    step_log = home / "steps.csv"
    # A moment: it has few sizes of steps.
    flags = (*FLAGS, "--step-log", str(step_log), "--calibrate", "60")
    with (
        running_server(model_dir, home / "store", *flags) as process,
        Client(process.address, timeout_s=120) as client,
    ):
        for folder in folders.values():
            client.adapters.upload(folder)
        yield SharedServer(process, client, model_dir, step_log, folders)
