"""Health and reflection: what gRPC tools ask any server.

Owns the names that health is kept for. Both packages are optional: without one the server
runs, and its start-up says what is missing. Called by `service.py` and on every change of
the server's state.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio

GENERATION = "lorry.v1.Generation"
ADAPTERS = "lorry.v1.Adapters"
ENGINE = "lorry.v1.Engine"
SERVICES = (GENERATION, ADAPTERS, ENGINE)

SetHealth = Callable[[str, bool], Awaitable[None]]


def add_health(server: grpc.aio.Server) -> SetHealth | None:
    """How to set one service's state; None when the package is missing."""
    try:
        from grpc_health.v1 import health_pb2, health_pb2_grpc
        from grpc_health.v1.health import aio  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError:
        return None
    servicer: Any = aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    states = health_pb2.HealthCheckResponse

    async def set_health(service: str, serving: bool) -> None:
        await servicer.set(service, states.SERVING if serving else states.NOT_SERVING)

    return set_health


def add_reflection(server: grpc.aio.Server) -> bool:
    """Whether the package is there."""
    try:
        from grpc_reflection.v1alpha import reflection
    except ImportError:
        return False
    names = [*SERVICES, reflection.SERVICE_NAME]
    try:
        from grpc_health.v1 import health
    except ImportError:
        pass
    else:
        names.append(health.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    return True
