"""Other projects' kernels, run beside ours from a git-ignored folder; never part of Lorry.

Owns which of them are there. `make peers` fills the folder (fetch.py); the code around their
files (stand-ins for what they import, how they are fed) is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..way import NamedWay
from .folder import PEERS, Peer, read_versions


@dataclass(frozen=True, slots=True)
class PeerWays:
    ways: tuple[NamedWay, ...]
    missing: Mapping[str, str]  # peer -> why none of its ways is there
    versions: Mapping[str, str]  # wheel -> version


def find_peers(device: torch.device) -> PeerWays:
    """Every peer that can run on this device, in every way that is fair to it."""
    missing: dict[str, str] = {}
    ways: list[NamedWay] = []
    for peer in PEERS:
        why = _why_not(peer, device)
        if why:
            missing[peer.name] = why
        elif peer.name == "vllm":
            from .vllm_way import WAYS as VLLM

            ways.extend(VLLM)
        else:
            from .sglang_way import WAYS as SGLANG

            ways.extend(SGLANG)
    return PeerWays(tuple(ways), missing, read_versions())


def _why_not(peer: Peer, device: torch.device) -> str:
    if device.type != "cuda":
        return "its Triton kernels need a CUDA device; Triton's interpreter is never timed"
    if not peer.is_there():
        return "its files are not here; `make peers` fetches them"
    return ""
