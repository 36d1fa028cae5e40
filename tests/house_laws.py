"""The laws of the house as tables: who may import whom, and the few files with a right of
their own. Read by `test_house.py`, which knows how to look; changed when a room is added.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_FILE_LINES = 400
MAX_MEDIAN_LINES = 200
MAX_FUNCTION_LINES = 60
# (path, function) -> why it may be longer.
LONG_FUNCTIONS = {
    ("server/cli_serve.py", "serve"): "a flag for each field of the configuration",
    ("server/cli_generate.py", "generate"): "a flag for each option of a request",
}

GRPC = frozenset({"grpc", "grpc_health", "grpc_reflection", "grpc_status", "google"})
MODEL = frozenset({"torch", "transformers", "safetensors", "peft", "numpy"})


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a room may import besides itself and the standard library."""

    # Third-party packages.
    outside: frozenset[str] = frozenset()
    # Paths of our rooms or of single files.
    rooms: frozenset[str] = frozenset()


def may(outside: frozenset[str] | set[str] = frozenset(), *rooms: str) -> Allowed:
    return Allowed(frozenset(outside), frozenset(rooms))


# The loop and its helpers: neither the outside's protocols nor a library of numbers.
ENGINE = may(
    set(),
    "adapters",
    "server/scheduling",
    "server/memory",
    "server/execution",
    "server/errors.py",
    "server/clock.py",
    "server/config.py",
    "server/seam.py",
    "server/engine_parts.py",
    "server/lives.py",
    "server/reuse.py",
    "server/prices.py",
    "server/adapter_news.py",
    "server/outbox.py",
    "server/intake.py",
    "server/assembly.py",
    "server/overlap.py",
    "server/stats.py",
    "server/metered_link.py",
    "server/step_meter.py",
)

ALLOWED = {
    "__init__.py": may(set(), "proto"),
    "proto": may({*GRPC, "grpc_tools"}, "__init__.py"),
    "kernels": may({"numpy", "torch", "triton"}),
    "adapters": may({"torch", "safetensors", "peft", "transformers"}, "proto"),
    "server/scheduling": may({"numpy"}, "server/errors.py", "server/config.py"),
    "server/memory": may(
        {"numpy"},
        "server/scheduling/cost_model.py",
        "server/scheduling/records.py",
        "server/scheduling/prefix_view.py",
        "server/scheduling/starts.py",
        "adapters",
        "server/errors.py",
    ),
    "server/execution": may(
        MODEL,
        "kernels",
        "adapters",
        "server/scheduling/records.py",
        "server/scheduling/sampling.py",
        "server/scheduling/starts.py",
        "server/scheduling/step_work.py",
        "server/memory",
        "server/errors.py",
        "server/config.py",
        "server/clock.py",
    ),
    "server/rpc": may(
        {*GRPC, "tokenizers", "transformers"},
        "__init__.py",
        "proto",
        "adapters/errors.py",
        "adapters/image.py",
        "adapters/json_object.py",
        "adapters/key.py",
        "adapters/names.py",
        "server/errors.py",
        "server/config.py",
        "server/clock.py",
        "server/seam.py",
        "server/store_messages.py",
        "server/tokens.py",
        "server/token_file.py",
    ),
    "server/errors.py": may(),
    "server/clock.py": may(),
    "server/config.py": may(set(), "server/errors.py"),
    "server/tokens.py": may(
        set(),
        "adapters/errors.py",
        "adapters/json_object.py",
        "adapters/names.py",
        "server/errors.py",
    ),
    "server/token_file.py": may(set(), "server/errors.py", "server/tokens.py"),
    "server/seam.py": may(
        set(),
        "adapters",
        "server/errors.py",
        "server/execution/info.py",
        "server/scheduling/cost_model.py",
        "server/scheduling/records.py",
        "server/scheduling/sampling.py",
        "server/scheduling/starts.py",
    ),
    "server/seam_ends.py": may(set(), "server/seam.py"),
    "server/store_messages.py": may(set(), "adapters", "server/errors.py"),
    "server/engine.py": ENGINE,
    "server/engine_parts.py": ENGINE,
    "server/lives.py": ENGINE,
    "server/reuse.py": ENGINE,
    "server/prices.py": ENGINE,
    "server/memory_rooms.py": ENGINE,
    "server/adapter_news.py": ENGINE,
    "server/outbox.py": ENGINE,
    "server/intake.py": ENGINE,
    "server/assembly.py": ENGINE,
    "server/overlap.py": ENGINE,
    "server/stats.py": ENGINE,
    "server/metered_link.py": ENGINE,
    "server/step_meter.py": ENGINE,
    "bench": may(
        {
            *MODEL,
            *GRPC,
            "tokenizers",
            "rich",
            "typer",
            "triton",
            "psutil",
            "packaging",
            "matplotlib",
        },
        "*",
    ),
}
# Any other file of `server` joins rooms, and may name all of them but the bench.
JOINT = may({*GRPC, "torch", "typer", "rich", "prometheus_client"}, "*")

# `lorry bench NAME` starts what stands above everything.
IMPORTS_BY_NAME = {
    "server/cli.py": "loads lorry.bench only when a bench is asked for",
    "bench/kernels/rivals/loading.py": "peers' files lie in a git-ignored folder, or are not there",
}
CLOCK_READS = {
    "time.time",
    "time.time_ns",
    "time.monotonic",
    "time.monotonic_ns",
    "time.perf_counter",
    "time.perf_counter_ns",
    "datetime.now",
    "datetime.datetime.now",
}
ENVIRONMENT_READS = {"os.environ", "os.environb", "os.getenv"}
MAY_READ_ENVIRONMENT = {"server/config.py"}
