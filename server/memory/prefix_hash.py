"""Names for the beginnings of prompts: a chain of hashes, one per full page of tokens.

Owns what a page of KV depends on: the tokens up to its end, the adapter's content, the model, and
whose it is. Equal names mean equal beginnings, so a page is never mistaken for another's.
Does not know pages or who holds them. Called by the engine (`prefix_root`) and by the cache.
Block hashing after vLLM's automatic prefix caching; SHA-256, because tenants choose the tokens.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import sha256

BASE_CONTENT = "base"  # in the place of an adapter's content hash


def prefix_root(*, scope: str, content: str, model: str) -> bytes:
    """What every page of a prompt depends on besides its tokens.

    `scope` is the tenant who may meet these pages again, or empty where all may; `content` the
    content hash of the adapter or BASE_CONTENT; `model` a fingerprint of the base model.
    """
    parts = [part.encode() for part in (scope, content, model)]
    # Lengths in front: "ab" + "c" and "a" + "bc" are two roots.
    return sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).digest()


def block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Of a page with these tokens behind the page (or the root) with the hash `parent`."""
    return sha256(parent + array("q", token_ids).tobytes()).digest()
