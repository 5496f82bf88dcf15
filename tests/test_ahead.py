"""In order: one ahead and really at the same time, or each in its turn."""

import threading

import pytest

from tunewright.train.ahead import ahead, in_turn


def test_the_next_is_prepared_while_one_is_out():
    begun = [threading.Event() for _ in range(4)]

    def prepare(i: int) -> int:
        begun[i].set()
        return i * i

    seen = []
    for i, made in ahead(range(4), prepare):
        assert i == 3 or begun[i + 1].wait(10)  # without a thread this would wait for ever
        assert i + 2 > 3 or not begun[i + 2].is_set()  # one ahead, not more: what is ready takes memory
        seen.append((i, made))
    assert seen == [(0, 0), (1, 1), (2, 4), (3, 9)]
    assert list(ahead([], prepare)) == []


def test_what_goes_wrong_is_raised_at_its_task():
    out = ahead([1, 0, 2], lambda i: 1 / i)
    assert next(out) == (1, 1.0)
    with pytest.raises(ZeroDivisionError):
        next(out)


def test_closing_leaves_no_thread():
    out = ahead(range(5), lambda i: i)
    next(out)
    out.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_in_turn_nothing_is_made_before_it_is_asked_for():
    made = []
    out = in_turn(range(3), lambda i: made.append(i) or i * i)
    assert made == []
    assert (next(out), made) == ((0, 0), [0])
    assert list(out) == [(1, 1), (2, 4)]
