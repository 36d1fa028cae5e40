"""Prometheus metrics: one table of names, filled from the engine's records when scraped.

Owns the only use of the Prometheus client. The engine is asked for its statistics between two
steps, as by GetStats; nothing is counted here. No adapter is ever a label: their number has
no bound. Started by the supervisor when `--metrics-port` is given.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from .errors import ConfigError, EngineUnavailable
from .rpc.front import Front
from .seam import EngineStats

SCRAPE_TIMEOUT_S = 5.0
COLD_WAYS = ("wait", "stream", "assist")


@dataclass(frozen=True, slots=True)
class Measure:
    """A counter when its name ends in `_total`, else a gauge; the unit is in the name."""

    name: str
    help: str
    read: Callable[[EngineStats], float]


MEASURES = (
    Measure("lorry_requests_running", "Requests in the step under way.", lambda s: s.num_running),
    Measure("lorry_requests_waiting", "Requests in the queue.", lambda s: s.num_waiting),
    Measure("lorry_pages", "Pages of the pool.", lambda s: s.pages_total),
    Measure("lorry_pages_free", "Pages nobody holds.", lambda s: s.pages_free),
    Measure("lorry_pages_kv", "Pages that hold KV.", lambda s: s.pages_kv),
    Measure("lorry_pages_adapter", "Pages that hold adapters.", lambda s: s.pages_adapter),
    Measure(
        "lorry_pages_cached",
        "Pages of cached prefixes that no request holds.",
        lambda s: s.memory.pages_cached,
    ),
    Measure(
        "lorry_adapters_resident",
        "Adapters whole in the pool.",
        lambda s: sum(not resident.loading for resident in s.residents),
    ),
    Measure(
        "lorry_adapters_loading",
        "Adapters on their way into the pool.",
        lambda s: sum(resident.loading for resident in s.residents),
    ),
    Measure("lorry_host_bytes", "Packed adapters in host memory, bytes.", lambda s: s.host_bytes),
    Measure(
        "lorry_host_capacity_bytes",
        "Bytes that adapters in host memory may take.",
        lambda s: s.memory.host_capacity_bytes,
    ),
    Measure(
        "lorry_host_peak_bytes",
        "Most bytes that adapters in host memory have taken.",
        lambda s: s.memory.host_peak_bytes,
    ),
    Measure(
        "lorry_host_hit_loads_total",
        "Loads whose image was in host memory.",
        lambda s: s.memory.host_hits,
    ),
    Measure(
        "lorry_host_missed_loads_total",
        "Loads whose image was read from disk.",
        lambda s: s.memory.host_misses,
    ),
    Measure("lorry_steps_total", "Steps of the engine.", lambda s: s.steps_total),
    Measure(
        "lorry_prefill_tokens_total", "Prompt tokens computed.", lambda s: s.tokens_prefill_total
    ),
    Measure(
        "lorry_decode_tokens_total", "Decode tokens computed.", lambda s: s.tokens_decode_total
    ),
    Measure(
        "lorry_requests_finished_total",
        "Requests answered whole.",
        lambda s: s.requests_finished_total,
    ),
    Measure(
        "lorry_requests_failed_total",
        "Requests ended without a whole answer.",
        lambda s: s.requests_failed_total,
    ),
    Measure(
        "lorry_requests_cancelled_total",
        "Requests whose client went away.",
        lambda s: s.requests_cancelled_total,
    ),
    Measure(
        "lorry_requests_aborted_total",
        "Requests given up early, of those failed.",
        lambda s: s.requests_aborted_total,
    ),
    Measure(
        "lorry_preemptions_total",
        "Times a request gave its pages back.",
        lambda s: s.preemptions_total,
    ),
    Measure(
        "lorry_adapter_loads_total",
        "Adapters brought into the pool.",
        lambda s: s.adapter_loads_total,
    ),
    Measure(
        "lorry_adapter_evictions_total",
        "Adapters moved out of the pool.",
        lambda s: s.adapter_evictions_total,
    ),
    Measure(
        "lorry_adapter_requests_total",
        "Requests that name an adapter.",
        lambda s: s.memory.requests_with_adapter,
    ),
    Measure(
        "lorry_adapter_hit_requests_total",
        "Of those, the ones whose adapter was in the pool when they came.",
        lambda s: s.memory.pool_hits,
    ),
    Measure(
        "lorry_adapter_prefetch_loads_total",
        "Adapters loaded although no request waited for them.",
        lambda s: s.memory.prefetches,
    ),
    Measure(
        "lorry_adapter_cancelled_loads_total",
        "Loads given up because nobody needed them any more.",
        lambda s: s.memory.loads_cancelled,
    ),
    Measure(
        "lorry_cold_lost_rows_total",
        "Requests' parts of steps thrown away: a layer, or a helper's answer, came too late.",
        lambda s: s.cold.lost_rows,
    ),
    Measure("lorry_helpers_up", "Helper processes that assist.", lambda s: s.cold.helpers_up),
    Measure(
        "lorry_helper_restarts_total",
        "Times a helper process was started again.",
        lambda s: s.cold.helper_restarts,
    ),
    Measure(
        "lorry_prefix_lookup_tokens_total",
        "Prompt tokens of requests that looked into the prefix cache.",
        lambda s: s.memory.prefix_lookup_tokens,
    ),
    Measure(
        "lorry_prefix_hit_tokens_total",
        "Prompt tokens that were found there and not computed again.",
        lambda s: s.memory.prefix_hit_tokens,
    ),
    Measure(
        "lorry_prefix_evicted_pages_total",
        "Pages of cached prefixes that went for something else.",
        lambda s: s.memory.prefix_evictions,
    ),
    Measure(
        "lorry_preempted_tokens_kept_total",
        "Tokens of preempted requests that stayed in the prefix cache.",
        lambda s: s.memory.preempted_tokens_kept,
    ),
    Measure(
        "lorry_cost_model_r2",
        "Share of the variance of the last steps' seconds that was foretold; NaN: too few steps.",
        lambda s: s.cost.r2,
    ),
    Measure(
        "lorry_cost_model_mape_ratio",
        "Mean of |predicted - taken| / taken over the last steps; NaN: no steps.",
        lambda s: s.cost.mape,
    ),
)


class EngineCollector(Collector):
    """Called on the endpoint's threads; asks the engine through the event loop."""

    def __init__(self, front: Front, loop: asyncio.AbstractEventLoop) -> None:
        self._front = front
        self._loop = loop

    def describe(self) -> list[Metric]:
        return []  # nothing is asked at registration: the engine is not up yet

    def collect(self) -> Iterator[Metric]:
        front = self._front
        yield _family("lorry_up", "Whether new requests are taken.", float(front.serving))
        yield _family("lorry_uptime_seconds", "Since the server's start.", front.uptime_s)
        yield _family(
            "lorry_engine_restarts_total", "Times the engine was restarted.", front.engine_restarts
        )
        stats = self._stats()
        yield _economy(stats)
        yield _cold_starts(stats)
        if stats is not None:
            for measure in MEASURES:
                yield _family(measure.name, measure.help, measure.read(stats))

    def _stats(self) -> EngineStats | None:
        """None while the engine is down or too busy to say."""
        question = asyncio.run_coroutine_threadsafe(
            self._front.engine.stats(pages=False), self._loop
        )
        try:
            return question.result(SCRAPE_TIMEOUT_S)
        except (EngineUnavailable, concurrent.futures.CancelledError):
            return None
        except TimeoutError:
            question.cancel()
            return None


@dataclass(frozen=True, slots=True)
class MetricsEndpoint:
    port: int
    close: Callable[[], None]


def serve_metrics(
    front: Front, loop: asyncio.AbstractEventLoop, *, host: str, port: int
) -> MetricsEndpoint:
    """Raises:
    ConfigError: the address cannot be had.
    """
    registry = CollectorRegistry()
    registry.register(EngineCollector(front, loop))
    try:
        server, _ = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise ConfigError(
            f"--metrics-port is {port} and {host} cannot be bound there: {error}",
            field="--metrics-port",
        ) from error

    def close() -> None:
        server.shutdown()
        server.server_close()

    return MetricsEndpoint(server.server_port, close)


def _family(name: str, help_text: str, value: float) -> Any:
    if name.endswith("_total"):
        return CounterMetricFamily(name, help_text, value=value)
    return GaugeMetricFamily(name, help_text, value=value)


def _economy(stats: EngineStats | None) -> Any:
    """One gauge; its labels are bounded: one policy a server, a handful of parameters."""
    family = GaugeMetricFamily(
        "lorry_economy_parameter",
        "Parameters of the order in which idle adapters and prefixes go, by name with the unit.",
        labels=("eviction", "param"),
    )
    if stats is not None:
        for param, value in stats.memory.params:
            family.add_metric((stats.memory.eviction, param), value)
    return family


def _cold_starts(stats: EngineStats | None) -> Any:
    """One counter; its label is one of three."""
    family = CounterMetricFamily(
        "lorry_cold_starts_total",
        "Requests whose adapter was not in the pool, by the way they came to their first token.",
        labels=("way",),
    )
    if stats is not None:
        for way in COLD_WAYS:
            family.add_metric((way,), getattr(stats.cold, way))
    return family
