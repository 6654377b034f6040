import itertools
import time

import pytest

from zsad_jax.utils.progress import DeviceClock, one_late


def test_one_late_starts_next_item_before_yielding():
    started = []
    items = one_late(started.append(i) or i for i in range(3))
    seen = [(item, len(started)) for item in items]
    assert seen == [(0, 2), (1, 3), (2, 3)]


def test_one_late_yields_all_items():
    assert [list(one_late(range(n))) for n in range(3)] == [[], [0], [0, 1]]
    assert list(itertools.islice(one_late(itertools.count()), 2)) == [0, 1]


class Slow:
    """An array that is ready some time after its computation was started."""

    def __init__(self, seconds):
        self.ready = time.monotonic() + seconds

    def block_until_ready(self):
        time.sleep(max(self.ready - time.monotonic(), 0))


def test_clock_counts_time_in_which_nothing_is_computed():
    def start():
        yield Slow(0.1)
        time.sleep(0.4)  # 0.3 s after the end of the first
        yield Slow(0.3)
        yield Slow(0.6)  # at the same time

    clock = DeviceClock()
    assert list(clock.watch([])) == []
    for _ in range(2):  # time between loops does not count
        assert len(list(clock.watch(start()))) == 3
    assert clock.waited == pytest.approx(2 * 0.3, abs=0.2)
    assert clock.total == pytest.approx(2 * 1.0, abs=0.3)
