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
