"""The `lorry` command: what can be asked for, and the exit code of each answer.

Joins the commands; the larger ones live in cli_serve, cli_adapter, cli_generate and cli_token.
Heavy libraries (torch, grpc, rich) are imported by the command that needs them, so help stays
quick. The one upward call of the house is here: `lorry bench` loads `lorry.bench` by name, and
nothing else of the server knows that it exists.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from .cli_adapter import app as adapter_app
from .cli_connection import Connection, connecting
from .cli_generate import generate
from .cli_memory import (
    Adapters,
    Asked,
    Config,
    Dtype,
    Memory,
    PoolBytes,
    Ranks,
    Targets,
    show_memory,
)
from .cli_options import CALL_TIMEOUT_S, AsJson
from .cli_output import EXIT_OK, EXIT_USAGE, answering, complain, format_bytes, print_json
from .cli_output import print_table as print_rows
from .cli_serve import serve, supervise
from .cli_token import app as token_app

if TYPE_CHECKING:
    from ..proto.client import Client
    from ..proto.lorry_pb2 import CostModel, Info, Stats
    from .config import ServerConfig

# Each is a module of lorry.bench with `main(argv) -> int`.
BENCHES = (
    "coldstart",
    "cost",
    "demo",
    "kernels",
    "memory",
    "overhead",
    "scale",
    "sim",
    "slo",
    "step",
    "throughput",
)

app = typer.Typer(
    name="lorry",
    help="Serve one base language model and thousands of LoRA adapters over gRPC.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # half of typer's help time would be rich's import
    pretty_exceptions_enable=False,
)
app.command()(serve)
app.command()(generate)
app.add_typer(adapter_app, name="adapter")
app.add_typer(token_app, name="token")


def main(
    argv: list[str] | None = None, *, run_server: Callable[[ServerConfig], int] = supervise
) -> int:
    """Entry point; `argv` is without the program's name, by default the process's own.

    Exit codes: 0 done, 1 the server said no, 2 bad usage, 3 server unreachable.
    """
    try:
        app(args=argv, prog_name="lorry", obj=run_server)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else EXIT_OK
    return EXIT_OK


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"lorry {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and exit.")
    ] = False,
) -> None:
    """Options before any command; typer prints the help of `app` above."""


@app.command()
@connecting
def info(
    *,
    wait: Annotated[
        float, typer.Option(min=0.0, help="Seconds to wait until the server serves.")
    ] = 0.0,
    memory: Memory = False,
    model: Config = None,
    pool_bytes: PoolBytes = 0,
    dtype: Dtype = "auto",
    ranks: Ranks = "8,16,64",
    adapters: Adapters = 32,
    targets: Targets = "all-linear",
    connection: Connection,
    as_json: AsJson = False,
) -> None:
    """Show what the server serves and what it is doing; or what its memory holds."""
    from ..proto.messages import to_plain

    asked = Asked(model, pool_bytes, dtype, ranks, adapters, targets)
    if show_memory(connection, asked, memory=memory, wait_s=wait, as_json=as_json):
        return
    with answering(as_json), connection.client(timeout_s=CALL_TIMEOUT_S) as client:
        served, stats = _ask_info(client, wait)
    if as_json:
        print_json({"info": to_plain(served), "stats": to_plain(stats)})
        return
    title = f"Lorry at {connection.address}"
    print_rows(("field", "value"), _info_rows(served, stats), title=title)
    if stats.residents:
        print_rows(
            ("adapter", "version", "pages", "requests", "state"),
            [
                (
                    resident.name,
                    resident.version,
                    resident.num_pages,
                    resident.num_users,
                    "loading" if resident.loading else "resident",
                )
                for resident in stats.residents
            ],
            title="Adapters in the pool",
        )


def _ask_info(client: Client, wait_s: float) -> tuple[Info, Stats]:
    if wait_s > 0:
        client.wait_ready(wait_s)
    return client.info(), client.stats()


def _info_rows(served: Info, stats: Stats) -> list[tuple[str, object]]:
    return [
        ("version", served.version),
        ("model", f"{served.model} ({served.architecture})"),
        ("device", f"{served.device}, {served.dtype}"),
        ("fingerprint", served.fingerprint),
        ("context", f"{served.max_model_len} tokens"),
        ("chat template", "yes" if served.has_chat_template else "no"),
        ("largest rank", served.max_rank),
        ("sites", " ".join(served.sites)),
        (
            "pages",
            f"{served.num_pages} of {format_bytes(served.page_bytes)} "
            f"({served.tokens_per_page} tokens): {stats.pages_kv} KV, "
            f"{stats.pages_adapter} adapters, {stats.memory.pages_cached} cached, "
            f"{stats.pages_free} free",
        ),
        ("self proof", served.self_proof),
        (
            "defaults",
            f"ttft {served.default_ttft_s:g} s, tpot {served.default_tpot_s:g} s, "
            f"{served.default_max_new_tokens} new tokens",
        ),
        ("requests", f"{stats.num_running} running, {stats.num_waiting} waiting"),
        (
            "ended",
            f"{stats.requests_finished_total} finished, {stats.requests_failed_total} failed, "
            f"{stats.requests_cancelled_total} cancelled, {stats.preemptions_total} preemptions",
        ),
        ("policy", f"{served.policy}, {stats.requests_aborted_total} given up early"),
        ("tokens", f"{stats.tokens_prefill_total} prefill, {stats.tokens_decode_total} decode"),
        (
            "adapters",
            f"{stats.adapters_registered} registered, {stats.adapter_loads_total} loads, "
            f"{stats.adapter_evictions_total} evictions",
        ),
        ("cold starts", _cold_row(served, stats)),
        *_memory_rows(served, stats),
        *_cost_rows(stats.cost_model),
        ("up", f"{stats.uptime_s:.0f} s, engine restarted {stats.engine_restarts_total} times"),
    ]


def _memory_rows(served: Info, stats: Stats) -> list[tuple[str, object]]:
    """How pool and host memory were met, and who goes when room is needed."""
    memory = stats.memory
    prefixes = "off"
    if served.prefix_cache:
        looked, found = memory.prefix_lookup_tokens_total, memory.prefix_hit_tokens_total
        prefixes = (
            f"{_found(found, looked, 'prompt tokens')}, {memory.prefix_evictions_total} pages "
            f"evicted, {memory.preempted_tokens_kept_total} tokens of preempted requests kept"
        )
    asked, met = memory.requests_with_adapter_total, memory.pool_hits_total
    looked, found = memory.host_hits_total + memory.host_misses_total, memory.host_hits_total
    params = ", ".join(f"{param.name} {param.value:g}" for param in memory.params)
    return [
        (
            "pool",
            f"{_found(met, asked, 'adapters asked for')}, {memory.prefetches_total} prefetches, "
            f"{memory.loads_cancelled_total} loads cancelled",
        ),
        ("prefix cache", prefixes),
        (
            "host tier",
            f"{format_bytes(stats.host_bytes)} of {format_bytes(memory.host_capacity_bytes)}, "
            f"{format_bytes(memory.host_peak_bytes)} at most; {_found(found, looked, 'images')}",
        ),
        ("eviction", f"{memory.eviction} ({params})" if params else memory.eviction),
    ]


def _cold_row(served: Info, stats: Stats) -> str:
    """How requests start whose adapter is not in the pool, and how they did."""
    cold = stats.cold_starts
    done = f"{cold.wait_total} waited, {cold.stream_total} streamed, {cold.assist_total} assisted"
    helpers = f", {cold.helpers_up} helpers up" if cold.helpers_up else ""
    restarts = f" ({cold.helper_restarts_total} restarts)" if cold.helper_restarts_total else ""
    lost = f", {cold.lost_rows_total} parts of steps lost" if cold.lost_rows_total else ""
    return f"{served.cold_start}; {done}{lost}{helpers}{restarts}"


def _found(part: int, whole: int, what: str) -> str:
    return f"{part / whole:.1%} of {what} found" if whole else f"no {what} yet"


def _cost_rows(cost: CostModel) -> list[tuple[str, object]]:
    """What the server has learnt of its own speed."""
    steps = {"calibrated": "calibrated", "cached": "calibrated at an earlier start"}.get(
        cost.source, "not calibrated"
    )
    if cost.HasField("mape"):
        steps += f"; the last {cost.judged_steps} were foretold to {cost.mape:.1%} on average"
    if cost.HasField("r2"):
        steps += f", R2 {cost.r2:.3f}"
    loads = "none yet"
    if cost.learnt_loads:
        rate = ""
        if cost.HasField("load_bytes_per_s"):
            rate = f" and {format_bytes(int(cost.load_bytes_per_s))}/s"
        loads = f"{1e3 * cost.load_s:.1f} ms{rate}, learnt from {cost.learnt_loads}"
        if cost.HasField("read_bytes_per_s"):
            loads += f"; from disk at {format_bytes(int(cost.read_bytes_per_s))}/s"
    return [("step times", steps), ("load times", loads)]


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        # What follows the name is the benchmark's, its --help included.
        "allow_interspersed_args": False,
    }
)
def bench(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(BENCHES)}.")],
) -> None:
    """Run a benchmark; arguments after NAME are its own."""
    if name not in BENCHES:
        complain(f"there is no benchmark {name!r}; there are {', '.join(BENCHES)}")
        raise typer.Exit(EXIT_USAGE)
    module = importlib.import_module(f"lorry.bench.{name}")
    status: int = module.main(list(context.args))
    raise typer.Exit(status)


if __name__ == "__main__":
    raise SystemExit(main())
