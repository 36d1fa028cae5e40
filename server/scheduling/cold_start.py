"""The choice: how a request whose adapter is not in the pool starts soonest.

`choose_start` is pure: it foretells the first token for each way that is allowed and can be gone,
and picks. Knows no table and no pages; of others only the time that they take (`Beside`). Called by
cold_rows.py.

The ways are CaraServe's (arXiv 2401.11240: helped by the host's cores) and the layer-wise loading
of other servers; that one is chosen per request, by what it is foretold to gain, is ours: on a fast
link nothing is to be won. A load is taken to land evenly over the layers, from `begun_s` to
`landed_s`; a chunk of a prompt is computed evenly over them too.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import NamedTuple

from .starts import OnItsWay, Start, StartPrices, Way
from .step_work import NO_WORK, StepWork

# What a cold way must gain on waiting: the larger of the two, or its risks are not worth it.
MIN_GAIN, MIN_GAIN_S = 0.05, 1e-3
ALIKE = 0.02  # ways foretold within it are equally good: the simpler one
# Of the step's length: how long a step may stop for layers, so that it need not miss a turn.
MAX_STALL = 0.05
# Of a warm step: so much longer is one in which helpers do not keep up with the device.
LONGER = 0.10


class Prompt(NamedTuple):
    """What one request has to compute before its first token."""

    start: int  # tokens computed or found cached
    num_known: int
    chunk_tokens: int  # one step computes so many at most
    adapter_bytes: int  # of its weights


class Beside(NamedTuple):
    """What others take; durations. All 0: it is alone."""

    turn_s: float = 0.0  # that the device computes in this step without it; 0: nobody is in it
    later_s: float = 0.0  # of the steps behind this one without it: of those who decode
    ahead_s: float = 0.0  # that prompts before it take, beyond what this step computes of them
    helpers_s: float = 0.0  # that helpers compute for others in this step
    called_s: float = 0.0  # and their hand-overs
    num_tokens: int = sys.maxsize  # that this step has left for it

    @property
    def step_s(self) -> float:
        """Of this step without it."""
        return max(self.turn_s, self.helpers_s) + self.called_s

    @property
    def held_up_s(self) -> float:
        """Of that, by helpers."""
        return self.step_s - self.turn_s


ALONE = Beside()


@dataclass(frozen=True, slots=True)
class _Seconds:
    """Of the steps with the prompt's first chunk, and with all others together."""

    first: float
    rest: float
    first_helped: float  # with every layer computed by helpers
    rest_helped: float
    num_rest: int  # chunks

    @property
    def all(self) -> float:
        return self.first + self.rest


def choose_start(
    prompt: Prompt,
    coming: OnItsWay,
    prices: StartPrices,
    now_s: float,
    *,
    beside: Beside = ALONE,
) -> Start:
    """Those beside it must not be held up; it can begin only between two steps of theirs.

    Where waiting is not among the allowed ways it is what remains when no other can be gone.
    """
    calls_s = coming.calls_share * prices.help.calls_s
    now = _seconds(prompt, prices, beside.turn_s, beside, calls_s=calls_s)
    is_known = 0.0 < now.all < math.inf and math.isfinite(coming.landed_s - coming.begun_s)
    if Way.WAIT in prices.ways and not is_known:
        return Start(Way.WAIT, "step times are not known yet", 0.0, now_s, {Way.WAIT: 0.0})
    later = _seconds(prompt, prices, beside.later_s)
    is_free = Way.WAIT in prices.ways  # to choose; else it goes another way if it can at all
    case = _Case(coming, beside, now, later, prices.num_layers, now_s)
    starts = {Way.WAIT: case.wait()}
    if Way.STREAM in prices.ways:
        starts[Way.STREAM] = case.stream()
    if Way.ASSIST in prices.ways and coming.can_help:
        assisted = case.assist()
        may_hold_up = assisted.longer_s <= prices.slack_s or not beside.turn_s
        if may_hold_up or not is_free:
            starts[Way.ASSIST] = assisted.start
    return _pick(starts, prices)


def _pick(starts: dict[Way, Start], prices: StartPrices) -> Start:
    others_s = {way: start.predicted_s for way, start in starts.items()}
    wait = starts[Way.WAIT]
    candidates = {way: start for way, start in starts.items() if way is not Way.WAIT}
    if Way.WAIT in prices.ways:
        enough_s = wait.predicted_s - max(MIN_GAIN * wait.predicted_s, MIN_GAIN_S)
        candidates = {w: start for w, start in candidates.items() if start.predicted_s <= enough_s}
    if candidates:
        best_s = min(start.predicted_s for start in candidates.values())
        chosen = min(w for w in candidates if candidates[w].predicted_s <= (1 + ALIKE) * best_s)
        picked = candidates[chosen]
    else:
        picked = wait
    return Start(picked.way, picked.reason, picked.predicted_s, picked.start_s, others_s)


class _Assisted(NamedTuple):
    start: Start
    longer_s: float  # duration: by which its helpers hold up those who are in the step


@dataclass(frozen=True, slots=True)
class _Case:
    """One request whose first token is foretold."""

    coming: OnItsWay
    beside: Beside
    now: _Seconds  # if it begins in this step
    later: _Seconds  # in one behind it
    num_layers: int
    now_s: float

    def wait(self) -> Start:
        """The prompt follows the load."""
        landed_s = self.coming.landed_s
        left_s = max(landed_s - self.now_s, 0.0)
        turn_s = self._turn_after(landed_s)
        begins_s = max(turn_s, self._behind_those_ahead_s)
        reason = "no other way is open to it or gains enough"
        if begins_s > turn_s:
            reason = "the load is hidden behind the prompts before it"
        elif left_s <= MIN_GAIN_S:
            reason = "the load ends before a step could gain by it"
        elif left_s <= MIN_GAIN * self.later.all:
            reason = "the load is short beside the prompt"
        predicted_s = begins_s + self.later.all - self.now_s
        return Start(Way.WAIT, reason, predicted_s, max(landed_s, self.now_s))

    def stream(self) -> Start:
        """Begins when it never has to stop. To begin earlier would end no earlier."""
        smooth_s = self._smooth_s(self.now)
        start_s = smooth_s - MAX_STALL * self.now.first
        if start_s <= self.now_s:
            reason = "layers land as fast as the prompt reaches them"
            ends_s = max(smooth_s, self.now_s) + self.beside.held_up_s + self.now.all
            return Start(Way.STREAM, reason, ends_s - self.now_s, start_s)
        smooth_s = self._smooth_s(self.later)
        start_s = smooth_s - MAX_STALL * self.later.first
        if self.beside.step_s:  # not in this step
            start_s = max(start_s, self.now_s + self.beside.step_s)
        begins_s = max(smooth_s, self._turn_after(start_s), self._behind_those_ahead_s)
        reason = "the end of the load is hidden behind the prompt"
        return Start(Way.STREAM, reason, begins_s + self.later.all - self.now_s, start_s)

    def assist(self) -> _Assisted:
        """Begins at once. A layer that has not landed when it is reached takes the longer of the
        base's part and the helpers', and the hand-overs.
        """
        coming, now = self.coming, self.now
        # An image that is still read from disk must be there as its layers are reached.
        held_s = coming.held_s - now.first_helped * (self.num_layers - 1) / self.num_layers
        start_s = self._turn_after(held_s)
        at_s = self._walk_layers(start_s)
        longer_s = at_s - start_s - now.first
        if now.num_rest:
            helped_s = now.rest_helped / now.num_rest
            left_s = max(coming.landed_s - at_s, 0.0)
            num_helped = min(now.num_rest, math.ceil(left_s / helped_s)) if helped_s > 0 else 0
            at_s += num_helped * helped_s + (now.num_rest - num_helped) * now.rest / now.num_rest
        reason = "helpers keep up with the device until the layers land"
        if now.first_helped > (1 + LONGER) * now.first:
            reason = "helpers are slower than the device and still sooner than the link"
        start = Start(Way.ASSIST, reason, at_s - self.now_s, max(held_s, self.now_s))
        return _Assisted(start, longer_s)

    def _turn_after(self, instant_s: float) -> float:
        """Instant of the first step that begins then or later."""
        left_s, beside = max(instant_s - self.now_s, 0.0), self.beside
        if not 0.0 < left_s < math.inf or beside.step_s <= MIN_GAIN_S:  # no turn worth counting
            return self.now_s + left_s
        behind_s = max(left_s - beside.step_s, 0.0)
        if beside.later_s > MIN_GAIN_S:
            behind_s = math.ceil(behind_s / beside.later_s) * beside.later_s
        return self.now_s + beside.step_s + behind_s

    @property
    def _behind_those_ahead_s(self) -> float:
        """Instant at which the device is free for it, if it is not in this step."""
        ahead_s = self.beside.ahead_s
        return self.now_s + self.beside.step_s + ahead_s if ahead_s else self.now_s

    def _smooth_s(self, seconds: _Seconds) -> float:
        """Instant from which no layer is waited for: the first has landed, and the last will have
        when it is reached, which is a first chunk less one layer later.
        """
        coming = self.coming
        behind_the_last_s = seconds.first * (self.num_layers - 1) / self.num_layers
        first_landed_s = coming.begun_s + _layer_landing_s(coming, self.num_layers)
        return max(first_landed_s, coming.landed_s - behind_the_last_s)

    def _walk_layers(self, start_s: float) -> float:
        """Instant at which the first chunk is computed."""
        coming, at_s = self.coming, start_s
        warm_s = (self.now.first + self.beside.held_up_s) / self.num_layers
        helped_s = self.now.first_helped / self.num_layers
        one_layer_s = _layer_landing_s(coming, self.num_layers)
        for layer in range(1, self.num_layers + 1):
            at_s += warm_s if coming.begun_s + layer * one_layer_s <= at_s else helped_s
        return at_s


def _layer_landing_s(coming: OnItsWay, num_layers: int) -> float:
    return max(coming.landed_s - coming.begun_s, 0.0) / num_layers


def _seconds(
    prompt: Prompt,
    prices: StartPrices,
    turn_s: float,
    beside: Beside = ALONE,
    *,
    calls_s: float = 0.0,
) -> _Seconds:
    """In a step that takes `turn_s` without it; `beside`: of the first one, where that is known;
    `calls_s`: of its hand-overs in one step.
    """
    num_tokens = prompt.num_known - prompt.start
    first = min(num_tokens, prompt.chunk_tokens, beside.num_tokens)
    rest = num_tokens - first
    num_rest = -(-rest // prompt.chunk_tokens)
    first_s, first_helped_s = _chunks_s(
        prompt, prices, _base_work(prompt.start, first, 1), turn_s, beside.helpers_s
    )
    rest_s = rest_helped_s = 0.0
    if rest:
        work = _base_work(prompt.start + first, rest, num_rest)
        turn_s = turn_s if beside is ALONE else beside.later_s
        rest_s, rest_helped_s = _chunks_s(prompt, prices, work, turn_s)
    return _Seconds(
        first_s,
        rest_s,
        first_helped_s + beside.called_s + calls_s,
        rest_helped_s + num_rest * calls_s,
        num_rest,
    )


def _chunks_s(
    prompt: Prompt, prices: StartPrices, base: StepWork, turn_s: float, helpers_s: float = 0.0
) -> tuple[float, float]:
    """Of these chunks together: warm, and helped in every layer, the hand-overs aside. `turn_s`: of
    each of their steps without them; `helpers_s`: that helpers are busy for others.
    """
    num_chunks, num_tokens = base.steps, base.prompt_tokens + base.decode_rows
    # What a step costs whatever is in it is in the turn and in the chunk.
    others_s = num_chunks * max(turn_s - prices.steps.step_s(NO_WORK._replace(steps=1)), 0.0)
    token_bytes = num_tokens * prompt.adapter_bytes
    warm = base._replace(
        adapters=num_chunks,
        adapter_bytes=num_chunks * prompt.adapter_bytes,
        lora_token_bytes=token_bytes,
    )
    helpers_s += prices.help.compute_s(token_bytes)
    helped_s = max(prices.steps.step_s(base) + others_s, helpers_s)
    return prices.steps.step_s(warm) + others_s, helped_s


def _base_work(start: int, num_tokens: int, num_chunks: int) -> StepWork:
    """Without the adapter's part; the model is linear, so chunks can be added up."""
    if num_tokens == 1:
        return NO_WORK._replace(steps=1, decode_rows=1, decode_context=start + 1)
    return NO_WORK._replace(
        steps=num_chunks,
        prompt_chunks=num_chunks,
        prompt_tokens=num_tokens,
        prompt_pairs=num_tokens * start + num_tokens * (num_tokens + 1) // 2,
    )
