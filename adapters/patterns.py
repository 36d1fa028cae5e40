"""Whether a config's patterns end in bounded time on this model's module names.

A regular expression can be written to run for hours on a name of forty letters, and Python's
engine cannot be stopped from another thread. So every pattern first runs in a process of its
own, by the very calls PEFT makes, against a limit that the process sets itself: it ends even
when nobody waits for it any more. What passes runs once more in ours, so the limit is short.
Only the time is judged here; what they match stays PEFT's decision (resolve.py, the caller).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from threading import Lock
from typing import cast

from .errors import AdapterRefused
from .names import shown

MATCH_LIMIT_S = 0.5  # processor time, of all patterns of one config on all names
MEMORY_LIMIT_BYTES = 1 << 30
# On a crowded machine a process gets its processor time late; this is the net below.
PATIENCE_S = 20.0

# Module by module, as PEFT goes: with more patterns than `re` keeps, each look compiles anew.
TRY_ALL = """
import json, re, resource, signal, sys
work = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_AS, (work["memory"], work["memory"]))
signal.setitimer(signal.ITIMER_PROF, work["limit_s"])  # its signal ends the process
for name in work["names"]:
    for index, (how, pattern) in enumerate(work["patterns"]):
        try:
            getattr(re, how)(pattern, name)
        except (re.error, RecursionError, OverflowError) as error:
            print(json.dumps([index, str(error)]))
            sys.exit(0)
"""


def check_patterns(
    applied: Mapping[str, object], names: Sequence[str], *, limit_s: float, turn: Lock
) -> None:
    """Raises AdapterRefused when a pattern is no pattern, or takes too long.

    `turn` is held while they are tried: one trial at a time.
    """
    patterns = list(_patterns(applied))
    if not patterns:
        return
    work = {
        "patterns": [(how, form) for _, _, how, form in patterns],
        "names": list(names),
        "limit_s": limit_s,
        "memory": MEMORY_LIMIT_BYTES,
    }
    try:
        with turn:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", TRY_ALL],
                input=json.dumps(work).encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=PATIENCE_S,
                check=True,
            )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        fields = sorted({field for field, _, _, _ in patterns})
        raise AdapterRefused(
            f"the {len(patterns)} patterns in {', '.join(fields)} need more than {limit_s:g} s "
            f"(or too much memory) on the {len(names)} module names of this model",
            field=fields[0],
        ) from None
    if done.stdout:
        index, reason = cast(tuple[int, str], json.loads(done.stdout))
        field, text, _, _ = patterns[index]
        raise AdapterRefused(
            f"{field} holds {shown(text)}, which is no pattern: {reason[:200]}", field=field
        )


def _patterns(applied: Mapping[str, object]) -> Iterator[tuple[str, str, str, str]]:
    """(field, text as given, PEFT's call of `re`, the expression it makes of the text)."""
    for field in ("target_modules", "exclude_modules"):
        value = applied.get(field)
        if isinstance(value, str) and value != "all-linear":
            yield field, value, "fullmatch", value
    layers = applied.get("layers_pattern") or []
    for text in [layers] if isinstance(layers, str) else cast(list[str], layers):
        yield "layers_pattern", text, "match", rf"(?:^|.*?\.){text}\.(?P<idx>\d+)\."
    for field in ("rank_pattern", "alpha_pattern"):
        for text in cast(dict[str, object], applied.get(field) or {}):
            yield field, text, "match", rf"(.*\.)?({text})$"
