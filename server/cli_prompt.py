"""What `lorry generate` is asked: text, token ids or a chat, of which one is given.

Owns how these and a bias are written on the command line; a wrong one is bad usage. Roles, ids and
limits are judged by the client and the server, not here. Used by cli_generate.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

if TYPE_CHECKING:
    from ..proto.messages import ChatMessage


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt or messages; the other is None."""

    prompt: str | list[int] | None = None
    messages: list[ChatMessage] | None = None
    template: dict[str, object] | None = None  # further variables of the model's template


def read_prompt(
    prompt: str | None,
    *,
    token_ids: str | None,
    messages: Path | None,
    chat: bool,
    system: str,
    template: str | None,
) -> Asked:
    """Raises:
    BadParameter: none is given, more than one is, or one cannot be read.
    """
    if sum(given is not None for given in (prompt, token_ids, messages)) != 1:
        raise typer.BadParameter("give one of PROMPT, --token-ids and --messages")
    variables = None if template is None else _object("--template", template)
    if messages is not None:
        if system:
            raise typer.BadParameter("--system goes with PROMPT; --messages may hold one itself")
        return Asked(messages=_messages(messages), template=variables)
    if chat or system or template is not None:
        if prompt is None:
            raise typer.BadParameter("--chat, --system and --template do not go with --token-ids")
        turns: list[ChatMessage] = [{"role": "user", "content": prompt}]
        if system:
            turns.insert(0, {"role": "system", "content": system})
        return Asked(messages=turns, template=variables)
    return Asked(prompt=prompt if token_ids is None else _ids(token_ids))


def read_bias(pairs: Sequence[str]) -> dict[int, float]:
    """Of `5=-100`.

    Raises:
        BadParameter: it is written otherwise, or a token comes twice.
    """
    bias: dict[int, float] = {}
    for pair in pairs:
        token, _, added = pair.partition("=")
        try:
            number, value = int(token), float(added)
        except ValueError as error:
            raise typer.BadParameter(f"--logit-bias is {pair!r}; write ID=BIAS") from error
        if number in bias:
            raise typer.BadParameter(f"--logit-bias names token {number} twice")
        bias[number] = value
    return bias


def _ids(written: str) -> list[int]:
    try:
        return [int(token) for token in written.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"--token-ids is {written!r}; write 1,2,3") from error


def _messages(path: Path) -> list[ChatMessage]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise typer.BadParameter(
            f"--messages is {path}, which cannot be read: {error.strerror}"
        ) from error
    document = _json(f"--messages is {path}, which", data)
    if not isinstance(document, list):
        raise typer.BadParameter(f"--messages is {path}, which holds no list")
    return cast("list[ChatMessage]", document)


def _object(flag: str, written: str) -> dict[str, object]:
    document = _json(flag, written)
    if not isinstance(document, dict):
        raise typer.BadParameter(f"{flag} is no JSON object")
    return cast("dict[str, object]", document)


def _json(what: str, data: str | bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # ValueError: also what is no text
        raise typer.BadParameter(f"{what} is not JSON: {error}") from error
