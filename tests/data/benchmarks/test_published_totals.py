import pytest

from zsad_jax.data import benchmarks
from zsad_jax.data.benchmarks.counts import total
from zsad_jax.data.benchmarks.facts import DATASETS


@pytest.mark.parametrize("name", benchmarks.names())
def test_the_protocols_totals_are_the_builders(name):
    benchmark, about = benchmarks.find_benchmark(name), DATASETS[name]
    assert about.published == total(benchmark.COUNTS["test"])
    assert (about.num_categories or 1) == len(benchmark.categories())


@pytest.mark.parametrize("name", sorted(set(DATASETS) - set(benchmarks.names())))
def test_of_what_is_drawn_nothing_is_published(name):
    assert (DATASETS[name].published, DATASETS[name].num_categories) == (None, None)
