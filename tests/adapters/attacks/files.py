"""Hostile uploads, made when they are needed: one bent thing each, and the field it must cost."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lorry.tests.adapters_builders import make_config, make_files, make_raw, make_tensors

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
A0, B0 = f"{Q0}.lora_A.weight", f"{Q0}.lora_B.weight"


@dataclass(frozen=True, slots=True)
class Attack:
    name: str
    field: str  # what the refusal must name
    words: str  # a pattern the sentence must match
    make: Callable[[], tuple[bytes, bytes]]


def _header(**changes: object) -> Callable[[], tuple[bytes, bytes]]:
    """One tensor of 2 x 2, with changed fields."""
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes
    return lambda: (make_files()[0], make_raw({A0: entry}, bytes(16)))


def _two(first: list[int], second: list[int], data_bytes: int) -> Callable[[], tuple[bytes, bytes]]:
    entries = {
        name: {"dtype": "F32", "shape": [2, 2], "data_offsets": span}
        for name, span in ((A0, first), (B0, second))
    }
    return lambda: (make_files()[0], make_raw(entries, bytes(data_bytes)))


def _raw(weights: bytes) -> Callable[[], tuple[bytes, bytes]]:
    return lambda: (make_files()[0], weights)


def _config(**changes: object) -> Callable[[], tuple[bytes, bytes]]:
    return lambda: make_files(make_config(**changes))


def _config_text(text: bytes) -> Callable[[], tuple[bytes, bytes]]:
    return lambda: (text, make_files()[1])


def _value(name: str, value: float) -> Callable[[], tuple[bytes, bytes]]:
    def make() -> tuple[bytes, bytes]:
        tensors = make_tensors()
        tensors[name][1, 1] = value
        return make_files(tensors=tensors)

    return make


def _without(name: str) -> Callable[[], tuple[bytes, bytes]]:
    def make() -> tuple[bytes, bytes]:
        tensors = make_tensors()
        del tensors[name]
        return make_files(tensors=tensors)

    return make


def _with(
    name: str, *shape: int, dtype: torch.dtype = torch.float32
) -> Callable[[], tuple[bytes, bytes]]:
    return lambda: make_files(tensors=make_tensors() | {name: torch.ones(*shape, dtype=dtype)})


def _torch_saved() -> bytes:
    data = io.BytesIO()
    torch.save(make_tensors(), data)
    return data.getvalue()


_LONG = "x" * 1025
_ENTRY = f'"{A0}":{{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}'
_DEEP = b"[" * 100_000

ATTACKS = [
    Attack("file: empty header", "weights", "8", _raw(b"\1\0\0")),
    Attack("file: pickle under the name", "weights", "pickle", _raw(pickle.dumps({"a": 1}))),
    Attack("file: torch.save", "weights", r"zip archive.*adapter_model\.bin", _raw(_torch_saved())),
    Attack("file: a GGUF", "weights", "GGUF", _raw(b"GGUF\3\0\0\0" + bytes(64))),
    Attack(
        "file: an LFS pointer", "weights", "LFS", _raw(b"version https://git-lfs.github.com/spec")
    ),
    Attack("header: larger than its cap", "weights", "at most", _raw(b"\xff" * 16)),
    Attack(
        "header: larger than the file",
        "weights",
        "the file has",
        _raw(make_raw({}, header_bytes=5000)),
    ),
    Attack("header: cut short", "weights", "not JSON", _raw(make_raw(b'{"a":'))),
    Attack("header: a list", "weights", "object", _raw(make_raw(b"[]"))),
    Attack("header: not text", "weights", "UTF-8", _raw(make_raw(b"\xff\xfe{}"))),
    Attack("header: nested without end", "weights", "nested", _raw(make_raw(_DEEP))),
    Attack(
        "header: a tensor twice",
        "weights",
        "twice",
        _raw(make_raw(f"{{{_ENTRY},{_ENTRY}}}".encode(), bytes(4))),
    ),
    Attack(
        "header: a number without end",
        "weights",
        "not JSON",
        _raw(make_raw(b'{"a":' + b"9" * 5000 + b"}")),
    ),
    Attack(
        "header: metadata of another kind",
        "__metadata__",
        "texts",
        _raw(make_raw({"__metadata__": {"a": 1}})),
    ),
    Attack("offsets: overlap", B0, "inside another", _two([0, 16], [8, 24], 24)),
    Attack("offsets: the same bytes twice", B0, "inside another", _two([0, 16], [0, 16], 16)),
    Attack("offsets: a hole", B0, "hole", _two([0, 16], [20, 36], 36)),
    Attack("offsets: a hole in front", A0, "hole", _two([4, 20], [20, 36], 36)),
    Attack(
        "offsets: bytes behind the last", "weights", "tensors take", _two([0, 16], [16, 32], 40)
    ),
    Attack("offsets: past the end", "weights", "tensors take", _two([0, 16], [16, 32], 20)),
    Attack("offsets: backwards", A0, "data_offsets", _header(data_offsets=[16, 0])),
    Attack("offsets: negative", A0, "data_offsets", _header(data_offsets=[-16, 0])),
    Attack("offsets: not whole numbers", A0, "data_offsets", _header(data_offsets=[0, 16.0])),
    Attack(
        "offsets: overflow",
        A0,
        "takes 16 bytes",
        _header(data_offsets=[0, 2**64 + 16]),
    ),
    Attack("shape: overflow", A0, "shape", _header(shape=[2**62, 4])),
    Attack("shape: more than its bytes", A0, "takes", _header(shape=[2**30, 2**30])),
    Attack("shape: zero", A0, "shape", _header(shape=[0, 4], data_offsets=[0, 0])),
    Attack("shape: three sizes", A0, "shape", _header(shape=[2, 2, 1])),
    Attack("shape: a truth value", A0, "shape", _header(shape=[True, 4])),
    Attack("shape: not the base's width", A0, r"\[4, 32\].*\[4, 64\]", _with(A0, 4, 32)),
    Attack("shape: not the config's rank", A0, r"\[3, 64\].*\[4, 64\]", _with(A0, 3, 64)),
    Attack("shape: A and B of two ranks", B0, r"\[64, 5\].*\[64, 4\]", _with(B0, 64, 5)),
    Attack("dtype: integers", A0, "I64", _with(A0, 4, 64, dtype=torch.int64)),
    Attack("dtype: doubles", A0, "F64", _with(A0, 4, 64, dtype=torch.float64)),
    Attack("entry: a name without end", _LONG[:256], "1025 characters", _with(_LONG, 1, 1)),
    Attack("entry: another key", A0, "exactly", _header(extra=1)),
    Attack("tensors: A without B", B0, "missing", _without(B0)),
    Attack("tensors: B without A", A0, "missing", _without(A0)),
    Attack("tensors: none at all", A0, "missing", lambda: make_files(tensors={})),
    Attack(
        "tensors: of a module not named",
        f"{Q0[:-6]}k_proj.lora_A.weight",
        "no module",
        _with(f"{Q0[:-6]}k_proj.lora_A.weight", 4, 64),
    ),
    Attack(
        "tensors: far more than the config names",
        "weights",
        "17 LoRA tensors.*4 modules.* 8 of",
        lambda: make_files(tensors={f"x{i}.lora_A.weight": torch.ones(1, 1) for i in range(17)}),
    ),
    Attack(
        "tensors: DoRA's magnitude",
        f"{Q0}.lora_magnitude_vector.weight",
        "no module",
        _with(f"{Q0}.lora_magnitude_vector.weight", 1, 64),
    ),
    Attack(
        "tensors: without PEFT's prefix",
        A0,
        "missing",
        lambda: make_files(
            tensors={k.removeprefix("base_model.model."): v for k, v in make_tensors().items()}
        ),
    ),
    Attack(
        "tensors: one in both spellings",
        f"{Q0}.lora_A.default.weight",
        "takes its place",
        _with(f"{Q0}.lora_A.default.weight", 4, 64),
    ),
    Attack("values: NaN", A0, "1 values", _value(A0, float("nan"))),
    Attack("values: infinity", B0, "1 values", _value(B0, float("-inf"))),
    Attack("rank: a bomb", "r", "up to 64", _config(r=10**12)),
    Attack(
        "rank: a bomb in a pattern",
        "rank_pattern",
        "up to 64",
        _config(rank_pattern={"q_proj": 65}),
    ),
    Attack("config: not JSON", "config_json", "not JSON", _config_text(b"{'r': 8}")),
    Attack("config: a list", "config_json", "object", _config_text(b"[]")),
    Attack("config: a key twice", "config_json", "twice", _config_text(b'{"r": 1, "r": 2}')),
    Attack("config: NaN", "config_json", "NaN", _config_text(b'{"lora_alpha": NaN}')),
    Attack("config: nested without end", "config_json", "nested", _config_text(_DEEP)),
    Attack(
        "config: too large",
        "config_json",
        "at most",
        _config_text(json.dumps(make_config(revision="x" * (1 << 20))).encode()),
    ),
    Attack("option: DoRA", "use_dora", "DoRA", _config(use_dora=True)),
    Attack("option: bias", "bias", "lora_only", _config(bias="lora_only")),
    Attack(
        "option: modules_to_save",
        "modules_to_save",
        "lm_head",
        _config(modules_to_save=["lm_head"]),
    ),
    Attack("option: unknown", "use_warp_drive", "not a field", _config(use_warp_drive=True)),
    Attack("target: unknown", "target_modules", "c_attn", _config(target_modules=["c_attn"])),
    Attack(
        "target: one known, one outside",
        "target_modules",
        "lm_head",
        _config(target_modules=["q_proj", "lm_head"]),
    ),
]
