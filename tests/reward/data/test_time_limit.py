"""Computing in `time_limit` is stopped, and nothing of the limit is left behind."""

import signal
import threading

import pytest

from reward.data.time_limit import OutOfTime, time_limit


def compute(steps: int) -> int:
    total = 0
    for i in range(steps):
        total += i % 7
    return total


def test_what_computes_too_long_is_stopped():
    before = signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(OutOfTime), time_limit(0.05):
        compute(10**10)
    assert signal.getsignal(signal.SIGVTALRM) is before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_what_is_quick_ends_as_without_a_limit():
    before = signal.getsignal(signal.SIGVTALRM)
    with time_limit(60):
        assert compute(10) == 24
    assert signal.getsignal(signal.SIGVTALRM) is before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_there_is_no_limit_outside_of_the_main_thread():
    done = []

    def work():
        with time_limit(0.001):
            done.append(compute(10**5))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [299995]
