"""The choice: how a request whose adapter is not in the pool starts soonest.

`choose_start` is pure: it foretells the first token for each way that is allowed and can be gone,
and picks. Knows no table, no pages and no other requests of the step. Called by cold_rows.py.

The ways are CaraServe's (arXiv 2401.11240: helped by the host's cores) and the layer-wise loading
of other servers; that one is chosen per request, by what it is foretold to gain, is ours: on a fast
link nothing is to be won. A load is taken to land evenly over the layers, from `begun_s` to
`landed_s`; a chunk of a prompt is computed evenly over them too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from .starts import OnItsWay, Start, StartPrices, Way
from .step_work import NO_WORK, StepWork

# What a cold way must gain on waiting: the larger of the two, or its risks are not worth it.
MIN_GAIN, MIN_GAIN_S = 0.05, 1e-3
ALIKE = 0.02  # ways foretold within it are equally good: the simpler one
# Of the step's length: how long a step may stop for layers, so that it need not miss a turn.
MAX_STALL = 0.05
# How much longer than warm a step may take by its helpers while others decode in it. Half of the
# time goes into prompts on a busy server, and others' tokens may take a twentieth longer.
MAX_LONGER = 0.10


class Prompt(NamedTuple):
    """What one request has to compute before its first token."""

    start: int  # tokens computed or found cached
    num_known: int
    chunk_tokens: int  # one step computes so many at most
    adapter_bytes: int  # of its weights


@dataclass(frozen=True, slots=True)
class _Seconds:
    """Of the steps with the prompt's first chunk, and with all others together."""

    first: float
    rest: float
    first_helped: float  # with every layer computed by helpers
    rest_helped: float
    num_rest: int  # chunks
    turn: float  # of a step without it; 0: there is none

    @property
    def all(self) -> float:
        return self.first + self.rest


def choose_start(
    prompt: Prompt,
    coming: OnItsWay,
    prices: StartPrices,
    now_s: float,
    *,
    turn_s: float = 0.0,
) -> Start:
    """`turn_s`: how long the step would take without it, of those who run, who must not be held up;
    0: there is nobody. It can begin only between two steps of theirs.

    Where waiting is not among the allowed ways it is what remains when no other can be gone.
    """
    seconds = _seconds(prompt, prices, turn_s)
    is_known = 0.0 < seconds.all < math.inf and math.isfinite(coming.landed_s - coming.begun_s)
    if Way.WAIT in prices.ways and not is_known:
        return Start(Way.WAIT, "step times are not known yet", 0.0, now_s, {Way.WAIT: 0.0})
    is_free = Way.WAIT in prices.ways  # to choose; else it goes another way if it can at all
    starts = {Way.WAIT: _wait(coming, seconds, now_s)}
    if Way.STREAM in prices.ways:
        starts[Way.STREAM] = _stream(coming, seconds, prices.num_layers, now_s)
    if Way.ASSIST in prices.ways and coming.can_help:
        assisted = _assist(coming, seconds, prices.num_layers, now_s)
        if not (is_free and seconds.turn and _is_long(assisted, seconds)):
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


def _wait(coming: OnItsWay, seconds: _Seconds, now_s: float) -> Start:
    """The prompt follows the load."""
    left_s = max(coming.landed_s - now_s, 0.0)
    ends_s = _turn_after(coming.landed_s, seconds, now_s) + seconds.all
    reason = "no other way is open to it or gains enough"
    if left_s <= MIN_GAIN_S:
        reason = "the load ends before a step could gain by it"
    elif left_s <= MIN_GAIN * seconds.all:
        reason = "the load is short beside the prompt"
    return Start(Way.WAIT, reason, ends_s - now_s, max(coming.landed_s, now_s))


def _stream(coming: OnItsWay, seconds: _Seconds, num_layers: int, now_s: float) -> Start:
    """Begins when it never has to stop: the first layer has landed, and the last will have when it
    is reached, which is a first chunk less one layer later. To begin earlier would end no earlier.
    """
    one_layer_s = _layer_landing_s(coming, num_layers)
    behind_the_last_s = coming.landed_s - seconds.first * (num_layers - 1) / num_layers
    smooth_s = max(coming.begun_s + one_layer_s, behind_the_last_s)
    start_s = smooth_s - MAX_STALL * seconds.first
    ends_s = max(smooth_s, _turn_after(start_s, seconds, now_s)) + seconds.all
    reason = "the end of the load is hidden behind the prompt"
    if start_s <= now_s:
        reason = "layers land as fast as the prompt reaches them"
    return Start(Way.STREAM, reason, ends_s - now_s, start_s)


class _Assisted(NamedTuple):
    start: Start
    first_s: float  # duration of its first chunk


def _assist(coming: OnItsWay, seconds: _Seconds, num_layers: int, now_s: float) -> _Assisted:
    """Begins at once. A layer that has not landed when it is reached takes the longer of the base's
    part and the helpers', and the hand-overs.
    """
    # An image that is still read from disk must be there as its layers are reached.
    held_s = coming.held_s - seconds.first_helped * (num_layers - 1) / num_layers
    start_s = _turn_after(held_s, seconds, now_s)
    at_s = _walk_layers(coming, seconds, num_layers, start_s)
    first_s = at_s - start_s
    if seconds.num_rest:
        helped_s = seconds.rest_helped / seconds.num_rest
        left_s = max(coming.landed_s - at_s, 0.0)
        num_helped = min(seconds.num_rest, math.ceil(left_s / helped_s)) if helped_s > 0 else 0
        warm_s = seconds.rest / seconds.num_rest
        at_s += num_helped * helped_s + (seconds.num_rest - num_helped) * warm_s
    reason = "helpers keep up with the device until the layers land"
    if seconds.first_helped > (1 + MAX_LONGER) * seconds.first:
        reason = "helpers are slower than the device and still sooner than the link"
    return _Assisted(Start(Way.ASSIST, reason, at_s - now_s, max(held_s, now_s)), first_s)


def _is_long(assisted: _Assisted, seconds: _Seconds) -> bool:
    return assisted.first_s > (1 + MAX_LONGER) * seconds.first


def _turn_after(instant_s: float, seconds: _Seconds, now_s: float) -> float:
    """Instant of the first step that begins then or later."""
    left_s = max(instant_s - now_s, 0.0)
    if seconds.turn > MIN_GAIN_S and math.isfinite(left_s):  # else no turn is worth counting
        left_s = math.ceil(left_s / seconds.turn) * seconds.turn
    return now_s + left_s


def _walk_layers(coming: OnItsWay, seconds: _Seconds, num_layers: int, start_s: float) -> float:
    """Instant at which the first chunk is computed."""
    warm_s, helped_s = seconds.first / num_layers, seconds.first_helped / num_layers
    one_layer_s, at_s = _layer_landing_s(coming, num_layers), start_s
    for layer in range(1, num_layers + 1):
        at_s += warm_s if coming.begun_s + layer * one_layer_s <= at_s else helped_s
    return at_s


def _layer_landing_s(coming: OnItsWay, num_layers: int) -> float:
    return max(coming.landed_s - coming.begun_s, 0.0) / num_layers


def _seconds(prompt: Prompt, prices: StartPrices, turn_s: float) -> _Seconds:
    num_tokens = prompt.num_known - prompt.start
    first = min(num_tokens, prompt.chunk_tokens)
    rest = num_tokens - first
    num_rest = -(-rest // prompt.chunk_tokens)
    # What a step costs whatever is in it is in the turn and in the chunk.
    beside_s = max(turn_s - prices.steps.step_s(NO_WORK._replace(steps=1)), 0.0)
    first_s, first_helped_s = _chunks_s(
        prompt, prices, _base_work(prompt.start, first, 1), beside_s
    )
    rest_s = rest_helped_s = 0.0
    if rest:
        work = _base_work(prompt.start + first, rest, num_rest)
        rest_s, rest_helped_s = _chunks_s(prompt, prices, work, beside_s)
    return _Seconds(first_s, rest_s, first_helped_s, rest_helped_s, num_rest, turn_s)


def _chunks_s(
    prompt: Prompt, prices: StartPrices, base: StepWork, beside_s: float
) -> tuple[float, float]:
    """Of these chunks together: warm, and helped in every layer. `beside_s`: of those who are in
    the same step, for each chunk.
    """
    num_chunks, num_tokens = base.steps, base.prompt_tokens + base.decode_rows
    token_bytes = num_tokens * prompt.adapter_bytes
    warm = base._replace(
        adapters=num_chunks,
        adapter_bytes=num_chunks * prompt.adapter_bytes,
        lora_token_bytes=token_bytes,
    )
    calls_s = num_chunks * prices.help.num_calls * prices.help.call_s
    helpers_s = prices.help.token_byte_s * token_bytes
    others_s = num_chunks * beside_s
    helped_s = max(prices.steps.step_s(base) + others_s, helpers_s) + calls_s
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
