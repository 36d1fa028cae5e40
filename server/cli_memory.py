"""`lorry info --memory`: pages, waste and KV room, of the running model or of any config.

Owns the options, the tables and the document; the arithmetic is adapters/footprint.py's. With
`--model` no server is asked and no weight is read: transformers builds the model on the meta
device. Called by cli.py's `info`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..adapters.footprint import (
    ALL_LINEAR,
    AdapterPages,
    KvRoom,
    PageShape,
    adapter_pages,
    find_targets,
    fleet_waste,
    kv_room,
    slot_bytes,
)
from ..adapters.image import ImageSpec, Site
from .cli_connection import Connection
from .cli_options import CALL_TIMEOUT_S, parse_size
from .cli_output import (
    EXIT_REFUSED,
    answering,
    complain,
    format_bytes,
    print_json,
    print_table,
)
from .config import DTYPES
from .errors import ModelRefused

if TYPE_CHECKING:
    from ..proto.lorry_pb2 import Info

DEFAULT_POOL_BYTES = 24 << 30  # of a model that runs nowhere
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MAX_RANK = 4096
MAX_ADAPTERS = 1_000_000

Memory = Annotated[
    bool, typer.Option("--memory", help="Show pages, waste and KV room by adapter rank instead.")
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--model",
        metavar="PATH",
        help="With --memory: of this model folder or config.json, without a server or weights.",
    ),
]
PoolBytes = Annotated[
    int,
    typer.Option(
        "--pool-bytes",
        parser=parse_size,
        metavar="SIZE",
        help="With --memory: of the pool; 0: the server's own, or 24GiB with --model.",
    ),
]
Dtype = Annotated[
    str, typer.Option(metavar="NAME", help="With --memory --model: auto is the config's own.")
]
Ranks = Annotated[str, typer.Option(metavar="R,R", help="With --memory: ranks, taken in turn.")]
Adapters = Annotated[
    int, typer.Option(min=1, max=MAX_ADAPTERS, help="With --memory: resident adapters, and slots.")
]
Targets = Annotated[
    str,
    typer.Option(metavar="NAME,NAME", help="With --memory: linears changed, or all-linear."),
]


@dataclass(frozen=True, slots=True)
class Asked:
    """What memory is reckoned for: the options as they were given."""

    model: Path | None = None  # None: the server's
    pool_bytes: int = 0
    dtype: str = "auto"
    ranks: str = "8,16,64"
    adapters: int = 32
    targets: str = ALL_LINEAR


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose memory it is."""

    title: str
    shape: PageShape
    head: str  # the output layer among the sites; empty: none
    pool_bytes: int
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Reckoned:
    subject: Subject
    targets: tuple[int, ...]  # sites
    by_rank: tuple[AdapterPages, ...]
    fleet: tuple[AdapterPages, ...]  # one for each resident adapter
    slot_bytes: int  # of a padded slot
    room: KvRoom


def show_memory(
    connection: Connection, asked: Asked, *, memory: bool, wait_s: float, as_json: bool
) -> bool:
    """Whether it was asked for, and is shown.

    Raises:
        BadParameter: an option does not fit.
    """
    if not memory:
        if asked != Asked():
            raise typer.BadParameter(
                "--model, --pool-bytes, --dtype, --ranks, --adapters and --targets go with --memory"
            )
        return False
    if asked.model is None:
        subject = _of_server(connection, asked, wait_s, as_json=as_json)
    else:
        subject = _of_config(asked.model, asked)
    found = reckon(subject, asked)
    if as_json:
        print_json(make_document(found))
    else:
        _print(found, asked)
    return True


def _of_config(path: Path, asked: Asked) -> Subject:
    from .execution.meta_model import read_model_memory

    if asked.dtype not in ("auto", *DTYPES):
        raise typer.BadParameter(
            f"--dtype is {asked.dtype!r}; it must be auto or one of {', '.join(DTYPES)}"
        )
    try:
        found = read_model_memory(path, dtype=asked.dtype)
    except ModelRefused as error:
        raise typer.BadParameter(str(error)) from error
    name = path.stem if path.is_file() else path.name
    return Subject(
        f"{name}: {found.architecture}, {found.num_parameters / 1e9:.2f} B parameters, "
        f"{found.dtype}",
        found.shape,
        found.head,
        asked.pool_bytes or DEFAULT_POOL_BYTES,
        found.refusal,
    )


def _of_server(connection: Connection, asked: Asked, wait_s: float, *, as_json: bool) -> Subject:
    if asked.dtype != "auto":
        raise typer.BadParameter("--dtype goes with --model: a server has its own")
    with answering(as_json), connection.client(timeout_s=CALL_TIMEOUT_S) as client:
        if wait_s > 0:
            client.wait_ready(wait_s)
        info = client.info()
    if not info.site_shapes:
        complain(f"the server ({info.version}) does not say how wide its linears are")
        raise typer.Exit(EXIT_REFUSED)
    return subject_of(info, asked)


def subject_of(info: Info, asked: Asked) -> Subject:
    """What a server says of itself."""
    element_bytes = ELEMENT_BYTES[info.dtype]
    sites = tuple(Site(one.name, 0, one.in_width, one.out_width) for one in info.site_shapes)
    # The output layer comes last, where an adapter may change it at all.
    has_head = sites[-1].out_width == info.vocab_size
    return Subject(
        f"{info.model}: {info.architecture}, {info.dtype}, as it is served",
        PageShape(
            ImageSpec(info.page_bytes // element_bytes, info.dtype, sites),
            info.tokens_per_page,
            element_bytes,
        ),
        sites[-1].name if has_head else "",
        asked.pool_bytes or info.num_pages * info.page_bytes,
    )


def reckon(subject: Subject, asked: Asked) -> Reckoned:
    """Raises:
    BadParameter: ranks or targets do not fit.
    """
    ranks = _parse_ranks(asked.ranks)
    shape = subject.shape
    try:
        targets = find_targets(shape.spec.sites, asked.targets.split(","), subject.head)
    except ValueError as error:
        raise typer.BadParameter(f"--targets: {error}") from error
    pages = {rank: adapter_pages(shape, targets, rank) for rank in sorted(set(ranks))}
    fleet = tuple(pages[rank] for rank in islice(cycle(ranks), asked.adapters))
    return Reckoned(
        subject=subject,
        targets=targets,
        by_rank=tuple(pages.values()),
        fleet=fleet,
        slot_bytes=slot_bytes(shape, targets, max(one.rank for one in fleet)),
        room=kv_room(shape, targets, fleet=fleet, pool_bytes=subject.pool_bytes),
    )


def _parse_ranks(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() and 1 <= int(word) <= MAX_RANK for word in words):
        raise typer.BadParameter(
            f"--ranks is {text!r}; it must be numbers from 1 to {MAX_RANK}, by commas"
        )
    return [int(word) for word in words]


def _print(found: Reckoned, asked: Asked) -> None:
    print_table(("field", "value"), _facts(found), title=found.subject.title)
    print_table(
        ("rank", "pages", "weights", "waste", "KV tokens it takes", "in a padded slot"),
        [_rank_row(found, one) for one in found.by_rank],
        title=f"An adapter on {asked.targets}, by rank",
    )
    print_table(
        ("way", "adapters take", "KV tokens that fit"),
        _room_rows(found),
        title=f"{len(found.fleet)} adapters of ranks {asked.ranks} in turn, in "
        f"{format_bytes(found.subject.pool_bytes)}",
    )


def _facts(found: Reckoned) -> list[tuple[str, object]]:
    shape = found.subject.shape
    rows: list[tuple[str, object]] = [
        ("page", f"{format_bytes(shape.page_bytes)}, {shape.tokens_per_page} tokens"),
        ("KV of a token", format_bytes(shape.token_bytes)),
        ("pool", f"{found.subject.pool_bytes // shape.page_bytes} pages"),
        ("linears", f"{len(found.targets)} of {len(shape.spec.sites)} that an adapter may change"),
    ]
    if found.subject.refusal:
        rows.append(("not served", found.subject.refusal))
    return rows


def _rank_row(found: Reckoned, one: AdapterPages) -> tuple[object, ...]:
    shape = found.subject.shape
    return (
        one.rank,
        one.num_pages,
        format_bytes(one.weight_bytes),
        f"{one.waste:.1%}",
        one.num_pages * shape.tokens_per_page,
        -(-found.slot_bytes // shape.token_bytes),
    )


def _room_rows(found: Reckoned) -> list[tuple[object, ...]]:
    room, num_slots = found.room, len(found.fleet)
    padded = f"{num_slots} slots, all as wide as rank {max(one.rank for one in found.fleet)}"
    return [
        (
            "pages at true ranks",
            f"{format_bytes(room.adapter_pages * found.subject.shape.page_bytes)} "
            f"({fleet_waste(found.fleet):.1%} waste)",
            _paged(room),
        ),
        (padded, format_bytes(num_slots * found.slot_bytes), room.padded_tokens),
    ]


def _paged(room: KvRoom) -> str:
    more = room.against_padded
    return f"{room.paged_tokens}" + ("" if more is None else f" ({more:.2f} x padded)")


def make_document(found: Reckoned) -> dict[str, object]:
    """Without rounding: for programs."""
    shape, room = found.subject.shape, found.room
    return {
        "model": found.subject.title,
        "refusal": found.subject.refusal,
        "dtype": shape.spec.dtype,
        "page_bytes": shape.page_bytes,
        "tokens_per_page": shape.tokens_per_page,
        "token_bytes": shape.token_bytes,
        "pool_bytes": room.pool_bytes,
        "pool_pages": room.pool_bytes // shape.page_bytes,
        "sites": len(found.targets),
        "by_rank": [
            {
                "rank": one.rank,
                "pages": one.num_pages,
                "weight_bytes": one.weight_bytes,
                "waste": one.waste,
                "kv_tokens": one.num_pages * shape.tokens_per_page,
            }
            for one in found.by_rank
        ],
        "adapters": _counts(found.fleet),
        "waste": fleet_waste(found.fleet),
        "slot_bytes": found.slot_bytes,
        "adapter_pages": room.adapter_pages,
        "kv_tokens": room.paged_tokens,
        "kv_tokens_padded": room.padded_tokens,
        "kv_tokens_closed_form": room.closed_form_tokens,
        "kv_room_vs_padded": room.against_padded,
        "kv_room_vs_closed_form": room.against_closed_form,
    }


def _counts(fleet: Sequence[AdapterPages]) -> dict[str, int]:
    return {str(rank): count for rank, count in sorted(Counter(one.rank for one in fleet).items())}
