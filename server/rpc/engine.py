"""`Engine`: what is served, and how it is doing.

Translates records into messages and nothing else. Knows no pages beyond their numbers.
"""

from __future__ import annotations

from ... import __version__
from ...proto import lorry_pb2 as pb
from ...proto import lorry_pb2_grpc as pb_grpc
from ..seam import EngineInfo, EngineStats, PageRunStats
from .access import Caller
from .cold import cold_message
from .cost import cost_message
from .front import Front
from .guard import Context, answering
from .limits import request_limits
from .memory import memory_message
from .view import name_for, seen_by

PAGE_KINDS = {
    "free": pb.PAGE_KIND_FREE,
    "kv": pb.PAGE_KIND_KV,
    "adapter": pb.PAGE_KIND_ADAPTER,
    "cached": pb.PAGE_KIND_CACHED,
}


class EngineService(pb_grpc.EngineServicer):
    def __init__(self, front: Front) -> None:
        self._front = front

    @answering
    async def GetInfo(self, request: pb.GetInfoRequest, context: Context) -> pb.Info:  # noqa: N802
        return self._info(self._front.engine.require())

    @answering
    async def GetStats(self, request: pb.GetStatsRequest, context: Context) -> pb.Stats:  # noqa: N802
        caller = self._front.access.caller(context)
        stats = await self._front.engine.stats(pages=request.pages)
        message = _stats(seen_by(caller, stats), caller)
        message.engine_restarts_total = self._front.engine_restarts
        message.uptime_s = self._front.uptime_s
        message.adapters_registered = await self._front.registry.count(
            None if caller.sees_all else caller.tenant
        )
        return message

    def _info(self, info: EngineInfo) -> pb.Info:
        config, text = self._front.config, self._front.text
        return pb.Info(
            version=__version__,
            model=config.model.model,
            architecture=info.architecture,
            dtype=info.dtype,
            device=info.device,
            fingerprint=info.fingerprint,
            max_model_len=info.max_model_len,
            max_rank=config.memory.max_rank,
            num_pages=info.num_pages,
            page_bytes=info.page_bytes,
            tokens_per_page=info.tokens_per_page,
            sites=sorted({site.name.rsplit(".", 1)[-1] for site in info.image_spec.sites}),
            self_proof=info.self_proof,
            default_ttft_s=config.scheduling.ttft_s,
            default_tpot_s=config.scheduling.tpot_s,
            default_max_new_tokens=config.scheduling.max_new_tokens,
            # The engine may be up before the tokenizer is read; health is not good until both are.
            has_chat_template=text is not None and text.chat is not None,
            vocab_size=info.vocab_size,
            limits=request_limits(config.scheduling),
            policy=config.scheduling.policy,
            site_shapes=[
                pb.SiteShape(name=site.name, in_width=site.in_width, out_width=site.out_width)
                for site in info.image_spec.sites
            ],
            prefix_cache=config.memory.prefix_cache,
            cold_start=info.cold_start,
        )


def _stats(stats: EngineStats, caller: Caller) -> pb.Stats:
    return pb.Stats(
        num_running=stats.num_running,
        num_waiting=stats.num_waiting,
        pages_total=stats.pages_total,
        pages_free=stats.pages_free,
        pages_kv=stats.pages_kv,
        pages_adapter=stats.pages_adapter,
        steps_total=stats.steps_total,
        tokens_prefill_total=stats.tokens_prefill_total,
        tokens_decode_total=stats.tokens_decode_total,
        requests_finished_total=stats.requests_finished_total,
        requests_failed_total=stats.requests_failed_total,
        requests_cancelled_total=stats.requests_cancelled_total,
        requests_aborted_total=stats.requests_aborted_total,
        preemptions_total=stats.preemptions_total,
        adapter_loads_total=stats.adapter_loads_total,
        adapter_evictions_total=stats.adapter_evictions_total,
        host_bytes=stats.host_bytes,
        residents=[
            pb.ResidentAdapter(
                name=name_for(caller, resident.key.tenant, resident.key.name),
                version=resident.key.version,
                num_pages=resident.num_pages,
                loading=resident.loading,
                num_users=resident.num_users,
            )
            for resident in stats.residents
        ],
        pages=[_page_run(run, caller) for run in stats.page_runs],
        cost_model=cost_message(stats.cost),
        memory=memory_message(stats.memory),
        cold_starts=cold_message(stats.cold),
    )


def _page_run(run: PageRunStats, caller: Caller) -> pb.PageRun:
    # A request's number is one of a kind; an adapter's name is so within its tenant only.
    owner = name_for(caller, run.tenant, run.owner) if run.kind == "adapter" else run.owner
    return pb.PageRun(kind=PAGE_KINDS[run.kind], count=run.count, owner=owner)
