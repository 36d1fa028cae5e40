"""`lorry generate`: one prompt, or one chat, from the command line.

Flags to the client's options, and how answers are shown: text as it comes, several one after the
other, log-probabilities as tables, everything as JSON. What a prompt's flags say is read by
cli_prompt.py. Knows nothing of how an answer is made. Registered by cli.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_connection import Connection, connecting
from .cli_options import AsJson
from .cli_output import answering, complain, print_json, print_table
from .cli_prompt import read_bias, read_prompt

if TYPE_CHECKING:
    from ..proto.client import TextStream
    from ..proto.completion import Completion, TokenLogprob
    from ..proto.messages import GenerateOptions

Name = Annotated[str, typer.Option(help="Adapter by name; none: the base model.")]


def _number(help_text: str) -> Any:
    """A number the server checks: it knows the limits, and says them."""
    return typer.Option(help=help_text, show_default=False)


@connecting
def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="Text to continue; with --chat the user's turn.")
    ] = None,
    *,
    token_ids: Annotated[
        str | None,
        typer.Option(metavar="ID,ID", help="The prompt as token ids, in place of PROMPT."),
    ] = None,
    messages: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A chat in place of PROMPT: a JSON list of objects with role and content.",
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put PROMPT into the model's chat template.")
    ] = False,
    system: Annotated[
        str, typer.Option(help="The system's message before PROMPT; means --chat.")
    ] = "",
    template: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="Further variables of the chat template, an object; means --chat.",
        ),
    ] = None,
    adapter: Name = "",
    max_new_tokens: Annotated[
        int, typer.Option(min=0, help="Length of the answer; 0: the server's default.")
    ] = 0,
    n: Annotated[int, typer.Option(min=1, help="Answers to the prompt.")] = 1,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="How freely tokens are drawn; 0: always the likeliest.")
    ] = 0.0,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Repeats an answer; unset: the server draws one.")
    ] = None,
    top_k: Annotated[
        int | None, _number("Draw from this many of the likeliest tokens; 0: from all.")
    ] = None,
    top_p: Annotated[
        float | None, _number("Draw from the likeliest, of this much probability; 1: from all.")
    ] = None,
    min_p: Annotated[
        float | None, _number("Draw from tokens of this share of the likeliest's; 0: from all.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, _number("Divides logits of tokens in prompt and answer; 1: none.")
    ] = None,
    presence_penalty: Annotated[
        float | None, _number("Off a token's logit if the answer has it; 0: none.")
    ] = None,
    frequency_penalty: Annotated[
        float | None, _number("Off a token's logit for each time the answer has it; 0: none.")
    ] = None,
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(metavar="ID=BIAS", help="Added to a token's logit; may be repeated."),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the answer; may be repeated.")
    ] = None,
    include_stop: Annotated[
        bool, typer.Option("--include-stop", help="Keep the text of --stop at the answer's end.")
    ] = False,
    stop_token_id: Annotated[
        list[int] | None, typer.Option(help="Token that ends the answer; may be repeated.")
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after the model's own end of an answer.")
    ] = False,
    logprobs: Annotated[
        int | None,
        _number("Log-probabilities of the answer, with this many of the likeliest tokens."),
    ] = None,
    prompt_logprobs: Annotated[
        int | None,
        _number("Log-probabilities of the prompt, with this many of the likeliest tokens."),
    ] = None,
    ttft: Annotated[
        float | None, _number("Seconds to the first token; unset: the server's.")
    ] = None,
    tpot: Annotated[
        float | None, _number("Seconds per further token; unset: the server's.")
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Print text as it comes, or at the end.")
    ] = True,
    timeout: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds for the whole answer.")
    ] = None,
    connection: Connection,
    as_json: AsJson = False,
) -> None:
    """Answer one prompt."""
    asked = read_prompt(
        prompt, token_ids=token_ids, messages=messages, chat=chat, system=system, template=template
    )
    # What is None is left to the server.
    options: GenerateOptions = {
        "messages": asked.messages,
        "template": asked.template,
        "adapter": adapter,
        "max_new_tokens": max_new_tokens,
        "n": n,
        "temperature": temperature,
        "seed": seed,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "logit_bias": read_bias(logit_bias or []),
        "stop": stop,
        "include_stop": include_stop,
        "stop_token_ids": stop_token_id,
        "ignore_eos": ignore_eos,
        "logprobs": logprobs,
        "prompt_logprobs": prompt_logprobs,
        "ttft_s": ttft,
        "tpot_s": tpot,
    }
    with answering(as_json), connection.client(timeout_s=timeout) as client:
        live = stream and n == 1 and not as_json
        with client.generate(asked.prompt, **options) as answer:
            finals = _read(answer, live=live)
    _show(finals, live=live, as_json=as_json)


def _read(answer: TextStream, *, live: bool) -> tuple[Completion, ...]:
    begun = False
    try:
        for text in answer:
            if live and text:
                begun = True
                sys.stdout.write(text)
                sys.stdout.flush()
    finally:
        if begun:  # the usage line, or an error, begins on a line of its own
            typer.echo("")
    return answer.finals


def _show(finals: tuple[Completion, ...], *, live: bool, as_json: bool) -> None:
    """Text on stdout, figures and tables on stderr; several answers are numbered there."""
    if as_json:
        documents = [_document(final) for final in finals]
        print_json(documents[0] if len(documents) == 1 else {"answers": documents})
        return
    prompt_logprobs = finals[0].prompt_logprobs
    if prompt_logprobs:
        _print_logprobs(prompt_logprobs, "Log-probabilities of the prompt")
    for final in finals:
        if len(finals) > 1:
            complain(f"answer {final.index}")
        if not live:
            typer.echo(final.text)
        if final.logprobs:
            _print_logprobs(final.logprobs, "Log-probabilities of the answer")
        complain(_usage_line(final))


def _document(final: Completion) -> dict[str, object]:
    from dataclasses import asdict, replace

    from ..proto.completion import plain_logprobs

    document = asdict(replace(final, logprobs=(), prompt_logprobs=()))
    document["logprobs"] = plain_logprobs(final.logprobs)
    document["prompt_logprobs"] = plain_logprobs(final.prompt_logprobs)
    return document


def _print_logprobs(entries: Iterable[TokenLogprob], title: str) -> None:
    rows = [
        (
            entry.token_id,
            repr(entry.text),
            round(entry.logprob, 4) + 0.0,  # no minus zero
            "  ".join(f"{ranked.text!r} {ranked.logprob:.4f}" for ranked in entry.top),
        )
        for entry in entries
    ]
    print_table(("token", "text", "logprob", "likeliest"), rows, title=title, to_stderr=True)


def _usage_line(final: Completion) -> str:
    usage, timing = final.usage, final.timing
    reason = final.reason if final.stop_string is None else f"stop at {final.stop_string!r}"
    cached = f"{usage.cached_tokens} of them cached, " if usage.cached_tokens else ""
    cold = usage.cold_start
    begun = f"{cold.way} for the adapter ({cold.reason}), " if cold else ""
    return (
        f"{usage.prompt_tokens} + {usage.completion_tokens} tokens, {cached}{reason}, {begun}"
        f"ttft {timing.ttft_s * 1000:.0f} ms, tpot {timing.tpot_s * 1000:.1f} ms, "
        f"seed {final.seed}"
    )
