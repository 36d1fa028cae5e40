"""Lorry's own backends as ways of this bench: `triton` on CUDA, `cpu` and `tiles`.

Owns their set-up: tables, rooms, the CPU's workspace. The backend's unchecked `add` is timed, as
the checks around it look at shapes alone.
"""

from __future__ import annotations

from ...kernels.lora import LoraBackend, LoraRoom, Workspace, choose_backend
from .inputs import Inputs
from .way import NamedWay, NotMeasured

# Rank rows of the workspace are taken in steps of that many (kernels/lora/workspace.py).
WORKSPACE_ALIGN = 8
# Room is taken as a server takes it, not for the ranks of the case.
DEPLOYED_RANK = 256


class OurWay:
    """A backend over the case's pool."""

    def __init__(self, inputs: Inputs, backend: LoraBackend, *, fixed: bool) -> None:
        self._inputs, self._backend, self._fixed = inputs, backend, fixed
        self._work = inputs.make_work()
        layers, groups = range(inputs.num_layers), range(len(inputs.case.layer.groups))
        self._sites = [[inputs.sites(layer, group) for group in groups] for layer in layers]
        self._outs = [[inputs.outs(layer, group) for group in groups] for layer in layers]

    def prepare(self) -> None:
        self._work = self._inputs.make_work()
        self._backend.prepare([self._work], fixed=self._fixed)

    def add(self, layer: int, group: int) -> None:
        inputs = self._inputs
        self._backend.add(
            inputs.hidden[layer][group],
            inputs.pool_PE,
            self._work,
            sites=self._sites[layer][group],
            outs_TO=self._outs[layer][group],
        )


def make_cpu(inputs: Inputs) -> OurWay:
    num_rows = sum(-(-rank // WORKSPACE_ALIGN) * WORKSPACE_ALIGN for rank in inputs.case.ranks)
    sites = dict(enumerate(inputs.table.sites))
    workspace = Workspace(sites, num_rows=num_rows, dtype=inputs.dtype)
    return OurWay(inputs, choose_backend("cpu", workspace=workspace), fixed=False)


def make_tiles(inputs: Inputs) -> OurWay:
    return OurWay(inputs, choose_backend("tiles"), fixed=False)


def make_triton(inputs: Inputs) -> OurWay:
    if inputs.device.type != "cuda":
        raise NotMeasured("Triton kernels need a CUDA device; its interpreter is never timed")
    return make_triton_anywhere(inputs)


def make_triton_anywhere(inputs: Inputs, *, max_rank: int = DEPLOYED_RANK) -> OurWay:
    """On a CPU it runs in the interpreter, for a check without a GPU."""
    case = inputs.case
    is_decode = case.phase == "decode"
    room = LoraRoom(
        max_rows=(case.num_rows,),
        # A decode step of a server may have an adapter of its own in every row.
        max_segments=case.num_rows if is_decode else case.num_adapters,
        max_rank=max_rank,
        device=inputs.device,
    )
    # Decode steps are replayed from a graph, so what they launch follows from shapes alone; a
    # prefill is recorded for this measurement only.
    return OurWay(inputs, choose_backend("triton", table=inputs.table, room=room), fixed=is_decode)


OURS = {
    "cpu": (
        NamedWay("cpu", "the serving path: few products over the workspace", make_cpu),
        NamedWay("tiles", "its plain path: tile by tile from the pool", make_tiles),
        NamedWay("triton", "SGMV kernels from pool pages", make_triton),
    ),
    "cuda": (NamedWay("triton", "SGMV kernels from pool pages", make_triton),),
}
