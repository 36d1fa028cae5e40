"""Stop strings against a reading of the whole text at every character."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from lorry.server.rpc.stops import StopStrings

# Few letters, so that stop strings overlap, contain each other and nearly match.
LETTERS = st.text(alphabet="aabé😀", min_size=1, max_size=4)
STOPS = st.lists(LETTERS, min_size=1, max_size=4)
PIECES = st.lists(st.text(alphabet="aabé😀", max_size=5), max_size=12)


def naive(stops: list[str], text: str, *, include: bool) -> tuple[str, str]:
    """The text as far as it counts, and what ended it."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, ""


@settings(max_examples=400, deadline=None, derandomize=True)
@given(stops=STOPS, pieces=PIECES, include=st.booleans())
@example(stops=["abcd", "bc"], pieces=["a", "bcd"], include=False)
@example(stops=["aab"], pieces=["aa", "ab"], include=False)
@example(stops=["ba", "aba"], pieces=["ab", "a"], include=False)
def test_any_chunking_ends_where_the_text_alone_says(
    stops: list[str], pieces: list[str], include: bool
):
    """Broken: the same answer ends elsewhere when its tokens come in other pieces."""
    scan = StopStrings(stops, include=include).scan()
    given_text = "".join(scan.push(piece) for piece in pieces)
    if not scan.found:
        given_text += scan.rest()
    assert (given_text, scan.found) == naive(stops, "".join(pieces), include=include)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(stops=STOPS, pieces=PIECES)
def test_no_more_is_held_back_than_may_begin_a_stop_string(stops: list[str], pieces: list[str]):
    """Broken: a stream stutters, or shows the beginning of what must not be seen."""
    scan = StopStrings(stops).scan()
    text, shown = "", ""
    for piece in pieces:
        text += piece
        shown += scan.push(piece)
        if scan.found:
            return
        beginnings = [stop[:size] for stop in stops for size in range(1, len(stop))]
        held = max((len(part) for part in beginnings if text.endswith(part)), default=0)
        assert shown == text[: len(text) - held]


def test_what_is_kept_needs_no_waiting():
    """Broken: text is held back although it is shown whether or not the stop string comes."""
    scan = StopStrings(["stop"], include=True).scan()
    assert [scan.push("a st"), scan.push("op!"), scan.push("more")] == ["a st", "op", ""]


def test_the_scan_looks_at_each_character_once():
    """Broken: a long answer of near misses costs the square of its length on the event loop."""
    stops = StopStrings(["a" * 255 + "b"])
    steps = 0

    class Counting(type(stops._next[0])):  # type: ignore[misc]
        def get(self, *args):
            nonlocal steps
            steps += 1
            return super().get(*args)

    stops._next = [Counting(edges) for edges in stops._next]
    scan = stops.scan()
    for _ in range(1000):
        scan.push("aaaa")
    assert not scan.found
    assert steps <= 2 * 4000  # a step forward for each, and a step back for each at most
