"""The Triton kernels of attention on a GPU, at the shapes of real models, against fp32."""

from __future__ import annotations

import pytest
import torch

from lorry.kernels.attention import (
    AttentionBackend,
    AttentionOptions,
    AttentionWork,
    paged_attention,
)
from lorry.tests.attention_builders import Step, triton_backend
from lorry.tests.kernels.tolerances import RELATIVE_ERROR, relative_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# query heads, KV heads, head size
MODELS = {"llama-8b": (32, 8, 128), "qwen-0.5b": (14, 2, 64), "gemma3-1b": (4, 1, 256)}
STEPS = {
    "decode": ([511, 512, 0, 15, 4000, 2047], [1, 1, 1, 1, 1, 1]),
    "prefill": ([0, 700], [1000, 300]),
    "mixed": ([300, 0, 1500, 31], [1, 513, 1, 100]),
}


def make_step(model: str, case: str, dtype: torch.dtype) -> Step:
    heads, kv_heads, head_dim = MODELS[model]
    return Step(
        STEPS[case],
        heads,
        kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        device=torch.device("cuda"),
        cleared=False,
    )


def make_options(model: str, option: str) -> AttentionOptions:
    heads, _, head_dim = MODELS[model]
    if option == "plain":
        return AttentionOptions(head_dim**-0.5)
    return AttentionOptions(head_dim**-0.5, 400, 20.0, torch.linspace(-2, 2, heads, device="cuda"))


@pytest.mark.parametrize("option", ["plain", "all"])
@pytest.mark.parametrize("case", STEPS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", RELATIVE_ERROR, ids=str)
def test_as_close_to_fp32_as_the_dtype_allows(
    dtype: torch.dtype, model: str, case: str, option: str
) -> None:
    """Tensor cores, real pages and a launch of hundreds of programs: nothing of it was run on the
    machine where this was written."""
    step, options = make_step(model, case, dtype), make_options(model, option)
    out = step.run(options, triton_backend(step))
    assert relative_error(out, step.expected(options)) <= RELATIVE_ERROR[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_row_is_bit_for_bit_the_same_in_any_batch(dtype: torch.dtype) -> None:
    """On a GPU too, the order of a row's sum is its own."""
    step, options = make_step("llama-8b", "mixed", dtype), make_options("llama-8b", "all")
    together = step.run(options, triton_backend(step))
    for request in range(4):
        work, rows = step.alone(request)
        query_THK = torch.cat(step.q)[rows]
        out = step.run(options, triton_backend(step), work=work, query_THK=query_THK)
        assert torch.equal(out, together[rows])


class Recorded:
    """A layer of the step, captured with one request, at eight rows."""

    def __init__(self, step: Step, options: AttentionOptions, backend: AttentionBackend) -> None:
        self.step, self.options, self.backend = step, options, backend
        self.queries = torch.cat(step.q)
        self.query_THK = self.queries.new_full((8, *self.queries.shape[1:]), torch.nan)
        first, _ = step.alone(2)
        backend.prepare(first, fixed=True)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._attend(first)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._out_THK = self._attend(first)

    def replay(self, work: AttentionWork, rows: slice) -> torch.Tensor:
        """Nothing here waits for the device."""
        self.query_THK.fill_(torch.nan)
        self.query_THK[: work.num_tokens] = self.queries[rows]
        self.backend.prepare(work, fixed=True)
        self._graph.replay()
        return self._out_THK[: work.num_tokens].clone()

    def eager(self, work: AttentionWork, rows: slice) -> torch.Tensor:
        """The same step without a graph."""
        return self.step.run(self.options, self.backend, work=work, query_THK=self.queries[rows])

    def _attend(self, work: AttentionWork) -> torch.Tensor:
        return paged_attention(
            self.query_THK,
            self.step.kv,
            work,
            layer=1,
            options=self.options,
            backend=self.backend,
        )


BUSY_CYCLES = 100_000_000  # about a twentieth of a second


@pytest.mark.parametrize("waits", [True, False], ids=["waits", "runs-ahead"])
@pytest.mark.parametrize("how", ["graph", "eager", "in-turn"])
def test_any_later_step_finds_its_own_lists(how: str, waits: bool) -> None:
    """Captured with one request, replayed for any, at contexts cut and whole. Where the host runs
    ahead of a busy device, a list written over before its copy was made is another step's."""
    step = make_step("llama-8b", "decode", torch.bfloat16)
    options = make_options("llama-8b", "all")
    recorded = Recorded(step, options, triton_backend(step, max_rows=8))
    expected = step.expected(options)
    whole = (step.work, slice(0, 6))
    steps = [*(step.alone(request) for request in (2, 4, 0, 5)), whole]
    steps += [*(step.alone(request) for request in (1, 3, 4)), whole, step.alone(2)]
    torch.cuda.synchronize()
    if not waits:
        torch.cuda._sleep(BUSY_CYCLES)
    outs: list[torch.Tensor] = []
    for i, (work, rows) in enumerate(steps):
        is_graph = how == "graph" or (how == "in-turn" and i % 2 == 0)
        outs.append((recorded.replay if is_graph else recorded.eager)(work, rows))
        if waits:
            torch.cuda.synchronize()
    for out, (_, rows) in zip(outs, steps, strict=True):
        assert relative_error(out, expected[rows]) <= RELATIVE_ERROR[torch.bfloat16]
