"""Hardware profiles: what a simulated server is made of, each number with where it came from.

A profile is a JSON file: a name, a sentence, and for every coefficient of `UNITS` a value, its
unit and its source: a citation, a result file, or "assumed: why". A file that leaves one out, has
one too many or gives no source is refused. Turned into the server's own records (cost model,
limits, gate, cards) by parts.py; written by the calibration of a live server.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...server.scheduling.step_work import StepWork

FORMAT = 1
PROFILES_DIR = Path(__file__).parent / "profiles"
ASSUMED = "assumed: "

# Seconds a unit of each field of StepWork, by its name and "_s".
STEP_UNITS = {
    "steps_s": "s per step",
    "prompt_chunks_s": "s per chunk",
    "prompt_tokens_s": "s per token",
    "prompt_pairs_s": "s per pair",
    "decode_rows_s": "s per row",
    "decode_context_s": "s per token",
    "adapters_s": "s per adapter",
    "adapter_bytes_s": "s per byte",
    "lora_token_bytes_s": "s per token byte",
}
UNITS = STEP_UNITS | {
    # A load: from order to resident, and what the host tier keeps from being read again.
    "load_s": "s",
    "load_bytes_per_s": "bytes per s",
    "host_bytes": "bytes",
    "disk_bytes_per_s": "bytes per s",
    # Memory.
    "num_pages": "pages",
    "page_bytes": "bytes",
    "tokens_per_page": "tokens",
    # Limits the server runs under.
    "max_running": "requests",
    "max_waiting": "requests",
    "max_step_tokens": "tokens",
    "max_bypass_s": "s",
    "max_loads": "loads",
    "max_model_len": "tokens",
    "max_rank": "ranks",
    "ttft_s": "s",  # bounds of a request that names none
    "tpot_s": "s",
    "overlaps": "0 or 1",  # whether a step is planned while the one before it runs
    # The way from the client to the engine and back.
    "request_s": "s",
    "request_s_per_token": "s per token",
    "reply_s": "s",
    # The model: an adapter's weights are its rank times this; pages hold a little less than bytes.
    "adapter_bytes_per_rank": "bytes per rank",
    "image_stretch": "ratio",
}
WHOLE = frozenset(
    [
        "num_pages",
        "page_bytes",
        "tokens_per_page",
        "max_running",
        "max_waiting",
        "max_step_tokens",
        "max_loads",
        "max_model_len",
        "max_rank",
        "overlaps",
        "host_bytes",
        "adapter_bytes_per_rank",
    ]
)
# 0 would divide, or leave a server that can serve nobody.
POSITIVE = (WHOLE - {"overlaps", "host_bytes"}) | {
    "load_bytes_per_s",
    "disk_bytes_per_s",
    "ttft_s",
    "tpot_s",
    "image_stretch",
}


class ProfileRefused(Exception):
    """The file is no profile; names the coefficient, the value and what it must be."""


@dataclass(frozen=True, slots=True)
class Coefficient:
    value: float
    unit: str
    source: str  # a citation, a result file, or "assumed: why"


@dataclass(frozen=True, slots=True)
class Profile:
    name: str
    about: str
    coefficients: Mapping[str, Coefficient]  # one for each of UNITS

    def value(self, name: str) -> float:
        return float(self.coefficients[name].value)

    def whole(self, name: str) -> int:
        return int(self.coefficients[name].value)

    @property
    def assumed(self) -> tuple[str, ...]:
        """Names of what nobody measured or published."""
        held = self.coefficients
        return tuple(name for name in UNITS if held[name].source.startswith(ASSUMED))


def step_names() -> tuple[str, ...]:
    """The coefficients of a step, in the order of StepWork's fields."""
    return tuple(f"{field}_s" for field in StepWork._fields)


def checked(profile: Profile) -> Profile:
    """Returns itself.

    Raises:
        ProfileRefused: names the coefficient and what is wrong with it.
    """
    held = profile.coefficients
    missing, unknown = UNITS.keys() - held.keys(), held.keys() - UNITS.keys()
    if missing or unknown:
        raise ProfileRefused(
            f"profile {profile.name!r}: missing {sorted(missing)}, unknown {sorted(unknown)}"
        )
    for name, unit in UNITS.items():
        _check(f"profile {profile.name!r}: {name}", held[name], unit)
        if name in WHOLE and held[name].value != int(held[name].value):
            raise ProfileRefused(f"{name} is {held[name].value}; it must be a whole number")
        if name in POSITIVE and held[name].value <= 0:
            raise ProfileRefused(f"{name} is {held[name].value}; it must be more than 0")
    return profile


def _check(name: str, coefficient: Coefficient, unit: str) -> None:
    value = coefficient.value
    if not (math.isfinite(value) and value >= 0):
        raise ProfileRefused(f"{name} is {value}; it must be finite and at least 0")
    if coefficient.unit != unit:
        raise ProfileRefused(f"{name} is in {coefficient.unit!r}; it must be in {unit!r}")
    if not coefficient.source.strip() or coefficient.source.strip() == ASSUMED.strip():
        raise ProfileRefused(f"{name} is {value} without a source; say where it is from, or why")


def read_profile(path: Path) -> Profile:
    """Raises:
    ProfileRefused: the file is missing, no JSON, of another format, or fails `checked`.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ProfileRefused(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:  # pyright: ignore[reportUnknownMemberType]
        raise ProfileRefused(f"{path} is no profile of format {FORMAT}")
    try:
        return checked(_parsed(data))  # pyright: ignore[reportUnknownArgumentType]
    except (KeyError, TypeError, AttributeError) as error:
        raise ProfileRefused(
            f"{path}: name, about and coefficients with value, unit and source are needed; "
            f"{type(error).__name__}: {error}"
        ) from error


def _parsed(data: dict[str, Any]) -> Profile:
    coefficients = {name: Coefficient(**entry) for name, entry in data["coefficients"].items()}
    return Profile(str(data["name"]), str(data["about"]), coefficients)


def write_profile(profile: Profile, path: Path) -> None:
    """Raises ProfileRefused rather than write what `read_profile` would not take."""
    checked(profile)
    held = {name: asdict(profile.coefficients[name]) for name in UNITS}
    data = {"format": FORMAT, "name": profile.name, "about": profile.about, "coefficients": held}
    path.write_text(json.dumps(data, indent=1) + "\n", "utf-8")


def named_profile(name: str) -> Profile:
    """One of those in the folder `profiles`."""
    names = sorted(path.stem for path in PROFILES_DIR.glob("*.json"))
    if name not in names:
        raise ProfileRefused(f"there is no profile {name!r}; there are {', '.join(names)}")
    return read_profile(PROFILES_DIR / f"{name}.json")
