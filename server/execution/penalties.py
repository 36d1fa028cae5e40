"""What a request asks to be added to or taken off its logits: bias and the three penalties.

Bias and repetition penalty as transformers defines them (the latter over prompt and answer),
then frequency and presence penalty as OpenAI does (over the answer alone). Work follows the
tokens that were seen, never the vocabulary. Owns `Seen`, a request's history as the penalties
need it, and its upkeep from step to step. Called by runner.py (histories) and sampler.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..scheduling.sampling import SamplingParams
from .batch import StepRow
from .sampler_device import ON_CPU, SamplerDevice

SPARE_TOKENS = 64  # new ones that a history has room for before it moves


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """The tokens of prompt and answer, each once, in no particular order."""

    token_ids: NDArray[np.int64]
    counts: NDArray[np.float32]  # times in the answer; 0: in the prompt only


class History:
    """One request's `Seen`, a few operations a token; the known tokens only ever grow."""

    def __init__(self, known_ids: Sequence[int], num_prompt: int) -> None:
        self.known_ids = known_ids
        self._num_counted = num_prompt
        prompt = np.unique(np.asarray(known_ids[:num_prompt], np.int64))
        self._size = len(prompt)
        self._token_ids = np.resize(prompt, self._size + SPARE_TOKENS)
        self._counts = np.zeros(self._size + SPARE_TOKENS, np.float32)
        self._place = dict(zip(prompt.tolist(), range(self._size), strict=True))

    def seen(self, num_known: int) -> Seen:
        """After the first `num_known` tokens; good until the next call."""
        for token in self.known_ids[self._num_counted : num_known]:
            place = self._place.setdefault(token, self._size)
            if place == self._size:
                self._add(token)
            self._counts[place] += 1
        self._num_counted = max(self._num_counted, num_known)
        return Seen(self._token_ids[: self._size], self._counts[: self._size])

    def _add(self, token: int) -> None:
        if self._size == len(self._token_ids):
            size = 2 * self._size
            self._token_ids = np.resize(self._token_ids, size)
            self._counts = np.concatenate([self._counts, np.zeros(self._size, np.float32)])
        self._token_ids[self._size] = token
        self._size += 1


class Histories:
    """The histories of the rows that were sampled last.

    A row that was not (it paused, was preempted, ended) is forgotten, and counted anew should it
    come back: so there are never more than a step has rows. The list of known tokens says whose
    a history is: a new request in an old row brings a list of its own.
    """

    def __init__(self) -> None:
        self._by_row: dict[int, History] = {}

    def look(self, rows: Sequence[StepRow]) -> list[Seen | None]:
        """What each has seen; None: it asks for no penalty."""
        kept: dict[int, History] = {}
        seen: list[Seen | None] = []
        for row in rows:
            if not row.sampling.needs_history:
                seen.append(None)
                continue
            history = self._by_row.get(row.row)
            if history is None or history.known_ids is not row.known_ids:
                history = History(row.known_ids, row.num_prompt)
            kept[row.row] = history
            seen.append(history.seen(row.start + row.num_tokens))
        self._by_row = kept
        return seen


def adjust(
    scores_BV: Tensor,
    params: Sequence[SamplingParams],
    seen: Sequence[Seen | None],
    *,
    on: SamplerDevice = ON_CPU,
) -> None:
    """Changes the scores in place, in transformers' order: bias first."""
    if any(one.logit_bias for one in params):
        _add_bias(scores_BV, params, on)
    rows = [i for i, one in enumerate(seen) if one is not None and len(one.token_ids)]
    if rows:
        _penalize(scores_BV, rows, params, seen, on)


def _add_bias(scores_BV: Tensor, params: Sequence[SamplingParams], on: SamplerDevice) -> None:
    vocab = scores_BV.shape[1]
    entries = [
        (row * vocab + token, value)
        for row, one in enumerate(params)
        for token, value in one.logit_bias
    ]
    flat = on.put([place for place, _ in entries])
    values = on.put([value for _, value in entries], torch.float32)
    scores_BV.view(-1).index_add_(0, flat, values)


def _penalize(
    scores_BV: Tensor,
    rows: Sequence[int],
    params: Sequence[SamplingParams],
    seen: Sequence[Seen | None],
    on: SamplerDevice,
) -> None:
    vocab = scores_BV.shape[1]
    histories = [one for one in (seen[i] for i in rows) if one is not None]
    lens = [len(one.token_ids) for one in histories]
    token_ids = np.concatenate([one.token_ids for one in histories])

    def spread(values: Sequence[float]) -> Tensor:
        """One number a row becomes one a token."""
        return on.put(np.repeat(np.array(values, np.float32), lens), torch.float32)

    flat = on.put(token_ids + np.repeat(np.array(rows) * vocab, lens))
    counts = on.put(np.concatenate([one.counts for one in histories]), torch.float32)
    repetition = spread([params[i].repetition_penalty for i in rows])
    frequency = spread([params[i].frequency_penalty for i in rows])
    presence = spread([params[i].presence_penalty for i in rows])
    raw = scores_BV.view(-1).index_select(0, flat)
    score = torch.where(raw < 0, raw * repetition, raw / repetition)
    score = score - frequency * counts - presence * (counts > 0)
    # A penalty rules nothing out and makes nothing certain: what was finite stays so.
    limits = torch.finfo(torch.float32)
    score = torch.where(raw.isfinite(), score.clamp(limits.min, limits.max), raw)
    scores_BV.view(-1).index_copy_(0, flat, score)
