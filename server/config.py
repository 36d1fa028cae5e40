"""Configuration of one server: frozen, checked once at the edge, derived values as properties.

Built by the CLI from flags; every message names flag, value and limit. The only module that
reads the environment. Crosses to the engine and store processes as plain data.
"""

from __future__ import annotations

import ipaddress
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from .errors import ConfigError

KERNELS = ("auto", "cpu", "triton")
DTYPES = ("float32", "bfloat16", "float16")
POLICIES = ("fcfs", "slora")
EVICTIONS = ("economy", "lru", "split")
COLD_STARTS = ("wait", "stream", "assist", "auto")
MAX_PORT = 65535
MAX_HELPERS = 64
TOKEN_VARIABLE = "LORRY_TOKEN"
MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the engine loads."""

    model: str  # directory, or an id that is in the local Hugging Face cache
    device: str = "cpu"  # cpu, cuda, cuda:1
    dtype: str = "auto"  # auto: float32 on a CPU, else the checkpoint's own
    max_model_len: int = 0  # tokens of prompt and answer; 0: the model's own limit
    num_threads: int = 0  # of the CPU device; 0: all cores, or one for a model of tiny products
    kernels: str = "auto"  # auto: cpu on a CPU, triton on a GPU; triton on a CPU is interpreted
    cuda_graphs: bool = True  # decode steps on a GPU are recorded at start and replayed
    compile_layers: bool = False  # norms, rotary, activation by torch's compiler; GPU, not measured


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    pool_bytes: int = (
        0  # 0: a quarter of free memory on a CPU (at most 1 GiB), what is left on a GPU, less 2 GiB
    )
    host_bytes: int = 2 * GIB  # packed adapters kept in host memory
    max_rank: int = 256
    prefix_cache: bool = True  # KV of prompts and answers stays while there is room
    share_prefixes: bool = False  # between tenants, of one base or of adapters of one content
    eviction: str = "economy"  # who goes when room is needed; lru and split are baselines
    adapter_share: float = 0.2  # of the pool, for adapters alone; --eviction split only
    tenant_share: float = 1.0  # of the pool, that one tenant may hold at most
    prefetch: bool = True  # popular adapters come back while the link is idle
    link_bytes_per_s: float = 0.0  # emulate a link of this bandwidth (CPU); 0: none

    def adapter_share_pages(self, num_pages: int) -> int | None:
        """Of a pool of so many; None: adapters and KV share all of it."""
        return round(self.adapter_share * num_pages) if self.eviction == "split" else None

    def max_tenant_pages(self, num_pages: int) -> int | None:
        """None: a tenant may hold them all."""
        return int(self.tenant_share * num_pages) if self.tenant_share < 1.0 else None


@dataclass(frozen=True, slots=True)
class SchedulingConfig:
    max_running: int = 64  # requests in one step
    max_waiting: int = 10_000  # requests in the queue; one more is refused
    max_step_tokens: int = 1024  # prompt and decode tokens in one step
    max_bypass_s: float = 5.0  # how long others may overtake a request that does not fit
    ttft_s: float = 2.0  # bounds of a request that names none
    tpot_s: float = 0.2
    max_new_tokens: int = 256  # of a request that names none
    overlap: bool | None = None  # plan a step while the last one runs; None: on a GPU
    policy: str = "fcfs"  # slora: gives up who would be too late, newest first under overload


@dataclass(frozen=True, slots=True)
class ColdConfig:
    """How a request starts whose adapter is not in the pool."""

    # wait, stream or assist alone; auto: what is foretold to be the soonest, not measured yet
    cold_start: str = "wait"
    num_helpers: int = -1  # processes that assist, a core each; -1: cores the device leaves


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    host: str = "127.0.0.1"
    port: int = 50051  # 0: any free one, printed at start
    store: Path = Path("lorry-store")  # adapters, durable
    drain_s: float = 30.0  # open requests get this long after SIGTERM
    metrics_port: int = -1  # -1: no Prometheus endpoint; 0: any free one
    allow_remote: bool = False  # listen beyond this machine although nobody shows who they are
    max_upload_bytes: int = 4 * GIB
    tokens: Path | None = None  # who may call; None: whoever reaches the address
    tls_cert: Path | None = None  # PEM; None: no TLS
    tls_key: Path | None = None
    tls_client_ca: Path | None = None  # PEM; only clients with a certificate of these
    behind_tls: bool = False  # TLS ends in front of this server, so tokens arrive in the clear
    metrics_host: str = "127.0.0.1"  # the endpoint knows no tokens


@dataclass(frozen=True, slots=True)
class CostConfig:
    """How the server comes to know how long its steps take."""

    calibrate_s: float = 3.0  # for timing made-up steps at a first start; 0: none
    step_log: Path | None = None  # a line for each step, for study; None: none


@dataclass(frozen=True, slots=True)
class ServerConfig:
    model: ModelConfig
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    scheduling: SchedulingConfig = field(default_factory=SchedulingConfig)
    service: ServiceConfig = field(default_factory=ServiceConfig)
    cost: CostConfig = field(default_factory=CostConfig)
    cold: ColdConfig = field(default_factory=ColdConfig)
    debug: bool = False  # audit and poison freed pages at every step

    def checked(self) -> ServerConfig:
        """Returns itself.

        Raises:
            ConfigError: names the flag, its value and the limit.
        """
        _at_least("--max-running", self.scheduling.max_running, 1)
        _at_least("--max-waiting", self.scheduling.max_waiting, 1)
        _at_least("--max-step-tokens", self.scheduling.max_step_tokens, 1)
        _at_least("--max-new-tokens", self.scheduling.max_new_tokens, 1)
        _at_least("--max-model-len", self.model.max_model_len, 0)
        _at_least("--threads", self.model.num_threads, 0)
        _at_least("--pool-bytes", self.memory.pool_bytes, 0)
        _at_least("--host-bytes", self.memory.host_bytes, 0)
        _check_memory(self.memory, self.model.device)
        _at_least("--max-upload-bytes", self.service.max_upload_bytes, 1)
        _at_least("--drain", self.service.drain_s, 0)
        _above("--ttft", self.scheduling.ttft_s, 0)
        _above("--tpot", self.scheduling.tpot_s, 0)
        _between("--max-rank", self.memory.max_rank, 1, 256)
        if self.model.dtype != "auto" and self.model.dtype not in DTYPES:
            raise ConfigError(
                f"--dtype is {self.model.dtype!r}; it must be auto or one of {', '.join(DTYPES)}",
                field="--dtype",
            )
        _check_kernels(self.model)
        _one_of("--policy", self.scheduling.policy, POLICIES)
        _check_cold(self.cold, self.memory)
        _at_least("--max-bypass", self.scheduling.max_bypass_s, 0)
        _between("--port", self.service.port, 0, MAX_PORT)
        _between("--metrics-port", self.service.metrics_port, -1, MAX_PORT)
        if self.scheduling.max_step_tokens < self.scheduling.max_running:
            raise ConfigError(
                f"--max-step-tokens is {self.scheduling.max_step_tokens}, less than --max-running "
                f"({self.scheduling.max_running}): every running request decodes one token a step",
                field="--max-step-tokens",
            )
        _at_least("--calibrate", self.cost.calibrate_s, 0)
        _check_access(self.service)
        return self


def _check_kernels(model: ModelConfig) -> None:
    _one_of("--kernels", model.kernels, KERNELS)
    on_cpu = model.device.partition(":")[0] == "cpu"
    if model.kernels == "triton" and on_cpu:
        raise ConfigError(
            f"--kernels is {model.kernels!r} and --device is {model.device!r}: Triton needs a GPU, "
            "and its interpreter is for tests",
            field="--kernels",
        )
    if model.compile_layers and on_cpu:
        raise ConfigError(
            f"--compile-layers is given and --device is {model.device!r}: torch's compiler did not "
            "pay on a CPU, where a step is its products",
            field="--compile-layers",
        )


def _check_memory(memory: MemoryConfig, device: str) -> None:
    _one_of("--eviction", memory.eviction, EVICTIONS)
    _share("--adapter-share", memory.adapter_share)
    _share("--tenant-share", memory.tenant_share)
    if memory.eviction == "split" and memory.adapter_share == 1:
        raise ConfigError(
            "--adapter-share is 1 and --eviction 'split': no request could run, as KV is left "
            "nothing; it must be less than 1",
            field="--adapter-share",
        )
    _at_least("--link-bytes-per-s", memory.link_bytes_per_s, 0)
    if memory.link_bytes_per_s and device.partition(":")[0] != "cpu":
        raise ConfigError(
            f"--link-bytes-per-s is {memory.link_bytes_per_s:g} and --device is {device!r}: a link "
            "is emulated on a CPU only, a GPU has one",
            field="--link-bytes-per-s",
        )


def _check_cold(cold: ColdConfig, memory: MemoryConfig) -> None:
    """What can be said before the machine is looked at (cold_choice.py says the rest)."""
    _one_of("--cold-start", cold.cold_start, COLD_STARTS)
    _between("--helpers", cold.num_helpers, -1, MAX_HELPERS)
    if cold.cold_start == "assist" and cold.num_helpers == 0:
        raise ConfigError(
            "--cold-start is 'assist' and --helpers is 0: assisting takes at least 1 helper",
            field="--helpers",
        )
    if cold.cold_start == "assist" and memory.host_bytes == 0:
        raise ConfigError(
            "--cold-start is 'assist' and --host-bytes is 0: helpers compute from images in host "
            "memory, and there is none for them",
            field="--host-bytes",
        )


def _check_access(service: ServiceConfig) -> None:
    """What is asked of a server that others can reach."""
    if service.tls_cert is None and service.tls_key is not None:
        raise ConfigError("--tls-key is given and --tls-cert is not", field="--tls-cert")
    if service.tls_cert is not None and service.tls_key is None:
        raise ConfigError("--tls-cert is given and --tls-key is not", field="--tls-key")
    if service.tls_client_ca is not None and service.tls_cert is None:
        raise ConfigError(
            "--tls-client-ca is given and --tls-cert is not: clients show their certificates "
            "over TLS alone",
            field="--tls-cert",
        )
    if is_local(service.host):
        return
    # A certificate is an answer: then those whom the operator gave one are all admins.
    if service.tokens is None and service.tls_client_ca is None and not service.allow_remote:
        raise ConfigError(
            f"--host is {service.host}, reachable from elsewhere, and whoever reaches it may do "
            "everything; give --tokens, or --tls-client-ca to let in holders of a certificate "
            "alone, or say --allow-remote if the network is yours alone",
            field="--host",
        )
    if service.tokens is not None and service.tls_cert is None and not service.behind_tls:
        raise ConfigError(
            f"--host is {service.host}, reachable from elsewhere, and without TLS tokens can be "
            "read on the way; give --tls-cert and --tls-key, or say --behind-tls if TLS ends "
            "in front of this server",
            field="--host",
        )


def token_of_environment() -> str:
    """What client commands show a server when they are given no file; empty: nothing."""
    return os.environ.get(TOKEN_VARIABLE, "").strip()


def _one_of(flag: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(
            f"{flag} is {value!r}; it must be one of {', '.join(allowed)}", field=flag
        )


def _at_least(flag: str, value: float, limit: float) -> None:
    if not limit <= value < math.inf:  # also what is no number
        raise ConfigError(f"{flag} is {value}; it must be finite, at least {limit}", field=flag)


def _above(flag: str, value: float, limit: float) -> None:
    if not limit < value < math.inf:
        raise ConfigError(f"{flag} is {value}; it must be finite, more than {limit}", field=flag)


def _share(flag: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ConfigError(f"{flag} is {value}; it must be more than 0, at most 1", field=flag)


def _between(flag: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{flag} is {value}; it must be {low} to {high}", field=flag)


def is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
