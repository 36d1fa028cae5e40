"""What a stored adapter is to the server that runs now: a card to use, or the reason it is none.

Owns the comparison of what was stored (base, ranks, pages) with what is served, which may have
changed since the upload. Pure; called by the store, which knows the rows and the files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from .errors import AdapterError, AdapterRefused
from .image import ImageSpec
from .index import ImageFacts, Row
from .intake import check_size
from .key import AdapterCard
from .limits import StoreLimits
from .names import shown

_UNPACKED = ImageFacts(
    0, 0, 0, (), 0.0, ("not packed yet for this server: size and fit show at its first use",)
)


@dataclass(frozen=True, slots=True)
class Setup:
    """What is served."""

    spec: ImageSpec
    layout: str  # fingerprint of the spec
    base: str  # fingerprint of the weights; empty: not known
    limits: StoreLimits
    max_pages: int | None  # of one adapter; None: no limit


def check_base(given: str, setup: Setup) -> None:
    """Raises AdapterRefused when an adapter says it is for other weights than those served."""
    if given and given != setup.base:
        raise AdapterRefused(
            f"base_fingerprint is {shown(given)}; this server serves {shown(setup.base)}",
            field="base_fingerprint",
        )


def check_usable(base_given: str, facts: ImageFacts, setup: Setup) -> None:
    """Raises AdapterRefused or AdapterTooLarge: base or limits may be others than at upload."""
    check_base(base_given, setup)
    check_size(facts.max_rank, facts.num_pages, setup.limits, setup.max_pages)


def listed_card(row: Row, setup: Setup, facts: ImageFacts | None, image_path: Path) -> AdapterCard:
    """With a note where it is not packed yet (`facts` is None) or cannot be used."""
    facts = facts or _UNPACKED
    try:
        check_usable(row.base_given, facts, setup)
    except AdapterError as error:
        note = f"cannot be used on this server: {error.message}"
        facts = replace(facts, notes=(note, *facts.notes))
    return make_card(row, setup, facts, image_path)


def make_card(row: Row, setup: Setup, facts: ImageFacts, image_path: Path) -> AdapterCard:
    """Judges nothing."""
    return AdapterCard(
        key=row.key,
        size_bytes=row.size_bytes,
        max_rank=facts.max_rank,
        num_pages=facts.num_pages,
        weight_bytes=facts.weight_bytes,
        target_modules=facts.target_modules,
        created_unix_s=row.created_unix_s,
        rounding_error=facts.rounding_error,
        notes=(*facts.notes, *_base_notes(row, setup)),
        image_path=image_path,
    )


def _base_notes(row: Row, setup: Setup) -> tuple[str, ...]:
    if row.base_served == setup.base:
        return ()
    return (
        f"uploaded while another base was served, of fingerprint {shown(row.base_served)}: "
        "modules and shapes fit, whether the weights do cannot be seen",
    )
