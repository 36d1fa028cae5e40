"""Peers as rows of the table, and their opinion of Lorry's answers.

Owns how a peer is asked: as `generate` comes, and with a cache of fixed size, which a user may
ask for and which is much the faster in transformers 5.23. Peers live in children (child.py) and
compute one at a time. Knows no server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from .answers import Answers, differing_share, equal_until_divergence
from .figures import SameWork
from .rounds import Row, Way

PEERS = ("hf", "peft")
LABELS = {"hf": "transformers, base", "peft": "PEFT, {num_adapters} adapters"}
# Ending of the key -> (cache, ending of the label, note).
CACHES = {
    "": ("dynamic", "", "one batch; `generate` with its defaults"),
    "_static": ("static", ", static cache", "the same with cache_implementation=static"),
}


class PeerCalls(Protocol):
    """A `Peer` of peer_worker.py, wherever it lives."""

    def call(self, method: str, *args: object, **options: object) -> Any: ...


def peer_ways(name: str, peer: PeerCalls, *, num_adapters: int) -> list[Way]:
    return [
        Way(
            name + ending,
            LABELS[name].format(num_adapters=num_adapters) + label,
            note,
            _ask(peer, cache),
            is_peer=True,
        )
        for ending, (cache, label, note) in CACHES.items()
    ]


def _ask(peer: PeerCalls, cache: str) -> Callable[[], Answers]:
    return lambda: peer.call("generate", cache)


def compare(rows: Mapping[str, Row], peers: Mapping[str, PeerCalls]) -> SameWork:
    """Lorry's answers beside the peers', and under their logits."""
    base, lora = (rows[key].answers.token_ids for key in ("base", "lora"))
    hf, peft = peers.get("hf"), peers.get("peft")
    # Either peer knows the base; the one with adapters can leave them out.
    base_judge = hf or peft
    return SameWork(
        lora_differing=differing_share(lora, base),
        base_equal_hf=_equal(base, rows.get("hf")),
        lora_equal_peft=_equal(lora, rows.get("peft")),
        base_by_hf=hf.call("judge", base, by_base=True) if hf else None,
        lora_by_peft=peft.call("judge", lora, by_base=False) if peft else None,
        lora_by_base=base_judge.call("judge", lora, by_base=True) if base_judge else None,
    )


def _equal(ours: tuple[tuple[int, ...], ...], theirs: Row | None) -> float | None:
    return None if theirs is None else equal_until_divergence(ours, theirs.answers.token_ids)
