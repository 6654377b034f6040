import itertools

from zsad_jax.utils.progress import one_late


def test_one_late_starts_next_item_before_yielding():
    started = []
    items = one_late(started.append(i) or i for i in range(3))
    seen = [(item, len(started)) for item in items]
    assert seen == [(0, 2), (1, 3), (2, 3)]


def test_one_late_yields_all_items():
    assert [list(one_late(range(n))) for n in range(3)] == [[], [0], [0, 1]]
    assert list(itertools.islice(one_late(itertools.count()), 2)) == [0, 1]
