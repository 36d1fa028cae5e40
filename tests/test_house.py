"""The laws of the house, kept by reading the code: who may import whom, who may read the clock,
how long a file may grow. A failure names the place and the law; `CONTRIBUTING.md` has them all.
"""

import ast
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lorry.tests.house_laws import (
    ALLOWED,
    CLOCK_READS,
    ENVIRONMENT_READS,
    IMPORTS_BY_NAME,
    JOINT,
    LONG_FUNCTIONS,
    MAX_FILE_LINES,
    MAX_FUNCTION_LINES,
    MAX_MEDIAN_LINES,
    MAY_READ_ENVIRONMENT,
)
from lorry.tests.house_tree import (
    FLAT_NAMES,
    REPO_DIR,
    Import,
    Source,
    find_cycle,
    functions_of,
    imports_of,
    module_paths,
    read_sources,
    room_of,
    uses_of,
)


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return read_sources()


@pytest.fixture(scope="module")
def imports(sources: list[Source]) -> list[Import]:
    modules = module_paths(sources)
    return [found for source in sources for found in imports_of(source, modules)]


def complain(law: str, offences: list[str]) -> None:
    assert not offences, "\n".join([f"The law: {law}", *sorted(set(offences))])


def target_path(found: Import, modules: dict[str, str]) -> str:
    """The file an import of ours ends at; of an unknown module its nearest known package."""
    name = found.target
    while name not in modules:
        name = name.rpartition(".")[0]
    return modules[name]


def is_allowed(found: Import, modules: dict[str, str]) -> bool:
    room = room_of(found.importer)
    allowed = ALLOWED.get(room, JOINT)
    if found.top != "lorry":
        return found.top in sys.stdlib_module_names or found.top in allowed.outside
    target = target_path(found, modules)
    other = room_of(target)
    if other == room or target == "server/__init__.py":
        return True
    if other in ("bench", "tests"):
        return False
    return bool({"*", other, target} & allowed.rooms)


def forbidden_imports(sources: list[Source]) -> list[str]:
    modules = module_paths(sources)
    return [
        f"{found.where} imports {found.target}"
        for source in sources
        if source.room != "tests"
        for found in imports_of(source, modules)
        if not is_allowed(found, modules)
    ]


def test_rooms_import_only_what_the_table_allows(sources: list[Source]) -> None:
    """An import that points up, or a library in the wrong room, ties two rooms for ever."""
    complain("a room imports what ALLOWED lists for it", forbidden_imports(sources))


def test_tests_import_no_flat_package(imports: list[Import]) -> None:
    """`import kernels` may work by accident and gives a second copy of every class."""
    offences = [
        f"{found.where} imports {found.target}" for found in imports if found.top in FLAT_NAMES
    ]
    complain("our modules are imported as lorry.*, or relatively inside the package", offences)


def test_package_imports_itself_relatively(imports: list[Import]) -> None:
    """One way to name a module: the root's folder need not be called lorry."""
    offences = [
        f"{found.where} imports {found.target}"
        for found in imports
        if found.top == "lorry" and not found.is_relative and room_of(found.importer) != "tests"
    ]
    complain("imports between our own folders are relative", offences)


def test_rooms_form_no_circle(sources: list[Source], imports: list[Import]) -> None:
    """Two rooms that need each other are one room, whatever the table says."""
    modules = module_paths(sources)
    edges: dict[str, set[str]] = {}
    for found in imports:
        if found.top == "lorry" and room_of(found.importer) != "tests":
            room, other = room_of(found.importer), room_of(target_path(found, modules))
            # A package's own file holds a docstring; the root's names the client lazily.
            if room != other and not other.endswith("__init__.py") and room != "__init__.py":
                edges.setdefault(room, set()).add(other)
    circle = find_cycle(edges)
    assert not circle, f"The law: no circle between rooms: {' -> '.join(circle)}"


def test_imports_by_name_are_listed(sources: list[Source]) -> None:
    """`import_module("...")` is out of sight of the table above."""
    names = {"importlib.import_module", "importlib.util.spec_from_file_location"}
    offences = [
        use
        for source in sources
        if source.room != "tests" and source.path not in IMPORTS_BY_NAME
        for use in uses_of(source, names)
    ]
    complain(f"imports by name stand only in {sorted(IMPORTS_BY_NAME)}", offences)


def test_only_metrics_knows_prometheus(imports: list[Import]) -> None:
    """Rooms give records; a counter in the middle of a step would be a second truth."""
    offences = [
        found.where
        for found in imports
        if found.top == "prometheus_client"
        and found.importer != "server/metrics.py"
        and room_of(found.importer) != "tests"
    ]
    complain("only server/metrics.py imports prometheus_client", offences)


def test_nobody_reads_the_clock(sources: list[Source]) -> None:
    """Code with a clock of its own cannot be replayed and is tested by waiting."""
    offences = [
        use
        for source in sources
        if source.path != "server/clock.py" and source.room not in ("bench", "tests")
        for use in uses_of(source, CLOCK_READS)
    ]
    complain("instants come from server/clock.py, handed in as a Clock", offences)


def test_nobody_sleeps(sources: list[Source]) -> None:
    """A sleep in a test is either too short on a slow machine or a waste on a fast one."""
    offences = [use for source in sources for use in uses_of(source, {"time.sleep"})]
    complain("nothing sleeps to wait for something; wait for the thing itself", offences)


def test_only_config_reads_the_environment(sources: list[Source]) -> None:
    """A variable read deep inside is a setting that no flag shows and no log names."""
    offences = [
        use
        for source in sources
        if source.path not in MAY_READ_ENVIRONMENT and source.room not in ("bench", "tests")
        for use in uses_of(source, ENVIRONMENT_READS)
    ]
    complain(f"the environment is read only in {sorted(MAY_READ_ENVIRONMENT)}", offences)


def test_every_module_says_what_it_owns(sources: list[Source]) -> None:
    """The first lines of a file are its map; a file without them is read whole by everybody."""
    offences = [
        source.path
        for source in sources
        if not source.is_generated and not ast.get_docstring(source.tree)
    ]
    complain("a module opens with a docstring", offences)


def judged_by_size(sources: list[Source]) -> list[Source]:
    """Kernels are as long as their mathematics; generated code is nobody's to read."""
    return [s for s in sources if s.room != "kernels" and not s.is_generated]


def test_files_stay_within_the_size_budget(sources: list[Source]) -> None:
    """A file that holds two nouns is split before it is too long, not after."""
    judged = judged_by_size(sources)
    offences = [f"{s.path}: {s.num_lines} lines" for s in judged if s.num_lines > MAX_FILE_LINES]
    complain(f"no file over {MAX_FILE_LINES} lines", offences)
    sizes = [s.num_lines for s in judged if not s.path.endswith("__init__.py")]
    assert statistics.median(sizes) <= MAX_MEDIAN_LINES


def test_functions_stay_within_the_size_budget(sources: list[Source]) -> None:
    """What does not fit on a screen is several functions, or has its reason in the table."""
    offences: list[str] = []
    for source in judged_by_size(sources):
        for name, line, num_lines in functions_of(source):
            if num_lines > MAX_FUNCTION_LINES and (source.path, name) not in LONG_FUNCTIONS:
                offences.append(f"{source.path}:{line} {name} has {num_lines} lines")
    complain(f"no function over {MAX_FUNCTION_LINES} lines", offences)


def test_package_list_equals_the_tree(sources: list[Source]) -> None:
    """A package missing from the list is missing from the wheel without a word."""
    pyproject = tomllib.loads((REPO_DIR / "pyproject.toml").read_text())
    listed = pyproject["tool"]["setuptools"]["packages"]
    in_tree = [name for name, path in module_paths(sources).items() if path.endswith("__init__.py")]
    assert sorted(listed) == sorted(in_tree)
    homeless = {
        str(Path(s.path).parent)
        for s in sources
        if s.room != "tests" and not (REPO_DIR / s.path).with_name("__init__.py").exists()
    }
    assert not homeless, f"The law: package code lives in a package: {sorted(homeless)}"


BLOCKED_IMPORTS = """
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked here")

BLOCKED = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Blocker())
for name in sys.argv[2].split(","):
    importlib.import_module(name)
print(len(BLOCKED & {name.partition(".")[0] for name in sys.modules}))
"""


def import_with_blocked(blocked: list[str], names: list[str]) -> None:
    command = [sys.executable, "-P", "-c", BLOCKED_IMPORTS, ",".join(blocked), ",".join(names)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip() == "0"


def test_planner_and_pool_need_neither_torch_nor_grpc(sources: list[Source]) -> None:
    """The simulator replays days of traffic on machines that have neither."""
    names = [
        name
        for name, path in module_paths(sources).items()
        if room_of(path) == "server/scheduling" or path == "server/memory/pool.py"
    ]
    import_with_blocked(["torch", "grpc"], names)


def test_client_needs_no_torch() -> None:
    """A client machine has no room for gigabytes of libraries it never calls."""
    import_with_blocked(["torch", "numpy", "transformers", "peft"], ["lorry", "lorry.proto.client"])


def test_command_line_starts_without_heavy_libraries() -> None:
    """`lorry --help` would take seconds if the CLI imported what a server needs."""
    import_with_blocked(["torch", "numpy", "transformers", "peft"], ["lorry.server.cli"])


@pytest.mark.parametrize(
    ("path", "line", "offence"),
    [
        ("server/scheduling/plan.py", "import torch", "torch"),
        ("server/scheduling/plan.py", "from ..memory import pool", "lorry.server.memory.pool"),
        ("server/execution/runner.py", "from ..rpc.auth import x", "lorry.server.rpc.auth"),
        ("kernels/lora.py", "from ..server import clock", "lorry.server.clock"),
        ("server/engine.py", "from ..bench import slo", "lorry.bench.slo"),
        ("adapters/store.py", "def f():\n    import grpc", "grpc"),
    ],
)
def test_the_table_refuses(tmp_path: Path, path: str, line: str, offence: str) -> None:
    """A table that lets everything through would pass on any tree."""
    others = ("server/memory/pool.py", "server/rpc/auth.py", "server/clock.py", "bench/slo.py")
    for name in (path, *others):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        for folder in (file.parent, *file.parent.parents):
            if folder.is_relative_to(tmp_path):
                (folder / "__init__.py").touch()
        file.write_text(line if name == path else "")
    offences = forbidden_imports(read_sources(tmp_path))
    assert [text.rpartition(" ")[2] for text in offences] == [offence]


def test_a_circle_is_found() -> None:
    """The search is ours; a circle of three is the shortest that a naive one misses."""
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
