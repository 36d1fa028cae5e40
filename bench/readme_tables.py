"""The README's tables: one function per section, from the code and the result file they tell of.

Owns how each is drawn as Markdown, and the few words that the code does not hold: a unit per
flag, a sentence per task. A flag or task without its words is an error, so that a new one
cannot go in without them. Same code, same text: no network, no clock. Called by readme.py.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast, get_args, get_origin, get_type_hints

from typer.models import OptionInfo

from ..adapters import errors as adapter_errors
from ..adapters.fields import FIELD_RULES
from ..server import errors as server_errors
from ..server.cli_serve import serve
from ..server.errors import EngineUnavailable
from ..server.metrics import MEASURES, EngineCollector
from ..server.rpc import status
from ..server.rpc.front import Front
from .zoo.tasks import ALL_LINEAR, TASKS, LoraShape

SIZE = "size: bytes, or with KiB, MiB, GiB"
FLAG_UNITS = {
    "--model": "directory or id",
    "--device": "device",
    "--dtype": "name",
    "--max-model-len": "tokens",
    "--threads": "threads",
    "--kernels": "name",
    "--cuda-graphs": "switch",
    "--compile-layers": "switch",
    "--pool-bytes": SIZE,
    "--host-bytes": SIZE,
    "--max-rank": "rank, 1 to 256",
    "--prefix-cache": "switch",
    "--share-prefixes": "switch",
    "--eviction": "name",
    "--adapter-share": "share of the pool",
    "--tenant-share": "share of the pool",
    "--prefetch": "switch",
    "--link-bytes-per-s": "bytes per second",
    "--cold-start": "name",
    "--helpers": "processes, -1 to 64",
    "--max-running": "requests",
    "--max-waiting": "requests",
    "--max-step-tokens": "tokens",
    "--max-bypass": "seconds",
    "--ttft": "seconds",
    "--tpot": "seconds",
    "--max-new-tokens": "tokens",
    "--overlap": "switch",
    "--policy": "name",
    "--host": "address",
    "--port": "port, 0 to 65535",
    "--store": "directory",
    "--drain": "seconds",
    "--metrics-port": "port",
    "--allow-remote": "switch",
    "--max-upload-bytes": SIZE,
    "--tokens": "file",
    "--tls-cert": "file",
    "--tls-key": "file",
    "--tls-client-ca": "file",
    "--behind-tls": "switch",
    "--metrics-host": "address",
    "--calibrate": "seconds",
    "--step-log": "file",
    "--debug": "switch",
}

# A word that training never saw and that every task changes.
EXAMPLE_WORD = "freight"
TASK_SENTENCES = {
    "upper": "capital letters",
    "reverse": "backwards",
    "rot13": "each letter 13 further",
    "sort": "letters in order",
    "swap-pairs": "neighbours change places",
    "rotate": "first letter to the end",
    "atbash": "a for z, b for y, ...",
    "double": "each letter twice",
    "alternate": "every other letter capital",
    "unzip": "every other letter, then the rest",
}

# Words of a metric's name that say its unit; the first one found counts.
METRIC_UNITS = (
    "seconds",
    "bytes",
    "tokens",
    "pages",
    "requests",
    "steps",
    "loads",
    "evictions",
    "preemptions",
    "restarts",
    "adapters",
    "starts",
    "rows",
    "helpers",
    "ratio",
)
TRUTHS = {
    "lorry_up": "0 or 1",
    "lorry_economy_parameter": "in its label",
    "lorry_cost_model_r2": "at most 1",
}

# `├── Name      who caused it`, as the trees at the top of both error modules are drawn.
DRAWN_ERROR = re.compile(r"^[│├└─ ]*(\w+) {2,}(\S.*)$", re.MULTILINE)


class ReadmeError(Exception):
    """A marker is wrong, or a section cannot be made; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Flag:
    name: str
    default: str  # as it is typed on the command line
    help: str


def serve_flags() -> list[Flag]:
    """The options of `lorry serve` in their order."""
    hints = get_type_hints(serve, include_extras=True)
    flags: list[Flag] = []
    for parameter in inspect.signature(serve).parameters.values():
        hint = hints[parameter.name]
        if get_origin(hint) is not Annotated:
            continue  # typer's context
        option = next(part for part in get_args(hint) if isinstance(part, OptionInfo))
        name = next(iter(option.param_decls or ()), "--" + parameter.name.replace("_", "-"))
        flags.append(Flag(name, _default(parameter.default), option.help or ""))
    return flags


def render_config() -> str:
    return make_table(
        ("flag", "default", "unit", "why"),
        (
            (as_code(flag.name), flag.default, _word_for(flag.name, FLAG_UNITS, "unit"), flag.help)
            for flag in serve_flags()
        ),
    )


def render_peft_fields() -> str:
    return make_table(
        ("field", "verdict", "accepted", "what it does"),
        (
            (as_code(name), rule.verdict.value, rule.allowed, rule.why)
            for name, rule in FIELD_RULES.items()
        ),
    )


def render_zoo() -> str:
    return make_table(
        ("adapter", "rank", "targets", "task", f"answer to `{EXAMPLE_WORD}>`"),
        (
            (
                as_code(task.name),
                _rank(task.lora),
                _targets(task.lora),
                _word_for(task.name, TASK_SENTENCES, "sentence"),
                as_code(task.answer(EXAMPLE_WORD)),
            )
            for task in TASKS
        ),
    )


def render_status() -> str:
    """Both error trees, with the status a client sees and the google.rpc details beside it."""
    meanings = {
        name: says
        for module in (server_errors, adapter_errors)
        for name, says in DRAWN_ERROR.findall(module.__doc__ or "")
    }
    return make_table(
        ("error", "status", "details", "when"),
        (
            (
                as_code(kind.__name__),
                as_code(code.name),
                ", ".join(as_code(name) for name in _details(kind, build)),
                _word_for(kind.__name__, meanings, "line in the drawn tree"),
            )
            for kind, (code, build) in status.TABLE.items()
        ),
    )


def render_metrics() -> str:
    measures = [*_server_metrics(), *((measure.name, measure.help) for measure in MEASURES)]
    return make_table(
        ("metric", "kind", "unit", "help"),
        (
            (
                as_code(name),
                "counter" if name.endswith("_total") else "gauge",
                _metric_unit(name),
                says,
            )
            for name, says in measures
        ),
    )


def make_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines
    )


def as_code(text: str) -> str:
    return f"`{text}`"


def _word_for(name: str, words: dict[str, str], what: str) -> str:
    if name not in words:
        raise ReadmeError(f"{name} has no {what}: add it in bench/readme_tables.py")
    return words[name]


def _default(value: object) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return as_code(f"{value:g}" if isinstance(value, float) else str(value))


def _rank(lora: LoraShape) -> str:
    others = [f"{as_code(name)} {rank}" for name, rank in lora.rank_pattern.items()]
    rank = "; ".join([str(lora.rank), *others])
    return f"{rank} (rsLoRA)" if lora.use_rslora else rank


def _targets(lora: LoraShape) -> str:
    if isinstance(lora.target_modules, str):
        return as_code(lora.target_modules)
    if lora.target_modules == ALL_LINEAR:
        return "all seven linears"
    return ", ".join(as_code(name) for name in lora.target_modules)


def _details(kind: type[Exception], build: status.DetailBuilder) -> Iterator[str]:
    """Names of the google.rpc messages that travel with an error that names its field."""
    error = cast(Any, kind)("a sentence", field="a field")
    for detail in build(error):
        yield type(detail).__name__


@dataclass(frozen=True, slots=True)
class _DownEngine:
    async def stats(self, *, pages: bool) -> None:
        raise EngineUnavailable("no engine")


@dataclass(frozen=True, slots=True)
class _StillFront:
    """A front end whose engine is down: its collector then tells only what is its own."""

    engine: _DownEngine = _DownEngine()
    serving: bool = False
    uptime_s: float = 0.0
    engine_restarts: int = 0


def _server_metrics() -> list[tuple[str, str]]:
    """Names and help of what is exported besides the engine's measures."""

    async def collect() -> list[Any]:
        front = cast(Front, _StillFront())
        collector = EngineCollector(front, asyncio.get_running_loop())
        return await asyncio.to_thread(lambda: list(collector.collect()))

    # The client library keeps a counter's name without its ending and adds it when scraped.
    return [
        (family.name + ("_total" if family.type == "counter" else ""), family.documentation)
        for family in asyncio.run(collect())
    ]


def _metric_unit(name: str) -> str:
    words = name.split("_")
    found = next((unit for unit in METRIC_UNITS if unit in words), "")
    return found or _word_for(name, TRUTHS, "unit")
