"""Conversations: a turn's prompt is everything said before, and a new message.

The instants and adapters of requests are given and stay as they are; here it is decided which of
them belong together. A turn waits until its user has thought, then takes the next request of its
adapter; a request that nobody waits for opens a new conversation. Answers that the server really
gives are not known beforehand, so a later prompt holds a stand-in of the same length: turns
share the earlier prompt exactly, and not what was generated. Called by make.py.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from .errors import must
from .fit import Fitted, Scale
from .records import Piece
from .streams import Floats, Ints, piece_seeds


@dataclass(frozen=True, slots=True)
class Sessions:
    mean_turns: float = 4.0  # of a conversation; geometric
    think_s: float = 10.0  # mean from one turn's due time to the next one's, at least; exponential
    system_tokens: int = 0  # an adapter's own, at the head of all its prompts

    def __post_init__(self) -> None:
        must(self.mean_turns >= 1, f"mean_turns {self.mean_turns}: at least 1")
        must(self.think_s >= 0, f"think_s {self.think_s}: must not be negative")
        must(self.system_tokens >= 0, f"system_tokens {self.system_tokens}: must not be negative")


@dataclass(frozen=True, slots=True)
class Turn:
    """What a request says, and in which conversation."""

    prompt: tuple[Piece, ...]
    session: int
    turn: int


def converse(
    sessions: Sessions,
    rng: np.random.Generator,
    *,
    seed: int,
    adapters: Ints,
    instants_s: Floats,
    lengths: Fitted,
    scale: Scale,
) -> tuple[list[Turn], int]:
    """A turn for each request (-1 among `adapters`: the base), and how many conversations ended
    before their time because their next turn would not have fitted the scale's limits.
    """
    count = len(adapters)
    goes_on = rng.random(count) < 1 - 1 / sessions.mean_turns
    ready_s = instants_s + sessions.think_s * rng.standard_exponential(count)
    each = np.arange(count)
    messages, answers = piece_seeds(seed, "message", each), piece_seeds(seed, "answer", each)
    systems = piece_seeds(seed, "system", np.arange(int(adapters.max(initial=-1)) + 2))
    waiting: dict[int, list[tuple[float, int]]] = defaultdict(list)  # by adapter: (ready, index)
    turns: list[Turn] = []
    num_sessions = num_cut = 0
    for i, (adapter, at_s) in enumerate(zip(adapters.tolist(), instants_s.tolist(), strict=True)):
        message = Piece(messages[i], int(lengths.prompt_tokens[i]))
        queue = waiting[adapter]
        turn = None
        if queue and queue[0][0] <= at_s:
            before = heappop(queue)[1]
            earlier = turns[before]
            said = Piece(answers[before], int(lengths.answer_tokens[before]))
            prompt = (*earlier.prompt, said, message)
            if not scale.holds(
                sum(said.num_tokens for said in prompt), int(lengths.answer_tokens[i])
            ):
                num_cut += 1
            else:
                turn = Turn(prompt, earlier.session, earlier.turn + 1)
        if turn is None:
            head = (Piece(systems[adapter + 1], sessions.system_tokens),)
            turn = Turn((*(head if sessions.system_tokens else ()), message), num_sessions, 0)
            num_sessions += 1
        turns.append(turn)
        if goes_on[i]:
            heappush(queue, (float(ready_s[i]), i))
    return turns, num_cut
