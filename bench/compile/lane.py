"""Many cases on few cores: takes what is known, compiles the rest in children, judges all.

Owns the order of the work and what becomes of a case that does not compile; a compiler that dies
takes down its own case alone. Called by the command and by the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue

from ...kernels.cases import CompileCase
from ..throughput.child import Child, ChildFailed
from .binary import Binary
from .compiler import Compiler
from .judge import CaseTerms, find_faults
from .store import BUILD_DIR, SOURCES, BinaryStore, source_hash

FindCases = Callable[[], Iterable[CompileCase]]
ARCHES = (80, 90)
MAX_ERROR_LINES = 8


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one case on one chip."""

    terms: CaseTerms
    arch: int
    binary: Binary | None  # None if it does not compile: `faults` says why
    faults: tuple[str, ...]
    was_known: bool


class CompileLane:
    """The cases that `find_cases` gives; a module's function, for it is called in children."""

    def __init__(
        self,
        find_cases: FindCases,
        *,
        build_dir: Path = BUILD_DIR,
        sources: Sequence[Path] = SOURCES,
        num_workers: int = 2,
    ) -> None:
        self._find_cases = find_cases
        self._build_dir = build_dir
        self._num_workers = num_workers
        self._sources = tuple(sources)
        self.triton = version("triton")
        self.source = self._hash()
        self._store = BinaryStore(build_dir, self.source)

    def cases(self) -> list[CaseTerms]:
        """All of them; asks a child once for each state of the sources."""
        known = self._store.cases()
        if known is None:
            child = self._start_child()
            try:
                known = child.call("cases")
            finally:
                child.close()
            self._store.put_cases(known)
        return known

    def run(
        self, cases: Sequence[CaseTerms], *, arches: Sequence[int] = ARCHES, fresh: bool = False
    ) -> Iterator[Outcome]:
        """As they are done: known ones first. `fresh`: compile also what is known."""
        unknown: list[tuple[CaseTerms, int]] = []
        for terms in cases:
            for arch in arches:
                binary = None if fresh else self._store.get(terms.name, arch)
                if binary is None:
                    unknown.append((terms, arch))
                else:
                    yield Outcome(terms, arch, binary, find_faults(binary, terms), was_known=True)
        if unknown:
            yield from self._compile(unknown)

    def _compile(self, jobs: Sequence[tuple[CaseTerms, int]]) -> Iterator[Outcome]:
        """As many children as workers, each with one case at a time."""
        workers = [_Worker(self._start_child) for _ in range(min(self._num_workers, len(jobs)))]
        idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in workers:
            idle.put(worker)

        def compile_one(terms: CaseTerms, arch: int) -> Outcome:
            worker = idle.get()
            try:
                return worker.compile(terms, arch)
            finally:
                idle.put(worker)

        pool = ThreadPoolExecutor(len(workers))
        try:
            for future in as_completed([pool.submit(compile_one, *job) for job in jobs]):
                outcome = future.result()
                if outcome.binary is not None:
                    self._store.put(outcome.binary)
                yield outcome
        finally:
            pool.shutdown(cancel_futures=True)
            for worker in workers:
                worker.close()

    def _start_child(self) -> Child:
        """One that has read the sources whose hash stands for its answers."""
        child = Child(Compiler, self._find_cases, self._build_dir / "triton").__enter__()
        if self._hash() != self.source:
            child.close()
            raise ChildFailed("the sources have changed since the check began: start it again")
        return child

    def _hash(self) -> str:
        return source_hash(self._sources, versions=(self.triton,))


class _Worker:
    """A child that is started when first needed, and anew when a case has failed in it."""

    def __init__(self, start: Callable[[], Child]) -> None:
        self._start = start
        self._child: Child | None = None

    def compile(self, terms: CaseTerms, arch: int) -> Outcome:
        try:
            if self._child is None:
                self._child = self._start()
            binary = self._child.call("compile", terms.name, arch)
        except ChildFailed as error:
            self.close()
            # The trace ends with what is wrong; above are frames of Triton.
            said = "\n".join(str(error).strip().splitlines()[-MAX_ERROR_LINES:])
            return Outcome(terms, arch, None, (f"does not compile: {said}",), was_known=False)
        return Outcome(terms, arch, binary, find_faults(binary, terms), was_known=False)

    def close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None
