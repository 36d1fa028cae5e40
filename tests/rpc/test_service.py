"""Health, reflection, information, statistics and metrics of a front end that listens."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lorry.proto import lorry_pb2 as pb
from lorry.proto import lorry_pb2_grpc as pb_grpc
from lorry.proto.async_client import AsyncClient
from lorry.server.config import ServiceConfig
from lorry.server.errors import ConfigError
from lorry.server.metrics import MEASURES, serve_metrics
from lorry.server.rpc.front import Front
from lorry.server.rpc.service import RpcServer
from lorry.server.seam import PageRunStats
from lorry.tests.rpc_builders import FakeEngine, Service, make_config, running_service

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def run(body: Callable[[Service], Awaitable[None]], **service: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), running_service(**service) as running:
            await body(running)

    asyncio.run(main())


async def until(service: Service, name: str, wanted: int) -> None:
    """Waits on the health service's own stream."""
    watch = health_pb2_grpc.HealthStub(service.channel).Watch(
        health_pb2.HealthCheckRequest(service=name), timeout=10
    )
    async for answer in watch:
        if answer.status == wanted:
            watch.cancel()
            return


def test_health_follows_the_engine_and_the_drain():
    """Broken: a balancer sends requests to a server that cannot answer them."""

    async def body(service: Service) -> None:
        await until(service, "", NOT_SERVING)
        service.attach_engine(service.engine)
        for name in ("", "lorry.v1.Generation", "lorry.v1.Adapters", "lorry.v1.Engine"):
            await until(service, name, SERVING)
        service.engine.die()
        await until(service, "", NOT_SERVING)
        service.attach_engine(FakeEngine())
        await until(service, "", SERVING)
        service.front.store.hang_up()
        await until(service, "lorry.v1.Adapters", NOT_SERVING)
        await until(service, "lorry.v1.Generation", SERVING)
        assert await service.front.drain(1)
        await until(service, "lorry.v1.Generation", NOT_SERVING)

    run(body, up=False)


def test_reflection_names_the_services():
    """Broken: grpcurl cannot find what the server offers."""

    async def body(service: Service) -> None:
        assert service.server.notes == []
        stub = reflection_pb2_grpc.ServerReflectionStub(service.channel)
        call = stub.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        async for answer in call:
            names = {entry.name for entry in answer.list_services_response.service}
            assert {"lorry.v1.Generation", "lorry.v1.Adapters", "lorry.v1.Engine"} <= names
            return

    run(body)


def test_info_and_stats_join_engine_and_front_end():
    """Broken: GetInfo or GetStats leave out what only one of the processes knows."""

    async def body(service: Service) -> None:
        stub = pb_grpc.EngineStub(service.channel)
        info = await stub.GetInfo(pb.GetInfoRequest())
        assert (info.model, info.dtype, info.max_rank) == ("tiny", "float32", 256)
        assert list(info.sites) == ["q_proj"]
        assert info.policy == "fcfs"
        service.front.engine_restarts = 3
        stats = await stub.GetStats(pb.GetStatsRequest(pages=True))
        assert (stats.engine_restarts_total, stats.adapters_registered) == (3, 2)
        assert stats.uptime_s > 0
        assert stats.residents[0].name == "upper"
        assert [(run.kind, run.count, run.owner) for run in stats.pages] == [
            (pb.PAGE_KIND_KV, 2, "7"),
            (pb.PAGE_KIND_FREE, 30, ""),
        ]
        assert not (await stub.GetStats(pb.GetStatsRequest())).pages
        service.engine.die()
        await until(service, "", NOT_SERVING)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetStats(pb.GetStatsRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    run(body)


def test_a_map_of_every_page_of_a_large_pool_arrives():
    """Broken: the one picture of a full pool is refused by its own server for its length."""

    async def body(service: Service) -> None:
        service.engine.page_runs = (PageRunStats("adapter", 1, "x" * 1000),) * 9000
        async with AsyncClient(f"127.0.0.1:{service.port}") as client:
            assert len((await client.stats(pages=True)).pages) == 9000

    run(body)


def test_a_taken_port_is_refused_not_shared():
    """Broken: two servers on one port each get half of the calls."""

    async def body(service: Service) -> None:
        port = service.port
        front = Front(make_config(), service.front.clock)
        with pytest.raises(ConfigError, match=str(port)):
            await RpcServer(front).start(ServiceConfig(port=port))

    run(body)


def test_metrics_have_every_name_and_no_adapter():
    """Broken: a figure of the table is missing from a scrape, or a label has no bound."""

    async def body(service: Service) -> None:
        loop = asyncio.get_running_loop()
        endpoint = serve_metrics(service.front, loop, host="127.0.0.1", port=0)
        try:
            text = await asyncio.to_thread(_scrape, endpoint.port)
            for measure in MEASURES:
                assert f"\n{measure.name} " in text, measure.name
            assert "lorry_up 1.0" in text
            assert "\nlorry_pages 32.0" in text
            assert "upper" not in text
            service.engine.die()
            await until(service, "", NOT_SERVING)
            text = await asyncio.to_thread(_scrape, endpoint.port)
            assert "lorry_up 0.0" in text
            assert "lorry_pages" not in text
        finally:
            await asyncio.to_thread(endpoint.close)

    run(body)


def _scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()
