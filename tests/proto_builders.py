"""A server of lorry.v1 that answers from tables and records what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2_grpc
from grpc_status import rpc_status

from lorry.proto import lorry_pb2 as pb
from lorry.proto import lorry_pb2_grpc as pb_grpc

CHUNKS = (("Grüße", (1, 2)), ("", (3,)), (" 🚚", (4,)))
TEXT = "Grüße 🚚"

FINAL = pb.Final(
    reason=pb.FINISH_REASON_LENGTH,
    usage=pb.Usage(prompt_tokens=7, completion_tokens=4, preemptions=1, cached_tokens=5),
    timing=pb.Timing(queue_s=0.5, load_s=0.25, prefill_s=0.125, ttft_s=0.75, tpot_s=0.0625),
    seed=2**63 + 1,
    adapter_version=3,
)


RESIDENCY = pb.Residency(
    place=pb.PLACE_POOL,
    pinned=True,
    requests_total=8,
    pool_hits_total=6,
    loads_total=2,
    load_s=0.125,
)


def make_adapter(name: str = "upper", version: int = 1, **fields: object) -> pb.Adapter:
    return pb.Adapter(
        name=name,
        version=version,
        max_rank=8,
        num_pages=5,
        size_bytes=4096,
        rounding_error=2.5e-4,
        target_modules=["q_proj", "v_proj"],
        **fields,
    )


def make_peft_directory(
    folder: Path, *, size_bytes: int = 100, weights: str = "adapter_model.safetensors"
) -> Path:
    """Files of the right names; the bytes differ along the file, so that order shows."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    (folder / weights).write_bytes(bytes(index * 7 % 251 for index in range(size_bytes)))
    return folder


def make_status(code: grpc.StatusCode, message: str, *details: Message) -> grpc.Status:
    packed: list[PackedAny] = []
    for detail in details:
        box = PackedAny()
        box.Pack(detail)
        packed.append(box)
    return rpc_status.to_status(
        status_pb2.Status(code=code.value[0], message=message, details=packed)
    )


def bad_request(field_name: str, message: str) -> grpc.Status:
    violation = error_details_pb2.BadRequest.FieldViolation(field=field_name, description=message)
    return make_status(
        grpc.StatusCode.INVALID_ARGUMENT,
        message,
        error_details_pb2.BadRequest(field_violations=[violation]),
    )


def not_found(name: str) -> grpc.Status:
    return make_status(
        grpc.StatusCode.NOT_FOUND,
        f"there is no adapter {name!r}",
        error_details_pb2.ResourceInfo(resource_type="adapter", resource_name=name),
    )


def queue_full() -> grpc.Status:
    violation = error_details_pb2.QuotaFailure.Violation(subject="max_waiting", description="10")
    return make_status(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "the queue holds 10 requests, its limit",
        error_details_pb2.QuotaFailure(violations=[violation]),
        error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000)),
    )


@dataclass
class Recorder:
    """What the fake server heard."""

    generate: list[pb.GenerateRequest] = field(default_factory=list)
    headers: list[pb.UploadHeader] = field(default_factory=list)
    uploads: list[bytes] = field(default_factory=list)
    chunk_sizes: list[list[int]] = field(default_factory=list)
    lists: list[pb.ListAdaptersRequest] = field(default_factory=list)
    stats: list[pb.GetStatsRequest] = field(default_factory=list)
    prefetches: list[pb.PrefetchRequest] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)


def make_logprob(token_id: int) -> pb.TokenLogprob:
    """Half of an é, and a better token beside it."""
    best = pb.RankedToken(token_id=5, token=b"x", logprob=-0.25)
    return pb.TokenLogprob(token_id=token_id, token=b"\xc3", logprob=-1.5, top=[best])


def make_chunk(
    request: pb.GenerateRequest, index: int, text: str, token_ids: tuple[int, ...]
) -> pb.Chunk:
    """Answers after the first begin with their index."""
    asked = request.HasField("logprobs")
    return pb.Chunk(
        text=f"{index}{text}" if index else text,
        token_ids=token_ids,
        index=index,
        logprobs=[make_logprob(token) for token in token_ids] if asked else [],
    )


def make_final(request: pb.GenerateRequest, index: int) -> pb.Final:
    final = pb.Final()
    final.CopyFrom(FINAL)
    final.index = index
    if request.stop:
        final.reason, final.stop_string = pb.FINISH_REASON_STOP, request.stop[0]
    return final


class FakeGeneration(pb_grpc.GenerationServicer):
    """Adapters by name: missing, full, hang (until cancelled), torn (the first answer has no
    final message)."""

    def __init__(self, heard: Recorder) -> None:
        self.heard = heard

    def Generate(
        self, request: pb.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateResponse]:
        self.heard.generate.append(request)
        if request.adapter == "missing":
            context.abort_with_status(not_found("missing"))
        if request.adapter == "full":
            context.abort_with_status(queue_full())
        if request.adapter == "hang":
            # Before the first chunk: a generator whose call has ended is never resumed.
            context.add_callback(self.heard.cancelled.set)
        if request.HasField("prompt_logprobs"):
            stretch = pb.PromptLogprobs(first_position=1, logprobs=[make_logprob(9)])
            yield pb.GenerateResponse(prompt_logprobs=stretch)
        indices = range(request.n or 1)
        for text, token_ids in CHUNKS:
            for index in indices:
                yield pb.GenerateResponse(chunk=make_chunk(request, index, text, token_ids))
            if request.adapter == "hang":
                self.heard.cancelled.wait(10)
                return
        for index in reversed(indices[1:] if request.adapter == "torn" else indices):
            yield pb.GenerateResponse(final=make_final(request, index))


class FakeAdapters(pb_grpc.AdaptersServicer):
    """Pages of two; a name that begins with `bad` is refused."""

    def __init__(self, heard: Recorder, names: tuple[str, ...]) -> None:
        self.heard = heard
        self.names = names

    def Upload(
        self, request_iterator: Iterator[pb.UploadRequest], context: grpc.ServicerContext
    ) -> pb.Adapter:
        header = next(request_iterator).header
        self.heard.headers.append(header)
        if header.name.startswith("bad"):
            context.abort_with_status(bad_request("use_dora", "use_dora is true; only false"))
        chunks = [request.chunk for request in request_iterator]
        self.heard.chunk_sizes.append([len(chunk) for chunk in chunks])
        self.heard.uploads.append(b"".join(chunks))
        return make_adapter(header.name, notes=["trained on another base"])

    def Get(self, request: pb.GetAdapterRequest, context: grpc.ServicerContext) -> pb.Adapter:
        if request.name not in self.names:
            context.abort_with_status(not_found(request.name))
        return make_adapter(request.name, residency=RESIDENCY)

    def List(
        self, request: pb.ListAdaptersRequest, context: grpc.ServicerContext
    ) -> pb.ListAdaptersResponse:
        self.heard.lists.append(request)
        names = [name for name in self.names if name.startswith(request.prefix)]
        begin = int(request.page_token or 0)
        page = [make_adapter(name, residency=RESIDENCY) for name in names[begin : begin + 2]]
        more = str(begin + 2) if begin + 2 < len(names) else ""
        return pb.ListAdaptersResponse(adapters=page, next_page_token=more, total=len(names))

    def Delete(
        self, request: pb.DeleteAdapterRequest, context: grpc.ServicerContext
    ) -> pb.DeleteAdapterResponse:
        if request.name not in self.names:
            context.abort_with_status(not_found(request.name))
        return pb.DeleteAdapterResponse(version=4)

    def Prefetch(self, request: pb.PrefetchRequest, context: grpc.ServicerContext) -> pb.Adapter:
        self.heard.prefetches.append(request)
        if request.name not in self.names:
            context.abort_with_status(not_found(request.name))
        place = pb.PLACE_HOST if request.tier == pb.TIER_HOST else pb.PLACE_LOADING
        return make_adapter(request.name, residency=pb.Residency(place=place, pinned=request.pin))


MEMORY = pb.Memory(
    eviction="economy",
    params=[pb.EconomyParam(name="span_turnovers", value=4)],
    pages_cached=17,
    prefix_lookup_tokens_total=200,
    prefix_hit_tokens_total=130,
    prefix_evictions_total=3,
    preempted_tokens_kept_total=4,
    host_capacity_bytes=4 << 20,
    host_peak_bytes=3 << 20,
    host_hits_total=1,
    host_misses_total=7,
    prefetches_total=5,
    loads_cancelled_total=6,
    requests_with_adapter_total=8,
    pool_hits_total=6,
)


class FakeEngine(pb_grpc.EngineServicer):
    def __init__(self, heard: Recorder) -> None:
        self.heard = heard

    def GetInfo(self, request: pb.GetInfoRequest, context: grpc.ServicerContext) -> pb.Info:
        shapes = [("layers.0.q", 64, 512), ("layers.0.v", 64, 64), ("head", 64, 999)]
        return pb.Info(
            version="9.9",
            model="tiny",
            dtype="float32",
            num_pages=64,
            page_bytes=1 << 20,
            tokens_per_page=16,
            vocab_size=999,
            site_shapes=[pb.SiteShape(name=n, in_width=i, out_width=o) for n, i, o in shapes],
            prefix_cache=True,
        )

    def GetStats(self, request: pb.GetStatsRequest, context: grpc.ServicerContext) -> pb.Stats:
        self.heard.stats.append(request)
        resident = pb.ResidentAdapter(name="[upper]", version=1, num_pages=5, loading=True)
        return pb.Stats(
            pages_free=59,
            residents=[resident],
            tokens_decode_total=2**40,
            host_bytes=1 << 20,
            memory=MEMORY,
        )


class FakeServer:
    """Listens on a free local port until closed."""

    def __init__(
        self,
        *,
        names: tuple[str, ...] = ("a1", "a2", "a3", "b1", "b2"),
        with_health: bool = True,
        interceptors: tuple[grpc.ServerInterceptor, ...] = (),
    ) -> None:
        self.heard = Recorder()
        self.health = health.HealthServicer() if with_health else None
        self._server = grpc.server(futures.ThreadPoolExecutor(4), interceptors=interceptors)
        pb_grpc.add_GenerationServicer_to_server(FakeGeneration(self.heard), self._server)
        pb_grpc.add_AdaptersServicer_to_server(FakeAdapters(self.heard, names), self._server)
        pb_grpc.add_EngineServicer_to_server(FakeEngine(self.heard), self._server)
        if self.health is not None:
            health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(0).wait()

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
