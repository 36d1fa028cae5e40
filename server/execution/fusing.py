"""Fused glue: torch's compiler over what lies between a layer's products.

A decoder layer is some forty small kernels (norms, rotary, activation, residuals) beside its
products and attention. Owns what the compiler may not look into (sites, attention: they run as they
are written), the two shapes that are compiled, and the law that nothing is compiled once that is
done: a step never waits for a compiler. All layers share the code. A switch, off by default;
the self-proof runs over what is compiled, so a wrong fusion serves nobody. Called once, after
the weights are settled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from transformers import PreTrainedModel

from . import interface
from .context import StepContext
from .row_probe import run_rows
from .sites import LoraSite, find_layers

# Tokens of the steps that are compiled for: any number, and one, which the compiler sets apart. It
# takes sizes that are equal once for equal always, so this one must be no width of a model.
COMPILED_TOKENS = (29, 1)

CompileGraph = Callable[[GraphModule, list[Tensor]], Callable[..., Any]]
_log = logging.getLogger(__name__)


class LayerCompiler:
    """Compiles what it is given until it is sealed; what is new after that runs as it is."""

    def __init__(self, compile_graph: CompileGraph) -> None:
        self._compile_graph = compile_graph
        self._is_sealed = False
        self.num_graphs = 0
        self.num_late = 0  # that came after the end, and were not compiled

    def __call__(self, graph: GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        if self._is_sealed:
            self.num_late += 1
            _log.warning(
                "a step is unlike those that the layers were compiled for: %d pieces run as they "
                "are written",
                self.num_late,
            )
            return graph.forward
        self.num_graphs += 1
        return self._compile_graph(graph, inputs)

    def seal(self) -> None:
        self._is_sealed = True


def by_inductor(graph: GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """Fused kernels that round where the model's own operations round.

    Left to itself the compiler keeps fp32 from one operation to the next: other numbers than the
    model's own code gives, and not better ones (tiny Llama, bf16, CPU: off by 3.4 % of the logit
    range, where the model's own and this are off by 2.0 %).
    """
    # Imported here: a server that does not compile does not pay seconds for the compiler.
    from torch._inductor.compile_fx import compile_fx

    return compile_fx(graph, inputs, config_patches={"emulate_precision_casts": True})  # pyright: ignore


def compile_layers(
    model: PreTrainedModel,
    context: StepContext,
    *,
    compile_graph: CompileGraph = by_inductor,
) -> LayerCompiler:
    """Compile the decoder layers for all steps; no site may change its class after this."""
    layers = find_layers(model, int(model.config.get_text_config().num_hidden_layers))[1]
    compiler = LayerCompiler(compile_graph)
    interface.make_opaque(model)
    for layer in layers:
        for module in layer.modules():
            if isinstance(module, LoraSite):
                module.__class__ = _opaque(type(module))
        layer.compile(backend=compiler, dynamic=True)
    for num_tokens in COMPILED_TOKENS:
        run_rows(model, context, range(1, 1 + num_tokens), kept=(0,))
    compiler.seal()
    return compiler


@contextmanager
def as_written(model: PreTrainedModel) -> Generator[None]:
    """The model's own code, compiled or not."""
    if interface.current(model) != interface.OPAQUE_NAME:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@cache
def _opaque(base: type[LoraSite]) -> type[LoraSite]:
    """The same class, whose forward the compiler calls and does not read."""
    forward = torch.compiler.disable(base.forward)
    return type(f"Opaque{base.__name__}", (base,), {"forward": forward})
