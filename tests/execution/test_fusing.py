"""Compiled layers: the same tokens, code shared by all layers, and none of it made in a step.

The compiler's own fusing is left out here (it takes minutes and a GPU to mean something): graphs
are taken and run as they are. What is tested is where they begin and end.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from transformers import PreTrainedModel

from lorry.server.config import ModelConfig, ServerConfig
from lorry.server.errors import ConfigError, ModelRefused
from lorry.server.execution.fusing import LayerCompiler, compile_layers
from lorry.server.execution.model import LoadedModel, prepare_model
from lorry.server.execution.selfproof import prove
from lorry.server.execution.siblings import merge_siblings
from lorry.tests.execution_builders import (
    Ask,
    Bench,
    greedy,
    make_bench,
    make_prompt,
    random_peft,
    serve,
    tiny_llama,
)
from lorry.tests.parity import assert_same_tokens

HEAVY = ("mm", "linear", "bmm", "softmax", "scaled_dot_product")


@pytest.fixture(autouse=True, scope="module")
def _fresh_compiler() -> Iterator[None]:
    """What torch remembers of compiled code is the process's: one file's must not be another's.

    It also writes a trace for whoever listens, and pytest does: most of the time went there.
    """
    trace = logging.getLogger("torch.__trace")
    level = trace.level
    trace.setLevel(logging.WARNING)
    torch.compiler.reset()
    yield
    torch.compiler.reset()
    trace.setLevel(level)


class _Graphs:
    """Stands where the compiler would: keeps what it is given, and runs it as it is."""

    def __init__(self) -> None:
        self.called: list[list[str]] = []
        self.are_wrong = False

    def __call__(self, graph: GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.called.append([str(n.target) for n in graph.graph.nodes if n.op.startswith("call")])

        def run(*args: Any) -> tuple[Any, ...]:
            outs = graph.forward(*args)
            is_float = [isinstance(out, Tensor) and out.is_floating_point() for out in outs]
            factor = 1.5 if self.are_wrong else 1
            return tuple(o * factor if f else o for o, f in zip(outs, is_float, strict=True))

        return run


@dataclass(frozen=True)
class _Compiled:
    model: PreTrainedModel  # as it was
    bench: Bench
    graphs: _Graphs
    compiler: LayerCompiler


@pytest.fixture(scope="module")
def compiled() -> _Compiled:
    graphs, compilers = _Graphs(), list[LayerCompiler]()

    def prepare(model: PreTrainedModel) -> LoadedModel:
        loaded = prepare_model(model)
        merge_siblings(model, loaded.siblings)
        compilers.append(compile_layers(model, loaded.context, compile_graph=graphs))
        return loaded

    model = tiny_llama(num_hidden_layers=3)
    return _Compiled(model, make_bench(model, prepare=prepare), graphs, compilers[0])


def test_layers_share_their_code_and_it_holds_no_product(compiled: _Compiled) -> None:
    """A layer's number in the code would compile each layer anew, minutes at every start; a
    product in it would be traced with the step that it was made in."""
    assert compiled.compiler.num_graphs == len(compiled.graphs.called)
    names = [name for called in compiled.graphs.called for name in called]
    # Two norms and one activation, for one token and for more, however many layers.
    assert sum("rsqrt" in name for name in names) == 4
    assert sum("silu" in name for name in names) == 2
    assert not [name for name in names if any(heavy in name for heavy in HEAVY)]


def test_no_step_waits_for_the_compiler(compiled: _Compiled) -> None:
    """Steps of one token and of many, with adapters and without, give the model's own tokens by
    code that was there before them."""
    model, bench = compiled.model, compiled.bench
    adapter = random_peft(model, rank=5)
    bench.put_adapter(0, adapter)
    for slots in ((-1,), (0,), (-1, 0, 0)):
        asks = [
            Ask(make_prompt(5 + 6 * i, seed=i), slot=slot, chunk=1 + 3 * i, num_new=4)
            for i, slot in enumerate(slots)
        ]
        for ask, ours in zip(asks, serve(bench, asks), strict=True):
            reference = adapter if ask.slot >= 0 else model
            assert_same_tokens(reference, ask.prompt, ours, greedy(reference, ask.prompt, 4))
    assert compiled.compiler.num_late == 0


def test_a_wrong_fusion_does_not_start(compiled: _Compiled) -> None:
    """The proof must run over compiled code, and its other side over the model's own."""
    assert "adapters" in prove(compiled.bench.loaded)
    compiled.graphs.are_wrong = True
    try:
        with pytest.raises(ModelRefused, match="does not prove itself"):
            prove(compiled.bench.loaded)
    finally:
        compiled.graphs.are_wrong = False
    assert compiled.compiler.num_late == 0


def test_what_is_new_after_the_start_runs_uncompiled_and_is_counted() -> None:
    """A request that waits for a compiler waits for seconds."""
    graphs = _Graphs()
    compiler = LayerCompiler(graphs)
    double = torch.compile(lambda x: x * 2, backend=compiler, dynamic=True)
    double(torch.ones(3))
    compiler.seal()
    assert torch.equal(double(torch.ones(3, dtype=torch.int64)), torch.full((3,), 2))
    assert (compiler.num_graphs, compiler.num_late, len(graphs.called)) == (1, 1, 1)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_a_cpu_does_not_compile(device: str) -> None:
    """A switch that makes steps slower, or kernels that a CPU has none of, are refused by name."""
    for flag, switch in (
        ("--compile-layers", {"compile_layers": True}),
        ("--kernels", {"kernels": "triton"}),
    ):
        with pytest.raises(ConfigError, match=flag):
            ServerConfig(ModelConfig("m", device, **switch)).checked()
