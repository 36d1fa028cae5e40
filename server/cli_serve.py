"""`lorry serve`: flags to a checked ServerConfig, then the supervisor.

One flag per field of config.py, whose defaults it shows. Knows nothing of what a server does.
Registered by cli.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_options import parse_size, write_size
from .cli_output import EXIT_REFUSED, EXIT_USAGE, complain
from .config import (
    ColdConfig,
    CostConfig,
    MemoryConfig,
    ModelConfig,
    SchedulingConfig,
    ServerConfig,
    ServiceConfig,
)
from .errors import ConfigError, LorryError

MODEL = ModelConfig(model="")
MEMORY = MemoryConfig()
SCHEDULING = SchedulingConfig()
SERVICE = ServiceConfig()
COST = CostConfig()
COLD = ColdConfig()

# Shown as 2GiB, not 2147483648.
HOST_BYTES = write_size(MEMORY.host_bytes)
MAX_UPLOAD_BYTES = write_size(SERVICE.max_upload_bytes)


def _size(help_text: str) -> object:
    return typer.Option(parser=parse_size, metavar="SIZE", help=help_text)


def serve(
    context: typer.Context,
    *,
    model: Annotated[str, typer.Option(help="Directory, or an id in the local HF cache.")],
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1.")] = MODEL.device,
    dtype: Annotated[
        str, typer.Option(help="auto, float32, bfloat16 or float16; auto: float32 on a CPU.")
    ] = MODEL.dtype,
    max_model_len: Annotated[
        int, typer.Option(help="Tokens of prompt and answer; 0: the model's own limit.")
    ] = MODEL.max_model_len,
    threads: Annotated[
        int, typer.Option(help="Threads of the CPU device; 0: all cores, or 1 for a tiny model.")
    ] = MODEL.num_threads,
    kernels: Annotated[
        str, typer.Option(help="auto, cpu or triton; auto: triton on a GPU.")
    ] = MODEL.kernels,
    cuda_graphs: Annotated[
        bool, typer.Option(help="Record decode steps on a GPU at start and replay them.")
    ] = MODEL.cuda_graphs,
    compile_layers: Annotated[
        bool,
        typer.Option("--compile-layers", help="Fuse small operations of a GPU; not measured yet."),
    ] = MODEL.compile_layers,
    pool_bytes: Annotated[
        int, _size("Pages for KV and adapters; 0: a share of what is free.")
    ] = MEMORY.pool_bytes,
    host_bytes: Annotated[int, _size("Packed adapters kept in host memory.")] = HOST_BYTES,  # pyright: ignore[reportArgumentType]
    max_rank: Annotated[int, typer.Option(help="Largest rank accepted.")] = MEMORY.max_rank,
    prefix_cache: Annotated[
        bool, typer.Option(help="Keep the KV of prompts and answers while there is room.")
    ] = MEMORY.prefix_cache,
    share_prefixes: Annotated[
        bool,
        typer.Option("--share-prefixes", help="Cached KV may be met by other tenants as well."),
    ] = MEMORY.share_prefixes,
    eviction: Annotated[
        str,
        typer.Option(help="economy: by need, cost and size; lru or split, to compare with."),
    ] = MEMORY.eviction,
    adapter_share: Annotated[
        float, typer.Option(help="Share of the pool for adapters, under --eviction split.")
    ] = MEMORY.adapter_share,
    tenant_share: Annotated[
        float, typer.Option(help="Share of the pool that one tenant may hold.")
    ] = MEMORY.tenant_share,
    prefetch: Annotated[
        bool, typer.Option(help="Bring popular adapters back while the link is idle.")
    ] = MEMORY.prefetch,
    link_bytes_per_s: Annotated[
        float, typer.Option(help="Emulate a link of this bandwidth on a CPU; 0: none.")
    ] = MEMORY.link_bytes_per_s,
    cold_start: Annotated[
        str,
        typer.Option(
            help="While an adapter is on its way: wait, stream, assist, or auto: the soonest."
        ),
    ] = COLD.cold_start,
    helpers: Annotated[
        int,
        typer.Option(help="Processes that assist, a core each; -1: cores the device leaves."),
    ] = COLD.num_helpers,
    max_running: Annotated[
        int, typer.Option(help="Requests in one step.")
    ] = SCHEDULING.max_running,
    max_waiting: Annotated[
        int, typer.Option(help="Requests in the queue; one more is refused.")
    ] = SCHEDULING.max_waiting,
    max_step_tokens: Annotated[
        int, typer.Option(help="Prompt and decode tokens in one step.")
    ] = SCHEDULING.max_step_tokens,
    max_bypass: Annotated[
        float, typer.Option(help="Seconds others may overtake a request that does not fit.")
    ] = SCHEDULING.max_bypass_s,
    ttft: Annotated[
        float, typer.Option(help="Seconds to the first token, of a request that names none.")
    ] = SCHEDULING.ttft_s,
    tpot: Annotated[
        float, typer.Option(help="Seconds per further token, of a request that names none.")
    ] = SCHEDULING.tpot_s,
    max_new_tokens: Annotated[
        int, typer.Option(help="Tokens of an answer, of a request that names none.")
    ] = SCHEDULING.max_new_tokens,
    overlap: Annotated[
        bool | None,
        typer.Option(
            "--overlap/--no-overlap",
            help="Plan a step while the last one runs; unset: on a GPU alone.",
        ),
    ] = SCHEDULING.overlap,
    policy: Annotated[
        str,
        typer.Option(help="fcfs, or slora: give up early who would miss its bound anyway."),
    ] = SCHEDULING.policy,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = SERVICE.host,
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0: any free one, printed at start.")
    ] = SERVICE.port,
    store: Annotated[Path, typer.Option(help="Directory of the adapters.")] = SERVICE.store,
    drain: Annotated[
        float, typer.Option(help="Seconds open requests get after SIGTERM.")
    ] = SERVICE.drain_s,
    metrics_port: Annotated[
        int, typer.Option(help="Prometheus endpoint; -1: none, 0: any free port.")
    ] = SERVICE.metrics_port,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Listen beyond this machine without --tokens.")
    ] = SERVICE.allow_remote,
    max_upload_bytes: Annotated[int, _size("Largest adapter accepted.")] = MAX_UPLOAD_BYTES,  # pyright: ignore[reportArgumentType]
    tokens: Annotated[
        Path | None, typer.Option(help="Who may call: a file of `lorry token`; none: everybody.")
    ] = SERVICE.tokens,
    tls_cert: Annotated[
        Path | None, typer.Option(help="The server's certificate, PEM, chain included.")
    ] = SERVICE.tls_cert,
    tls_key: Annotated[
        Path | None, typer.Option(help="The certificate's private key, PEM.")
    ] = SERVICE.tls_key,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Only clients with a certificate of these, PEM.")
    ] = SERVICE.tls_client_ca,
    behind_tls: Annotated[
        bool, typer.Option("--behind-tls", help="TLS ends in front: take tokens unencrypted.")
    ] = SERVICE.behind_tls,
    metrics_host: Annotated[
        str, typer.Option(help="Address of the Prometheus endpoint, which asks for no token.")
    ] = SERVICE.metrics_host,
    calibrate: Annotated[
        float,
        typer.Option(help="Seconds to time made-up steps in, at the first start; 0: none."),
    ] = COST.calibrate_s,
    step_log: Annotated[
        Path | None, typer.Option(help="A new CSV file with a line for each step.")
    ] = COST.step_log,
    debug: Annotated[
        bool, typer.Option("--debug", help="Audit and poison freed pages at every step.")
    ] = False,
) -> None:
    """Serve one base model and its adapters until SIGTERM."""
    config = ServerConfig(
        model=ModelConfig(
            model,
            device,
            dtype,
            max_model_len,
            threads,
            kernels=kernels,
            cuda_graphs=cuda_graphs,
            compile_layers=compile_layers,
        ),
        memory=MemoryConfig(
            pool_bytes,
            host_bytes,
            max_rank,
            prefix_cache=prefix_cache,
            share_prefixes=share_prefixes,
            eviction=eviction,
            adapter_share=adapter_share,
            tenant_share=tenant_share,
            prefetch=prefetch,
            link_bytes_per_s=link_bytes_per_s,
        ),
        scheduling=SchedulingConfig(
            max_running=max_running,
            max_waiting=max_waiting,
            max_step_tokens=max_step_tokens,
            max_bypass_s=max_bypass,
            ttft_s=ttft,
            tpot_s=tpot,
            max_new_tokens=max_new_tokens,
            overlap=overlap,
            policy=policy,
        ),
        service=ServiceConfig(
            host=host,
            port=port,
            store=store,
            drain_s=drain,
            metrics_port=metrics_port,
            allow_remote=allow_remote,
            max_upload_bytes=max_upload_bytes,
            tokens=tokens,
            tls_cert=tls_cert,
            tls_key=tls_key,
            tls_client_ca=tls_client_ca,
            behind_tls=behind_tls,
            metrics_host=metrics_host,
        ),
        cost=CostConfig(calibrate_s=calibrate, step_log=step_log),
        cold=ColdConfig(cold_start, helpers),
        debug=debug,
    )
    try:
        # main() hands in what starts a server, so that a test can look at the config alone.
        status: int = context.obj(config.checked())
    except LorryError as error:
        complain(error.message)
        wrong_flag = isinstance(error, ConfigError)
        raise typer.Exit(EXIT_USAGE if wrong_flag else EXIT_REFUSED) from error
    raise typer.Exit(status)


def supervise(config: ServerConfig) -> int:
    """Serves until told to stop. Imports late: grpc and the tokenizer come with it."""
    from . import supervisor

    return supervisor.serve(config)
