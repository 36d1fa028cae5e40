"""Settings to a workload: instants, then whose they are, then how long, then what they say.

Pure but for a trace's file: the same settings give the same workload, byte for byte once written
(with one version of numpy; the file is what is kept). Called by the benches and `__main__.py`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from .columns import Columns, draw_columns
from .fit import Fitted, fit_lengths, fit_pieces
from .lengths import draw_lengths
from .ranks import deal_ranks
from .records import BASE, Piece, Workload, WorkloadAdapter, WorkloadRequest
from .sessions import Turn, converse
from .settings import FromTrace, OfTrace, WorkloadSettings, as_tree
from .streams import piece_seeds, stream
from .traces import MOONCAKE_BLOCK_TOKENS, TraceRow, read_trace


def make_workload(settings: WorkloadSettings) -> Workload:
    trace = None
    if isinstance(settings.arrivals, FromTrace):
        trace = read_trace(Path(settings.arrivals.path), settings.arrivals.format)
    columns = draw_columns(settings, trace)
    lengths = _lengths(settings, columns)
    turns, num_cut_short = _turns(settings, columns, lengths)
    ranks = deal_ranks(
        settings.ranks, stream(settings.seed, "ranks"), num_adapters=settings.num_adapters
    )
    adapters = tuple(
        WorkloadAdapter(f"a{i:05d}-r{rank}", rank, weight)
        for i, (rank, weight) in enumerate(zip(ranks, columns.weights.tolist(), strict=True))
    )
    names = (*(adapter.name for adapter in adapters), BASE)  # the base: index -1
    requests = tuple(
        WorkloadRequest(
            at_s=at_s,
            adapter=names[adapter],
            prompt=turn.prompt,
            num_new_tokens=num_new,
            session=turn.session,
            turn=turn.turn,
        )
        for at_s, adapter, num_new, turn in zip(
            columns.instants_s.tolist(),
            columns.adapters.tolist(),
            lengths.answer_tokens.tolist(),
            turns,
            strict=True,
        )
    )
    notes = {
        "prompts_cut": lengths.num_prompts_cut,
        "answers_cut": lengths.num_answers_cut,
        "conversations_cut_short": num_cut_short,
        "trace_rows_left_out": trace.num_left_out if trace else 0,
    }
    if isinstance(settings.arrivals, FromTrace):
        # Where the file lies is this machine's: the same load has the same digest on another.
        name = Path(settings.arrivals.path).name
        settings = replace(settings, arrivals=replace(settings.arrivals, path=name))
    recipe = json.dumps({"settings": as_tree(settings), "notes": notes}, sort_keys=True)
    return Workload(settings.name, settings.seed, recipe, adapters, requests)


def notes_of(workload: Workload) -> dict[str, int]:
    """What drawing it had to change: requests cut to fit, rows left out."""
    return json.loads(workload.recipe).get("notes", {}) if workload.recipe else {}


def _lengths(settings: WorkloadSettings, columns: Columns) -> Fitted:
    taken = settings.sessions.system_tokens if settings.sessions else 0
    if isinstance(settings.lengths, OfTrace):
        prompt = np.array([row.prompt_tokens for row in columns.rows], np.int64)
        answer = np.array([row.answer_tokens for row in columns.rows], np.int64)
    else:
        prompt, answer = draw_lengths(
            settings.lengths,
            stream(settings.seed, "lengths"),
            adapters=columns.senders,
            weights=columns.weights,
        )
    return fit_lengths(prompt, answer, settings.scale, taken=taken)


def _turns(settings: WorkloadSettings, columns: Columns, lengths: Fitted) -> tuple[list[Turn], int]:
    """What each request says, and how many conversations ended for want of room."""
    if isinstance(settings.lengths, OfTrace):
        return _trace_turns(settings, columns.rows, lengths), 0
    if settings.sessions:
        return converse(
            settings.sessions,
            stream(settings.seed, "sessions"),
            seed=settings.seed,
            adapters=columns.adapters,
            instants_s=columns.instants_s,
            lengths=lengths,
            scale=settings.scale,
        )
    seeds = piece_seeds(settings.seed, "message", np.arange(len(columns.adapters)))
    sizes = lengths.prompt_tokens.tolist()
    return [
        Turn((Piece(seed, size),), session=-1, turn=0)
        for seed, size in zip(seeds, sizes, strict=True)
    ], 0


def _trace_turns(
    settings: WorkloadSettings, rows: tuple[TraceRow, ...], lengths: Fitted
) -> list[Turn]:
    """Blocks become pieces. A trace that names conversations does not say what their prompts
    share: each prompt is then of its own.
    """
    own = piece_seeds(settings.seed, "message", np.arange(len(rows)))
    sessions: dict[str, int] = {}
    num_turns: dict[int, int] = {}
    turns: list[Turn] = []
    for row, seed, num_tokens in zip(rows, own, lengths.prompt_tokens.tolist(), strict=True):
        pieces = (Piece(seed, row.prompt_tokens),)
        if row.blocks:
            seeds = piece_seeds(settings.seed, "block", np.array(row.blocks))
            sizes = [MOONCAKE_BLOCK_TOKENS] * len(seeds)
            sizes[-1] -= sum(sizes) - row.prompt_tokens
            pieces = tuple(map(Piece, seeds, sizes))
        prompt = fit_pieces(pieces, factor=settings.scale.prompt_factor, num_tokens=num_tokens)
        session = sessions.setdefault(row.session, len(sessions)) if row.session else -1
        turns.append(Turn(prompt, session, num_turns.get(session, 0) if row.session else 0))
        num_turns[session] = num_turns.get(session, 0) + 1
    return turns
