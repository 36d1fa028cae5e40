"""The profile a100-13b from what is published: a machine's data sheet, a model's sizes, and what a
token took S-LoRA while nothing was overloaded.

Owns the arithmetic. All coefficients but one follow from sizes and peaks at an assumed efficiency;
what a step costs beside reading the weights (launches, Python, their LoRA kernels) is set by the
mean seconds a token at 1, 2 and 4 requests/s, where every request met its bound. Overload is then
predicted: no attainment, and no throughput of an overloaded server, is read here. Pure.
`python -m lorry.bench.sim.slora_profile` writes the file, and a test holds it to this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .profile import PROFILES_DIR, UNITS, Coefficient, Profile, write_profile
from .slora_published import (
    BOUND_S,
    MEMORY_TOKENS,
    NOT_OVERLOADED,
    NUM_ADAPTERS,
    RANKS,
    Published,
    draw_workload,
)

NAME = "a100-13b"
# Llama-13B: 40 layers of width 5120, each head with keys and values of its own, fp16.
NUM_LAYERS, WIDTH, NUM_PARAMETERS = 40, 5120, 13_015_864_320
NUM_SITES = 4  # q, k, v, o, all WIDTH x WIDTH
KV_TOKEN_BYTES = 2 * 2 * NUM_LAYERS * WIDTH
RANK_BYTES = 2 * NUM_LAYERS * NUM_SITES * (WIDTH + WIDTH)  # of one unit of rank
# A100-80GB SXM, NVIDIA's data sheet.
HBM_BYTES_PER_S, FLOPS = 2.039e12, 312e12
# Assumed: what good kernels of 2023 reach of either peak.
HBM_SHARE, FLOPS_SHARE = 0.8, 0.5
TOKENS_PER_PAGE = 16

SHEET = "NVIDIA's data sheet of the A100-80GB SXM"
AT_HBM = f"2.039e12 bytes/s ({SHEET}) at an assumed {HBM_SHARE:g} of the peak"
AT_FLOPS = f"312e12 flop/s ({SHEET}) at an assumed {FLOPS_SHARE:g} of the peak"
SLORA = "github.com/S-LoRA/S-LoRA"


@dataclass(frozen=True, slots=True)
class Derived:
    """Seconds a unit."""

    weights_s: float  # read once a step
    overhead_s: float  # a step, beside that: the calibrated one
    prompt_token_s: float
    pair_s: float
    context_token_s: float
    adapter_byte_s: float
    lora_token_byte_s: float
    overheads_s: tuple[float, ...]  # of each rate alone: their spread judges the assumptions


def derive() -> Derived:
    read_byte_s = 1 / (HBM_BYTES_PER_S * HBM_SHARE)
    flop_s = 1 / (FLOPS * FLOPS_SHARE)
    weights_s = 2 * NUM_PARAMETERS * read_byte_s
    prompt_token_s = 2 * NUM_PARAMETERS * flop_s
    context_token_s = KV_TOKEN_BYTES * read_byte_s
    overheads = tuple(
        _rowless_step_s(run, prompt_token_s, context_token_s, read_byte_s) - weights_s
        for run in NOT_OVERLOADED
    )
    return Derived(
        weights_s=weights_s,
        overhead_s=float(np.mean(overheads)),
        prompt_token_s=prompt_token_s,
        pair_s=4 * NUM_LAYERS * WIDTH * flop_s,
        context_token_s=context_token_s,
        adapter_byte_s=read_byte_s,
        lora_token_byte_s=flop_s,
        overheads_s=overheads,
    )


def _rowless_step_s(
    run: Published, prompt_token_s: float, context_token_s: float, read_byte_s: float
) -> float:
    """What a step costs without rows, so that requests at this rate take as long as they did.

    In the steady state rate x seconds in decoding requests decode at once (Little's law), and
    between two tokens of a request rate x that time prompts are computed.
    """
    asked = draw_workload(run).requests
    prompts = np.array([request.num_prompt_tokens for request in asked])
    answers = np.array([request.num_new_tokens for request in asked])
    decoding_s = run.mean_latency_s - run.mean_first_s
    per_token_s = decoding_s / (answers.mean() - 1)
    rate_per_s = len(asked) / asked[-1].at_s
    rows = rate_per_s * decoding_s
    context = float((answers * (prompts + answers / 2)).sum() / answers.sum())
    distinct = NUM_ADAPTERS * (1 - (1 - 1 / NUM_ADAPTERS) ** rows)
    adapter_bytes = float(np.mean(RANKS)) * RANK_BYTES
    prompts_s = rate_per_s * per_token_s * float(prompts.mean()) * prompt_token_s
    reading_s = rows * context * context_token_s + distinct * adapter_bytes * read_byte_s
    return float(per_token_s - prompts_s - reading_s)


def make_profile() -> Profile:
    found = derive()
    told = {**_step_values(found), **_memory_values(), **_server_values()}
    return Profile(
        name=NAME,
        about="Llama-13B in fp16 on one A100-80GB as S-LoRA's authors ran it, setting S4: one "
        "coefficient is calibrated on their runs without overload, none on those with it.",
        coefficients={
            name: Coefficient(told[name][0], UNITS[name], told[name][1]) for name in UNITS
        },
    )


Told = dict[str, tuple[float, str]]  # value and source, by name


def _step_values(found: Derived) -> Told:
    each = ", ".join(f"{1000 * one:.1f}" for one in found.overheads_s)
    nothing = "assumed: within steps_s, where their kernels' launches are"
    return {
        "steps_s": (
            found.weights_s + found.overhead_s,
            f"{1000 * found.weights_s:.1f} ms, 26 GB of weights at {AT_HBM}; and "
            f"{1000 * found.overhead_s:.1f} ms, calibrated on {SLORA} benchmarks/paper/synthetic/"
            "slora/synthetic_req_rate_a100-80_S4_slora.jsonl at 1, 2 and 4 requests/s "
            f"({each} ms each alone)",
        ),
        "prompt_chunks_s": (0.0, nothing),
        "prompt_tokens_s": (
            found.prompt_token_s,
            f"2 flop a parameter, 13.0e9 of them, {AT_FLOPS}",
        ),
        "prompt_pairs_s": (found.pair_s, f"4 flop x 40 layers x 5120, {AT_FLOPS}"),
        "decode_rows_s": (0.0, nothing),
        "decode_context_s": (found.context_token_s, f"800 KiB of keys and values, {AT_HBM}"),
        "adapters_s": (0.0, nothing),
        "adapter_bytes_s": (found.adapter_byte_s, f"each adapter read once a step, {AT_HBM}"),
        "lora_token_bytes_s": (found.lora_token_byte_s, f"1 flop a byte of fp16, {AT_FLOPS}"),
    }


def _memory_values() -> Told:
    page_bytes = TOKENS_PER_PAGE * KV_TOKEN_BYTES
    launch = f"{SLORA} benchmarks/paper/synthetic/abort/exp_cmds.sh: --num-token 65000"
    return {
        "load_s": (0.0, "assumed: nothing beside the copy"),
        "load_bytes_per_s": (22e9, "assumed: pinned copies over PCIe 4"),
        "host_bytes": (64 * 2**30, "assumed: room for all 400 adapters, 49 GB"),
        "disk_bytes_per_s": (1e15, "assumed: none; S-LoRA keeps all adapters in host memory"),
        "num_pages": (MEMORY_TOKENS // TOKENS_PER_PAGE, f"{launch}, in pages of 16"),
        "page_bytes": (page_bytes, "16 tokens of 4 bytes x 40 layers x 5120"),
        "tokens_per_page": (TOKENS_PER_PAGE, "Lorry's own"),
        "adapter_bytes_per_rank": (RANK_BYTES, "2 bytes x 40 layers x 4 sites x (5120 + 5120)"),
        "image_stretch": (1.0, "assumed: no loss; a rank of theirs is 4 tokens of memory too"),
    }


def _server_values() -> Told:
    server = f"{SLORA} slora/server/api_server.py"
    return {
        "max_running": (1000, f"{server}: --running_max_req_size"),
        "max_waiting": (10_000, "assumed: Lorry's default, more than are ever sent"),
        "max_step_tokens": (
            MEMORY_TOKENS // 6,
            f"{server}: --batch_max_tokens, a sixth of --max_total_token_num",
        ),
        "max_bypass_s": (5.0, "assumed: Lorry's default"),
        "max_loads": (2, "assumed: Lorry's default"),
        "max_model_len": (3072, f"{server}: --max_req_total_len"),
        "max_rank": (max(RANKS), f"{SLORA} benchmarks/exp_suite.py: S4"),
        "ttft_s": (BOUND_S, f"{SLORA} slora/utils/metric.py"),
        "tpot_s": (1.0, "assumed: neither of the two policies reads it"),
        "overlaps": (0, f"{SLORA} slora/server/router/manager.py: one step after the other"),
        "request_s": (0.005, "assumed: HTTP, tokenizer and two pipes"),
        "request_s_per_token": (0.0, "assumed: small beside the above"),
        "reply_s": (0.005, "assumed: as there, so back"),
    }


if __name__ == "__main__":
    write_profile(make_profile(), PROFILES_DIR / f"{NAME}.json")
