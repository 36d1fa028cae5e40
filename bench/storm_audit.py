"""What an idle server's statistics must say: nobody is in, and every page is accounted for.

Pure: one `Stats` message with its pages in, sentences of complaint out; none means that nothing
leaked. Knows neither how a server came to be idle nor who asks. Used by storm.py and by the tests
that share a server.
"""

from __future__ import annotations

from collections import Counter

from ..proto import lorry_pb2 as pb


def complaints(stats: pb.Stats) -> list[str]:
    """Of a server whose clients have all gone; `stats` was asked for with `pages`."""
    found: list[str] = []
    for name in ("num_running", "num_waiting", "pages_kv"):
        if value := getattr(stats, name):
            found.append(f"{name} is {value}, not 0")
    cached = stats.memory.pages_cached
    if stats.pages_free + stats.pages_adapter + cached != stats.pages_total:
        found.append(
            f"{stats.pages_free} free, {stats.pages_adapter} adapter and {cached} cached pages are "
            f"not {stats.pages_total} in all"
        )
    for resident in stats.residents:
        if resident.num_users:
            found.append(f"adapter {resident.name} still has {resident.num_users} users")
        if resident.loading:
            found.append(f"adapter {resident.name} is still loading")
    return found + _page_complaints(stats)


def _page_complaints(stats: pb.Stats) -> list[str]:
    """The map of the pages against the sums and the residents."""
    held: Counter[str] = Counter()
    kinds: Counter[int] = Counter()
    for run in stats.pages:
        kinds[run.kind] += run.count
        if run.kind == pb.PAGE_KIND_ADAPTER:
            held[run.owner] += run.count
        elif run.owner:
            kind = pb.PageKind.Name(run.kind)
            return [f"{run.count} pages of kind {kind} are owned by {run.owner!r}"]
    sums = {
        pb.PAGE_KIND_FREE: stats.pages_free,
        pb.PAGE_KIND_KV: stats.pages_kv,
        pb.PAGE_KIND_ADAPTER: stats.pages_adapter,
        pb.PAGE_KIND_CACHED: stats.memory.pages_cached,
    }
    found = [
        f"the map has {kinds[kind]} pages of kind {pb.PageKind.Name(kind)}, the sums say {num}"
        for kind, num in sums.items()
        if kinds[kind] != num
    ]
    # Two versions of one name may both be resident, and the map knows names only.
    due: Counter[str] = Counter()
    for resident in stats.residents:
        due[resident.name] += resident.num_pages
    if held != due:
        found.append(f"pages by owner {dict(held)} are not those of the residents {dict(due)}")
    return found
