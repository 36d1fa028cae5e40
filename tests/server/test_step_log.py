"""The file of steps: every line is there after the end, and a broken one is named."""

from __future__ import annotations

import logging
import math
import resource
from pathlib import Path

import pytest

from lorry.bench.cost.step_logs import BadStepLog, read_step_log
from lorry.server.scheduling.step_work import StepWork
from lorry.server.step_log import COLUMNS, StepLog, drop_empty_log
from lorry.server.step_meter import MeteredStep


def step(number: int, *, predicted_s: float = 0.25) -> MeteredStep:
    work = StepWork(*range(number, number + 9))
    return MeteredStep(100.5 + number, 0.125, predicted_s, work, number, 2 * number)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Lines that stay in a buffer, or columns that change places."""
    path, steps = tmp_path / "steps.csv", [step(number) for number in range(1, 2000)]
    log = StepLog(path)
    for one in steps:
        log.write(one)
    assert read_step_log(path) == steps, "a killed engine closes nothing"
    log.close()
    log.write(step(1))  # after the end: nobody to tell
    assert read_step_log(path) == steps


def test_an_engine_that_comes_back_goes_on(tmp_path: Path) -> None:
    """A second head in the middle, or the first life's steps lost."""
    path = tmp_path / "steps.csv"
    for number in (1, 2):
        log = StepLog(path)
        log.write(step(number))
        log.close()
    assert read_step_log(path) == [step(1), step(2)]


def test_what_was_not_predicted_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    log = StepLog(path)
    log.write(step(1, predicted_s=math.nan))
    log.close()
    (found,) = read_step_log(path)
    assert math.isnan(found.predicted_s) and found.work == step(1).work


def test_a_full_disk_stops_the_log_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """Requests that fail because somebody wanted to study steps."""
    log = StepLog(Path("/dev/full"))
    with caplog.at_level(logging.WARNING):
        for number in range(5000):
            log.write(step(number))
        log.close()
    assert caplog.text.count("cannot be written any more: No space left on device") == 1


def test_a_disk_that_fills_up_leaves_whole_lines(tmp_path: Path) -> None:
    """Half a line and the first of the next engine would make one, and the file unreadable."""
    path = tmp_path / "steps.csv"
    log = StepLog(path)
    log.write(step(1))
    log.close()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = StepLog(path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 30, unlimited[1]))
    try:
        log.write(step(2))
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    log = StepLog(path)
    log.write(step(3))
    log.close()
    assert read_step_log(path) == [step(1), step(3)]


def test_a_log_without_steps_is_in_nobodys_way(tmp_path: Path) -> None:
    """Broken: a start that failed, and then the same command is refused, as the file exists."""
    drop_empty_log(None)
    path = tmp_path / "steps.csv"
    drop_empty_log(path)
    path.touch()
    drop_empty_log(path)
    assert not path.exists()
    StepLog(path).close()
    drop_empty_log(path)
    assert not path.exists(), "a head is no step"
    log = StepLog(path)
    log.write(step(1))
    log.close()
    drop_empty_log(path)
    assert read_step_log(path) == [step(1)]


HEAD = ",".join(COLUMNS) + "\n"
GOOD = "1.0,0.1,0.1,1,0,0,0,1,5,0,0,0,0,0\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1"),
        ("a,b\n1,2\n", "line 1: 'a,b' is not 'ended_s,"),
        (HEAD + GOOD + "1,2\n", "line 3: 2 columns, not 14"),
        (HEAD + GOOD.replace("5", "x"), "line 2: invalid literal"),
        (HEAD + GOOD.replace("0.1", "0.0"), "line 2: seconds is 0.0"),
    ],
)
def test_a_broken_log_names_its_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "steps.csv"
    path.write_text(text)
    with pytest.raises(BadStepLog, match=r"steps\.csv") as refused:
        read_step_log(path)
    assert words in str(refused.value)


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    """The last words of a server that was killed."""
    path = tmp_path / "steps.csv"
    path.write_text(HEAD + GOOD + GOOD[:20])
    assert len(read_step_log(path)) == 1
