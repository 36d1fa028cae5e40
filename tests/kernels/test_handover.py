"""The hand-over's kernels against what they say: in the interpreter, or on a GPU."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Generator
from dataclasses import replace

import pytest
import torch

from lorry.kernels.handover import MAX_SHARDS, Shard, Slip, await_add, send_rows, write_slip
from lorry.kernels.handover.reference import add_answers, sent_rows
from lorry.tests.handover_builders import DEVICE, Cuts, Mail, rows_on_device, settle

pytestmark = [pytest.mark.interpreter, pytest.mark.gpu]

# bf16 is for a GPU alone: interpreted, its arithmetic is another.
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * (DEVICE.type == "cuda")
MANY = 1 << 30  # looks; a test that needs them would not end
CASES: dict[str, tuple[int, Cuts, int]] = {
    # first row in the step, rows of each helper, width
    "T1-W64": (0, [(0, 1)], 64),
    "T23-W8-three-helpers": (5, [(0, 7), (7, 13), (13, 23)], 8),
    "T9-W129-odd": (3, [(0, 4), (4, 9)], 129),
    "T10-W72-one-has-none": (0, [(0, 0), (0, 10)], 72),
    "T3-W1": (2, [(0, 3)], 1),
}


@pytest.fixture
def mail(request: pytest.FixtureRequest) -> Generator[Mail]:
    made = Mail(getattr(request, "param", torch.float32))
    yield made
    assert made.is_guarded()
    made.close()


def num_rows_of(start: int, cuts: Cuts) -> int:
    return start + cuts[-1][1]


@pytest.mark.parametrize("mail", DTYPES, ids=str, indirect=True)
@pytest.mark.parametrize("case", CASES)
def test_rows_are_sent(mail: Mail, case: str) -> None:
    """A helper that begins on its word finds its own rows, bit for bit, and nothing else moved."""
    start, cuts, width = CASES[case]
    hidden_TI = rows_on_device(num_rows_of(start, cuts) + 2, width, mail.dtype)
    slip = mail.slip(cuts, start=start, in_width=width, epoch=7)
    for _ in range(2):  # the second launch finds the counter as the first one did
        send_rows(hidden_TI, mail.post, number=1, slip=slip)
        settle()
        for shard, expected in zip(slip.shards, sent_rows(hidden_TI, start, cuts), strict=True):
            assert int(mail.word(shard.go)) == 7
            if shard.num_rows:
                assert torch.equal(mail.rows(shard.input, shard.num_rows), expected.cpu())
            mail.word(shard.go).zero_()
    assert int(mail.post.counter) == 0


def test_the_word_is_written_after_all_rows(mail: Mail) -> None:
    """Of several programs the last one speaks: here the word lies where the last row ends, and who
    wrote it too early finds a row over it."""
    cuts: Cuts = [(0, 1), (1, 5)]
    hidden_TI = rows_on_device(5, 512, mail.dtype)
    slip = mail.slip(cuts, in_width=512, epoch=3)
    end = slip.shards[1].input + 4 * 512 * 4 - 8
    shards = (slip.shards[0], replace(slip.shards[1], go=end))
    send_rows(hidden_TI, mail.post, number=0, slip=replace(slip, shards=shards))
    settle()
    assert int(mail.word(end)) == 3
    assert int(mail.post.counter) == 0


@pytest.mark.parametrize("mail", DTYPES, ids=str, indirect=True)
@pytest.mark.parametrize("case", CASES)
def test_answers_are_added(mail: Mail, case: str) -> None:
    """For two sites, of which one's outs are columns of a wider buffer; all other rows and columns
    keep every bit."""
    start, cuts, width = CASES[case]
    total, widths = num_rows_of(start, cuts) + 2, (width, 16)
    outs = [rows_on_device(total, each + 8, mail.dtype, seed=each) for each in widths]
    outs_TO = [out[:, : out.shape[1] - 8] for out in outs]
    expected = [out.clone() for out in outs]
    answers_TO = [rows_on_device(cuts[-1][1], each, mail.dtype, seed=90 + each) for each in widths]
    for out, answer_TO in zip(expected, answers_TO, strict=True):
        parts = [answer_TO[first:end] for first, end in cuts]
        add_answers(out[:, : out.shape[1] - 8], start, cuts, parts)
    slip = mail.slip(cuts, start=start, out_widths=widths, epoch=(1 << 33) + 5)
    write_slip(mail.post.slips, 2, slip)
    mail.answer(slip, answers_TO)
    await_add(outs_TO, mail.post, number=2, slip=slip, max_polls=1)
    assert mail.outcome(2) == slip.epoch
    for out, wanted in zip(outs, expected, strict=True):
        assert torch.equal(out, wanted)


def wait_for(mail: Mail, slip: Slip, out_TO: torch.Tensor, *, looks: int, number: int = 0) -> bool:
    """Whether it was added; it is all or nothing."""
    before = out_TO.clone()
    write_slip(mail.post.slips, number, slip)
    await_add([out_TO], mail.post, number=number, slip=slip, max_polls=looks)
    outcome = mail.outcome(number)
    assert abs(outcome) == slip.epoch
    assert torch.equal(before, out_TO) == (outcome < 0)
    return outcome > 0


@pytest.mark.parametrize("word", [0, 4, 6], ids=["none", "of-an-older-errand", "of-a-newer-one"])
def test_what_is_not_this_errands_answer_is_none(mail: Mail, word: int) -> None:
    """A late answer to another errand would be added to rows that it does not belong to."""
    out_TO, slip = rows_on_device(4, 8, mail.dtype), mail.slip([(0, 2), (2, 4)], epoch=5)
    mail.answer(slip, [torch.ones(4, 8)])
    mail.word(slip.shards[1].done).fill_(word)
    assert not wait_for(mail, slip, out_TO, looks=3)


def test_a_helper_that_cannot_is_not_waited_for(mail: Mail) -> None:
    """It says so with minus the epoch; else the device would wait out its whole patience."""
    out_TO, slip = rows_on_device(4, 8, mail.dtype), mail.slip([(0, 2), (2, 4)], epoch=5)
    mail.answer(slip, [torch.ones(4, 8)])
    mail.word(slip.shards[0].done).fill_(-5)
    assert not wait_for(mail, slip, out_TO, looks=MANY)


def test_after_a_loss_the_step_waits_for_nothing(mail: Mail) -> None:
    """One patience a step: 128 errands behind a dead helper would hold the device for minutes. Of
    the next step, and of steps before this one, nothing is said."""
    out_TO = rows_on_device(2, 8, mail.dtype)
    assert not wait_for(mail, mail.slip([(0, 2)], epoch=5, since=4), out_TO, looks=2)
    for epoch in (6, 7):  # neither looks long nor takes an answer: its bytes may be another's
        slip = mail.slip([(0, 2)], epoch=epoch, since=4)
        if epoch == 7:
            mail.answer(slip, [torch.ones(2, 8)])
        assert not wait_for(mail, slip, out_TO, looks=MANY)
    slip = mail.slip([(0, 2)], epoch=9, since=8)
    mail.answer(slip, [torch.ones(2, 8)])
    assert wait_for(mail, slip, out_TO, looks=1)


@pytest.fixture
def _quick_turns() -> Generator[None]:
    """A kernel that waits is a loop in Python here: the thread beside it gets its turn soon."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before_s)


@pytest.mark.usefixtures("_quick_turns")
def test_an_answer_that_comes_while_the_device_waits(mail: Mail) -> None:
    """There and back with a thread for a helper: rows, word, answer, word."""
    hidden_TI, out_TO = rows_on_device(6, 8, mail.dtype), rows_on_device(6, 8, mail.dtype, seed=1)
    expected, slip = out_TO.clone(), mail.slip([(0, 2), (2, 4)], start=1, epoch=3)
    expected[1:5] += hidden_TI[1:5] * 2
    may_look = threading.Event()

    def help_out() -> None:
        may_look.wait()
        rows = [mail.rows(shard.input, shard.num_rows) for shard in slip.shards]
        while any(int(mail.word(shard.go)) != slip.epoch for shard in slip.shards):
            os.sched_yield()
        mail.answer(slip, [torch.cat(rows) * 2])

    helper = threading.Thread(target=help_out)
    helper.start()
    send_rows(hidden_TI, mail.post, number=0, slip=slip)
    may_look.set()
    await_add([out_TO], mail.post, number=0, slip=slip, max_polls=MANY)
    assert mail.outcome() == slip.epoch
    helper.join()
    torch.testing.assert_close(out_TO, expected)


def test_what_does_not_fit_is_refused(mail: Mail) -> None:
    """A launch over it would read or write beside the rows, in somebody else's memory."""
    slip = mail.slip([(0, 4)], start=1)
    rows = rows_on_device(5, 8, torch.float32)

    def add(out_TO: torch.Tensor, *others: torch.Tensor, max_polls: int = 1) -> None:
        await_add([out_TO, *others], mail.post, number=0, slip=slip, max_polls=max_polls)

    with pytest.raises(ValueError, match="must be contiguous"):
        send_rows(rows_on_device(5, 16, torch.float32)[:, :8], mail.post, number=0, slip=slip)
    with pytest.raises(ValueError, match="contiguous rows"):
        add(rows_on_device(8, 8, torch.float32).t())
    with pytest.raises(ValueError, match="4 rows; the slip's end at 5"):
        send_rows(rows[:4], mail.post, number=0, slip=slip)
    with pytest.raises(ValueError, match="int64"):
        add(rows.long())
    with pytest.raises(ValueError, match="2 outs, but a shard answers 1"):
        add(rows, rows)
    with pytest.raises(ValueError, match="max_polls is 0"):
        add(rows, max_polls=0)


def test_a_slip_that_is_none_is_refused(mail: Mail) -> None:
    """An epoch of 0 is what a fresh word holds; a place between two words is torn when written."""
    shard = mail.slip([(0, 4)]).shards[0]

    def write(*shards: Shard, epoch: int = 2, since: int = 1) -> None:
        write_slip(mail.post.slips, 0, Slip(epoch, since, 0, shards))

    with pytest.raises(ValueError, match="epoch is 0"):
        write(shard, epoch=0, since=0)
    with pytest.raises(ValueError, match="since 3"):
        write(shard, since=3)
    with pytest.raises(ValueError, match=f"33 shards; a slip has room for 1 to {MAX_SHARDS}"):
        write(*[shard] * 33)
    with pytest.raises(ValueError, match="4 come before"):
        write(shard, shard)
    with pytest.raises(ValueError, match="multiples of 16"):
        write(Shard(0, 4, shard.input + 8, shard.go, shard.done, shard.answers))
    with pytest.raises(ValueError, match="multiples of 8"):
        write(Shard(0, 4, shard.input, shard.go + 4, shard.done, shard.answers))
    with pytest.raises(ValueError, match="12 sites"):
        write(Shard(0, 4, shard.input, shard.go, shard.done, shard.answers * 12))
