"""For tests of execution: a runner over a tiny model, adapters in its pages, a small driver.

`serve` is a toy engine: every request gets pages of its own, prompts go in by chunks, tokens
are fed back on the device. It has no pool rules, so that a failure here is the runner's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from lorry.adapters.image import ImageLayout, SiteRank, plan_image
from lorry.adapters.packing import pack_image
from lorry.server.execution.batch import StepCapacity, StepRow
from lorry.server.execution.model import LoadedModel, prepare_model
from lorry.server.execution.recorder import Recorder
from lorry.server.execution.runner import Runner
from lorry.server.scheduling.sampling import SamplingParams, TokenLogprobs
from lorry.tests.builders import ALL_LINEAR
from lorry.tests.parity import assert_same_tokens

LIMITS = StepCapacity(max_running=16, max_step_tokens=256, max_model_len=256, max_rows=16)


def tiny_llama(*, seed: int = 0, **overrides: Any) -> LlamaForCausalLM:
    """A random tiny Llama with grouped queries, in memory; it never says stop."""
    settings: dict[str, Any] = {
        "vocab_size": 131,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    settings.update(overrides)
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**settings)).eval()


def random_peft(
    model: PreTrainedModel,
    *,
    rank: int,
    seed: int = 0,
    targets: Sequence[str] = ALL_LINEAR,
    **options: Any,
) -> PeftModel:
    """PEFT's own model with random factors: its B starts at zero, which would prove nothing."""
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(targets),
        task_type="CAUSAL_LM",
        **options,
    )
    peft_model = get_peft_model(copy.deepcopy(model), config).eval()
    generator = torch.Generator().manual_seed(1000 + seed)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.4 / parameter.shape[1] ** 0.5, generator=generator)
    return peft_model


def pack_peft(loaded: LoadedModel, peft_model: PeftModel) -> tuple[ImageLayout, torch.Tensor]:
    """Layout and pages of what PEFT holds, straight from its modules."""
    by_name = {site.name: idx for idx, site in enumerate(loaded.image_spec.sites)}
    ranks: list[SiteRank] = []
    weights: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, module in peft_model.base_model.model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            site = by_name[name]
            lora_a = module.lora_A["default"].weight.detach()
            lora_b = module.lora_B["default"].weight.detach()
            ranks.append(SiteRank(site, lora_a.shape[0], float(module.scaling["default"])))
            weights[site] = (lora_a, lora_b)
    layout = plan_image(loaded.image_spec, ranks)
    return layout, pack_image(loaded.image_spec, layout, weights)


@dataclass
class Bench:
    """A runner whose pages are handed out in a scrambled order and never come back."""

    loaded: LoadedModel
    runner: Runner
    free: list[int]
    adapter_pages: dict[int, list[int]] = field(default_factory=dict)

    def take(self, count: int) -> list[int]:
        taken, self.free = self.free[:count], self.free[count:]
        assert len(taken) == count, "the test's pool is too small"
        return taken

    def put_adapter(self, slot: int, peft_model: PeftModel) -> None:
        layout, pages_PE = pack_peft(self.loaded, peft_model)
        pages = self.take(layout.num_pages)
        self.runner.pool_PE[pages] = pages_PE.to(self.loaded.device)
        self.runner.attach(slot, layout, pages)
        self.adapter_pages[slot] = pages


def make_bench(
    model: PreTrainedModel,
    *,
    num_pages: int = 400,
    limits: StepCapacity = LIMITS,
    kernels: str = "auto",
    recorder: Recorder | None = None,
    device: str = "cpu",
    prepare: Callable[[PreTrainedModel], LoadedModel] = prepare_model,
) -> Bench:
    """The model is copied: the one given stays the reference. With a recorder the runner is warmed
    up, which records.
    """
    loaded = prepare(copy.deepcopy(model).to(device))
    runner = Runner(loaded, num_pages=num_pages, limits=limits, kernels=kernels, recorder=recorder)
    if recorder is not None:
        runner.warm_up()
    runner.poison(range(num_pages))
    generator = torch.Generator().manual_seed(5)
    return Bench(loaded, runner, torch.randperm(num_pages, generator=generator).tolist())


@dataclass
class Ask:
    prompt: list[int]
    slot: int = -1
    num_new: int = 12
    chunk: int = 1000  # prompt tokens a step
    delay: int = 0  # steps to wait before the first
    temperature: float = 0.0
    seed: int = 0
    sampling: SamplingParams | None = None  # instead of temperature and seed
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # of the tokens, where asked for
    told: list[TokenLogprobs] = field(default_factory=list)  # of the prompt, where asked for

    @property
    def params(self) -> SamplingParams:
        return self.sampling or SamplingParams(temperature=self.temperature, seed=self.seed)


def serve(bench: Bench, asks: Sequence[Ask]) -> list[list[int]]:
    """Run all requests side by side to their end; returns the new tokens of each."""
    tokens_per_page = bench.loaded.geometry.tokens_per_page
    pages = [bench.take(-(-(len(a.prompt) + a.num_new) // tokens_per_page)) for a in asks]
    done = [0] * len(asks)
    known = [list(ask.prompt) for ask in asks]
    step = 0
    while any(len(ask.tokens) < ask.num_new for ask in asks):
        rows: list[StepRow] = []
        for i in sorted(range(len(asks)), key=lambda i: asks[i].slot):
            ask = asks[i]
            if step < ask.delay or len(ask.tokens) >= ask.num_new:
                continue
            feed = ask.prompt[done[i] : done[i] + ask.chunk]
            count = max(len(feed), 1)
            sampling = done[i] + count >= len(ask.prompt)
            end = (
                min(done[i] + count, len(ask.prompt) - 1) if ask.params.prompt_logprobs >= 0 else 0
            )
            rows.append(
                StepRow(
                    i,
                    feed,
                    count,
                    done[i],
                    pages[i],
                    ask.slot,
                    sampling,
                    ask.params,
                    known_ids=known[i],
                    num_prompt=len(ask.prompt),
                    tell=range(done[i], max(end, done[i])),
                )
            )
            done[i] += count
        step += 1
        if not rows:
            continue
        result = bench.runner.run(rows)
        assert set(result.tokens) == {row.row for row in rows if row.sample}
        for i, token in result.tokens.items():
            asks[i].tokens.append(token)
            known[i].append(token)
        for i, record in result.logprobs.items():
            asks[i].logprobs.append(record)
        for told in result.told:
            assert told.first_position == len(asks[told.row].told) + 1
            asks[told.row].told.extend(told.logprobs)
    return [ask.tokens for ask in asks]


@torch.no_grad()
def greedy(model: Any, prompt: list[int], num_new: int = 12) -> list[int]:
    """The reference's own `generate`, without the prompt."""
    ids = torch.tensor([prompt])
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_new,
        do_sample=False,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def make_prompt(num_tokens: int, *, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(131, (num_tokens,), generator=generator).tolist()


def assert_mixed_batch_equals_peft(
    bench: Bench, model: PreTrainedModel, adapters: Sequence[PeftModel]
) -> None:
    """Two adapters and base rows, in chunks, some late: each has the tokens it has alone."""
    for slot, adapter in enumerate(adapters):
        bench.put_adapter(slot, adapter)
    asks = [
        Ask(make_prompt(9 + 5 * i, seed=i), slot=slot, chunk=4 + i, delay=i % 2, num_new=8)
        for i, slot in enumerate([-1, 0, 0, 1, -1, 1])
    ]
    changed = 0
    for ask, ours in zip(asks, serve(bench, asks), strict=True):
        reference = adapters[ask.slot] if ask.slot >= 0 else model
        assert_same_tokens(reference, ask.prompt, ours, greedy(reference, ask.prompt, 8))
        if ask.slot >= 0:
            base = greedy(model, ask.prompt, 8)
            changed += sum(a != b for a, b in zip(ours, base, strict=True))
    assert changed > 0.3 * 8 * 4, "the adapters change too little"
