"""What the choice of a way is made by: prices that renew themselves, and who can help.

Owns their renewal, what is learnt of hand-overs, and the account of how long helpers may hold up
others. Chooses nothing: scheduling/cold_start.py does.
Made by cold_rooms.py; asked by the engine at each plan, and by residency's facts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cache

from ..adapters.image import Site
from ..adapters.key import AdapterCard
from .clock import Clock, MonotonicClock
from .scheduling.cost_model import CostModel
from .scheduling.starts import HelpCosts, StartPrices, Way
from .stats import HelpersView

RENEW_EVERY = 16  # plans: the model learns a step at a time
NUM_KEPT = 16  # steps with hand-overs, by which one is priced
MAX_CHANGE, LEAST_CALL_S = 4.0, 1e-5  # times what the calibration says, up or down; at least that
FORGET_S = 10.0  # nobody was helped for so long: it may have been for the price
# Of the time: by so much may helped steps hold up those who decode in them; and saved up, at most.
HELD_UP, MAX_SLACK_S = 0.05, 0.05


class HelpNow:
    """Whether helpers may be asked for an adapter, as it is now. While none is up nobody is: a step
    that was to be assisted would stand still, with everyone in it, for a load that had just begun.
    """

    def __init__(self, helpers: HelpersView | None, heads: Collection[str]) -> None:
        self._helpers, self._heads = helpers, frozenset(heads)

    def __call__(self, card: AdapterCard) -> bool:
        if self._helpers is None or not self._heads.isdisjoint(card.target_modules):
            return False
        return self._helpers.stats().num_up > 0


class CallsShare:
    """Of the hand-overs that a step can have, those that an adapter needs: where it changes a site.
    By the names of its modules, so by layers alike.
    """

    def __init__(self, sites: Sequence[Site], groups: Sequence[Sequence[int]]) -> None:
        self._groups = [{sites[site].name.rpartition(".")[2] for site in one} for one in groups]
        self._of = cache(self._share)

    def __call__(self, card: AdapterCard) -> float:
        return self._of(frozenset(card.target_modules))

    def _share(self, changed: frozenset[str]) -> float:
        num_changed = sum([not changed.isdisjoint(names) for names in self._groups])
        return num_changed / len(self._groups) if num_changed else 1.0


class NewestPrices:
    """A cost model is asked for now and then, not for each plan. From the steps that had hand-overs
    is learnt what one takes (a helper's core has other work too, and the device computes while it
    is called: the calibration knows neither), and how long others have been held up. On a GPU the
    host launches ahead, and what is learnt is the launching.
    """

    def __init__(
        self,
        ways: frozenset[Way],
        model: Callable[[], CostModel],
        *,
        help_costs: HelpCosts,
        num_layers: int,
        clock: Clock | None = None,
    ) -> None:
        self._ways, self._model = ways, model
        self._timed, self._help, self._num_layers = help_costs, help_costs, num_layers
        self._calls = self._as_timed()
        self._clock = clock or MonotonicClock()
        self._asked_s = self._helped_s = self._clock.now_s()
        self._slack_s = MAX_SLACK_S
        self._num_asked, self._prices = 0, self._newest()

    def __call__(self) -> StartPrices:
        now_s = self._clock.now_s()
        if self._help is not self._timed and now_s > self._helped_s + FORGET_S:
            self._calls, self._help = self._as_timed(), self._timed
            self._prices = self._newest()
        self._num_asked += 1
        if self._num_asked % RENEW_EVERY == 0:
            self._prices = self._newest()
        earned_s = HELD_UP * (now_s - self._asked_s)
        self._asked_s, self._slack_s = now_s, min(self._slack_s + earned_s, MAX_SLACK_S)
        return replace(self._prices, slack_s=self._slack_s)

    def helped(self, num_calls: int, seconds: float) -> None:
        """So many hand-overs have held up a step for so long."""
        self._helped_s = self._clock.now_s()
        self._slack_s = max(self._slack_s - seconds, -MAX_SLACK_S)
        self._calls.append((num_calls, seconds))
        # Of all together: a step with few of them says little.
        call_s = sum(s for _, s in self._calls) / sum(n for n, _ in self._calls)
        timed_s = max(self._timed.call_s, LEAST_CALL_S)
        call_s = min(max(call_s, timed_s / MAX_CHANGE), timed_s * MAX_CHANGE)
        self._help = replace(self._timed, call_s=call_s)
        self._prices = self._newest()

    def _as_timed(self) -> deque[tuple[int, float]]:
        """(hand-overs, seconds that they took) of the last steps that had some; none so far."""
        return deque([(max(self._timed.num_calls, 1), self._timed.calls_s)], NUM_KEPT)

    def _newest(self) -> StartPrices:
        return StartPrices(self._ways, self._model(), self._help, self._num_layers)
