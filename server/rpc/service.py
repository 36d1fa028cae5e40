"""The gRPC server: the three services, health, reflection, one address.

Owns the server's options and the publishing of health. Knows nothing of how a call is
answered (generation.py, adapters.py, engine.py). Built by the supervisor on its event loop.
"""

from __future__ import annotations

import asyncio

import grpc.aio

from ...proto import lorry_pb2_grpc as pb_grpc
from ..config import ServiceConfig, is_local
from ..errors import ConfigError
from .adapters import AdaptersService
from .engine import EngineService
from .front import Front
from .gate import TokenGate
from .generation import GenerationService
from .health import ADAPTERS, ENGINE, GENERATION, add_health, add_reflection
from .status import has_details
from .tls import ServerTls, tls_files

MAX_RECEIVE_BYTES = 8 << 20
MAX_SEND_BYTES = 64 << 20  # what our clients take: a map of every page of a large pool is long
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
    ("grpc.max_send_message_length", MAX_SEND_BYTES),
    # Two servers on one port would share its calls without a word.
    ("grpc.so_reuseport", 0),
)


class RpcServer:
    """Made and used on one event loop. `notes`: what is off because a package is missing."""

    def __init__(self, front: Front) -> None:
        self._front = front
        gates = [TokenGate(front.access)] if front.access.is_on else []
        self._server = grpc.aio.server(options=OPTIONS, interceptors=gates)
        pb_grpc.add_GenerationServicer_to_server(GenerationService(front), self._server)
        pb_grpc.add_AdaptersServicer_to_server(AdaptersService(front), self._server)
        pb_grpc.add_EngineServicer_to_server(EngineService(front), self._server)
        self._set_health = add_health(self._server)
        self.notes: list[str] = []
        if self._set_health is None:
            self.notes.append("no health service: grpcio-health-checking is not installed")
        if not add_reflection(self._server):
            self.notes.append("no reflection: grpcio-reflection is not installed")
        if not has_details():
            self.notes.append("errors carry no details: grpcio-status is not installed")
        self._changed = asyncio.Event()
        self._publisher: asyncio.Task[None] | None = None

    async def start(self, service: ServiceConfig) -> int:
        """Listens; returns the port.

        Raises:
            ConfigError: the address cannot be had, or a file of tokens or TLS is not right.
        """
        self._front.access.open()
        files = tls_files(service)
        tls = None if files is None else ServerTls(files)
        self.notes += _access_notes(service) + ([] if tls is None else tls.notes)
        address = f"{bracketed(service.host)}:{service.port}"
        try:
            if tls is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, tls.credentials)
        except RuntimeError as error:
            port, reason = 0, str(error)
        else:
            reason = "the address cannot be bound"
        if port == 0:
            raise ConfigError(
                f"--port is {service.port} and {address} cannot be used: {reason}", field="--port"
            )
        await self.publish()
        await self._server.start()
        self._publisher = asyncio.create_task(self._keep_published())
        return port

    def state_changed(self) -> None:
        """Health is published anew, soon."""
        self._changed.set()

    async def publish(self) -> None:
        if self._set_health is None:
            return
        serving, storing = self._front.serving, self._front.storing
        for service in ("", GENERATION, ENGINE):
            await self._set_health(service, serving)
        await self._set_health(ADAPTERS, storing)

    async def stop(self, grace_s: float) -> None:
        if self._publisher is not None:
            self._publisher.cancel()
        await self._server.stop(grace_s)

    async def _keep_published(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self.publish()


def _access_notes(service: ServiceConfig) -> list[str]:
    if is_local(service.host):
        return []
    notes: list[str] = []
    if service.tokens is None:
        who = f"reaches {service.host}"
        if service.tls_client_ca is not None:
            who = "holds a certificate that --tls-client-ca signed"
        notes.append(f"whoever {who} may do everything: there are no --tokens")
    if service.tls_cert is None:
        notes.append("calls are not encrypted here: there is no --tls-cert")
    return notes


def bracketed(host: str) -> str:
    """IPv6 addresses are written in brackets before a port."""
    return f"[{host}]" if ":" in host else host
