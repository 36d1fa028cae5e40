"""How a sequence of launches is recorded and replayed: the seam of CUDA graphs.

`CudaRecorder` records what a function launches; replaying it launches the same kernels with the
same arguments, whatever their buffers hold by then. `PlainRecorder` calls the function again: the
padded path without a GPU, and it raises where a graph would read what is no longer there. Know no
model. Used by graphs.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from ..errors import ConfigError

Replay = Callable[[], None]
Reads = Callable[[], Sequence[Tensor]]  # what the step that was prepared last lies in

# How torch begins, in the mode that `waits_forbidden` sets, to speak of what it will not do.
_LOOK = "called a synchronizing CUDA operation"


class CannotRecord(Exception):
    """The work makes the host look at a result, so that launches do not depend on shapes alone."""


class Recorder(Protocol):
    def record(self, work: Callable[[], None], reads: Reads) -> Replay:
        """`work` has run before, and launches depend on shapes alone.

        Raises:
            CannotRecord: it makes the host look at something.
        """
        ...


class PlainRecorder:
    """Nothing is recorded but where it would be read."""

    def record(self, work: Callable[[], None], reads: Reads) -> Replay:
        recorded = _places(reads())

        def replay() -> None:
            if _places(reads()) != recorded:
                raise RuntimeError("a replayed step lies elsewhere than the recorded one")
            work()

        return replay


class CudaRecorder:
    """CUDA graphs that share one pool of memory: only one is replayed at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def record(self, work: Callable[[], None], reads: Reads) -> Replay:
        del reads  # of the graph, which cannot be asked
        before = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(before)
        try:
            self._rehearse(work)
            return self._capture(work)
        finally:
            # torch leaves the recording's stream in place where the recording fails.
            torch.cuda.set_stream(before)

    def _rehearse(self, work: Callable[[], None]) -> None:
        """Once on the stream that records: libraries keep workspaces by stream, and what they take
        while recording would stay with one graph. A look by the host is found here.
        """
        try:
            with torch.cuda.stream(self._stream), waits_forbidden():
                work()
        except RuntimeError as error:
            if _LOOK not in str(error):
                raise
            raise CannotRecord("the model makes the host look at a result") from error
        torch.cuda.synchronize(self._device)

    def _capture(self, work: Callable[[], None]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        try:
            # Threads that load adapters go on meanwhile: only what this one does is recorded.
            with torch.cuda.graph(
                graph, pool=self._memory, stream=self._stream, capture_error_mode="thread_local"
            ):
                work()
        except RuntimeError as error:
            # Nothing can be counted on after an interrupted recording, torch's allocator least.
            raise ConfigError(
                f"a decode step could not be recorded as a CUDA graph: {error}; "
                "start with --no-cuda-graphs",
                field="--no-cuda-graphs",
            ) from error
        return graph.replay


@contextmanager
def waits_forbidden() -> Generator[None]:
    """Whatever makes the host wait for a GPU raises RuntimeError."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        # That the mode is a prototype, which does not see every wait.
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def _places(tensors: Sequence[Tensor]) -> list[tuple[int, torch.Size]]:
    return [(tensor.data_ptr(), tensor.shape) for tensor in tensors]
