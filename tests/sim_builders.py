"""Small simulated servers and workloads: a few pages, a few rows, steps of milliseconds."""

from __future__ import annotations

import random

from lorry.bench.sim.profile import UNITS, Coefficient, Profile, checked
from lorry.bench.workload.records import BASE, Piece, Workload, WorkloadAdapter, WorkloadRequest

SMALL = {
    "steps_s": 0.011,
    "prompt_chunks_s": 0.0013,
    "prompt_tokens_s": 0.00017,
    "prompt_pairs_s": 3.1e-7,
    "decode_rows_s": 0.0007,
    "decode_context_s": 1.9e-5,
    "adapters_s": 0.0003,
    "adapter_bytes_s": 1.7e-9,
    "lora_token_bytes_s": 2.3e-11,
    "load_s": 0.004,
    "load_bytes_per_s": 2e6,
    "host_bytes": 60_000,
    "disk_bytes_per_s": 1e6,
    "num_pages": 40,
    "page_bytes": 1024,
    "tokens_per_page": 4,
    "max_running": 6,
    "max_waiting": 100,
    "max_step_tokens": 24,
    "max_bypass_s": 0.3,
    "max_loads": 2,
    "max_model_len": 128,
    "max_rank": 256,
    "ttft_s": 0.5,
    "tpot_s": 0.1,
    "overlaps": 0,
    "request_s": 0.0011,
    "request_s_per_token": 1.3e-6,
    "reply_s": 0.0007,
    "adapter_bytes_per_rank": 300,
    "image_stretch": 1.1,
}


def make_profile(**overrides: float) -> Profile:
    """A server of this test's own; every number is made up."""
    values = SMALL | overrides
    coefficients = {
        name: Coefficient(values[name], unit, "assumed: a test") for name, unit in UNITS.items()
    }
    return checked(Profile("small", "of a test", coefficients))


def make_workload(*requests: WorkloadRequest, ranks: tuple[int, ...] = ()) -> Workload:
    """Adapters a0, a1, ... of these ranks."""
    adapters = tuple(WorkloadAdapter(f"a{i}", rank, 1 / len(ranks)) for i, rank in enumerate(ranks))
    return Workload("test", 0, "", adapters, tuple(sorted(requests, key=lambda it: it.at_s)))


def make_wish(
    at_s: float, num_prompt: int = 5, num_new: int = 4, *, adapter: str = BASE
) -> WorkloadRequest:
    return WorkloadRequest(at_s, adapter, (Piece(1, num_prompt),), num_new)


def draw_workload(seed: int, *, num_requests: int, rate_per_s: float) -> Workload:
    """Prompts and answers of many lengths, some of them larger than the small pool."""
    rng = random.Random(seed)
    ranks = tuple(rng.choice((1, 4, 8, 16, 30)) for _ in range(8))
    at_s, requests = 0.0, list[WorkloadRequest]()
    for _ in range(num_requests):
        at_s += rng.expovariate(rate_per_s)
        adapter = BASE if rng.random() < 0.2 else f"a{int(8 * rng.random() ** 2)}"
        num_new = rng.choice((1, 2, 3, 5, 30, 60))
        requests.append(make_wish(at_s, rng.randint(1, 50), num_new, adapter=adapter))
    return make_workload(*requests, ranks=ranks)


def draw_talks(seed: int, *, num_requests: int, rate_per_s: float) -> Workload:
    """Adapters with a system prompt each; half of the requests go on from an earlier prompt."""
    rng = random.Random(seed)
    ranks = tuple(rng.choice((1, 4, 8, 16)) for _ in range(6))
    at_s, requests = 0.0, list[WorkloadRequest]()
    for number in range(num_requests):
        at_s += rng.expovariate(rate_per_s)
        adapter = int(6 * rng.random() ** 2)
        before = [one for one in requests if one.adapter == f"a{adapter}"]
        said = (Piece(1000 + adapter, 13),)
        if before and rng.random() < 0.5:
            said = rng.choice(before).prompt[:4]
        prompt = (*said, Piece(number, rng.randint(1, 20)))
        num_new = rng.choice((1, 2, 5, 30))
        requests.append(WorkloadRequest(at_s, f"a{adapter}", prompt, num_new))
    return make_workload(*requests, ranks=ranks)
