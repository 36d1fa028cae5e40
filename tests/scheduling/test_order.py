"""The waiting line against a sorted list."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorry.server.scheduling.order import WaitingLine

CAPACITY = 12
ACTIONS = st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 50)), max_size=60)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ACTIONS)
def test_equals_a_sorted_list(actions):
    """Rows would be served out of order, or lost, after some comings and goings."""
    line, model, seq = WaitingLine(CAPACITY), [], 0
    for comes, key, pick in actions:
        if comes and len(model) < CAPACITY:
            row = 100 + seq
            line.insert(row, float(key), seq)
            model.append((float(key), seq, row))
            seq += 1
        elif model:
            key_s, old, row = model.pop(pick % len(model))
            line.remove(row, key_s, old)
        model.sort()
        assert line.rows().tolist() == [row for _, _, row in model]
        assert len(line) == len(model)
        for place, (key_s, old, _) in enumerate(model):
            assert line.position(key_s, old) == place


def test_a_row_that_does_not_wait_cannot_leave():
    """Removing by a wrong key would silently take someone else out of the line."""
    line = WaitingLine(4)
    line.insert(7, 1.0, 0)
    with pytest.raises(KeyError):
        line.remove(7, 2.0, 0)
    with pytest.raises(KeyError):
        line.remove(8, 1.0, 0)
    assert line.rows().tolist() == [7]


def test_the_view_cannot_be_written():
    """A planner that writes into the line would not be pure."""
    line = WaitingLine(4)
    line.insert(7, 1.0, 0)
    with pytest.raises(ValueError, match="read-only"):
        line.rows()[0] = 3
