"""Tests of streaming pixel metrics: exact on rounded scores, close to exact on unrounded and on binned ones."""

import contextlib

import jax
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zsad_jax.metrics import PIXEL_METRICS, category, exact, streaming
from zsad_jax.metrics.binned import BinnedMaps, bin_maps, to_keys, to_scores
from zsad_jax.utils.errors import UserError

SHAPE = (4, 5, 6)
MAPS = hnp.arrays(
    np.float32,
    SHAPE,
    elements=st.one_of(
        st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0]),
        st.integers(-3000, 3000).map(lambda steps: 0.5 + steps * 2.0**-24),
        st.floats(0, 1, width=32),
        st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
)
MASKS = hnp.arrays(bool, SHAPE)


@contextlib.contextmanager
def few_bins():
    """Reduces the number of bins, so that small test maps are rounded too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "NUM_BINS", 1024)
        yield


def one_pass(maps, masks):
    return streaming.update(streaming.init(), maps, masks=masks)


def lowest_in_bin(state, scores):
    """Rounds scores as the state does: to float32 numbers without the lowest bits."""
    keys = to_keys(np.asarray(scores, np.float32))
    return to_scores((keys >> state.level) << state.level)


def exact_values(maps, masks):
    return exact.compute(exact.update(exact.State(), maps, masks=masks)).values


@settings(max_examples=60, deadline=None)
@given(maps=MAPS, masks=MASKS)
def test_equals_exact_metrics_of_rounded_scores(maps, masks):
    assume(masks.any() and not masks.all())
    with few_bins():
        state = one_pass(maps, masks)
        found, rounded = streaming.compute(state).values, lowest_in_bin(state, maps)
    expected = exact_values(rounded, masks)
    for name in ("pixel_auroc", "pixel_ap", "pixel_aupro", "pixel_f1max"):
        assert found[name] == pytest.approx(expected[name], abs=1e-9), name


@settings(max_examples=40, deadline=None)
@given(maps=MAPS)
def test_bins_are_ordered_and_round_down(maps):
    with few_bins():
        state = one_pass(maps, np.zeros(SHAPE, bool))
        assert state.level >= 6
        ordered = np.sort(maps.ravel())
        rounded = lowest_in_bin(state, ordered)
        np.testing.assert_array_equal(lowest_in_bin(state, rounded), rounded)
    assert (np.diff(rounded) >= 0).all()
    assert (rounded <= ordered).all()


@settings(max_examples=40, deadline=None)
@given(maps=MAPS, masks=MASKS, cut=st.integers(0, SHAPE[0]))
def test_merge_equals_one_pass(maps, masks, cut):
    with few_bins():
        whole = one_pass(maps, masks)
        first, second = one_pass(maps[:cut], masks[:cut]), one_pass(maps[cut:], masks[cut:])
        for merged in (streaming.merge(first, second), streaming.merge(second, first)):
            assert (merged.level, merged.num_regions, merged.span) == (
                whole.level,
                whole.num_regions,
                whole.span,
            )
            for found, expected in zip(
                streaming.curve(merged), streaming.curve(whole), strict=True
            ):
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def fixed_set(kind):
    """Returns smooth noise with defects, mapped to one distribution of scores."""
    rng = np.random.default_rng(7)
    noise = scipy.ndimage.gaussian_filter(rng.normal(size=(10, 200, 200)), (0, 4, 4))
    masks = scipy.ndimage.gaussian_filter(rng.normal(size=noise.shape), (0, 6, 6)) > 0.08
    masks[::2] = False
    z = (noise / noise.std() + 1.5 * masks).astype(np.float32)
    maps = {
        "ordinary": 1 / (1 + np.exp(-z)),
        "saturated low": 1 / (1 + np.exp(14 - 2 * z)),
        "saturated high": 1 / (1 + np.exp(-14 - 2 * z)),
        "narrow": 0.5 + 1e-4 * np.tanh(z / 2),
        "unbounded": z,
        "uniform": scipy.ndimage.gaussian_filter(z, (0, 1, 1)).argsort(axis=None).argsort()
        / z.size,
    }[kind]
    return maps.astype(np.float32).reshape(z.shape), masks


@pytest.mark.parametrize(
    "kind", ["ordinary", "saturated low", "saturated high", "narrow", "unbounded", "uniform"]
)
def test_close_to_exact_on_fixed_sets(kind):
    maps, masks = fixed_set(kind)
    found, expected = streaming.compute(one_pass(maps, masks)).values, exact_values(maps, masks)
    assert found == pytest.approx(expected, abs=1e-4, nan_ok=True)


def test_does_not_round_scores_in_narrow_range():
    maps, masks = fixed_set("narrow")
    state = one_pass(maps, masks)
    assert state.level == 0
    np.testing.assert_array_equal(lowest_in_bin(state, maps), maps)


def test_crowded_bin_has_a_note(caplog):
    maps = np.linspace(0, 1, 10_000, dtype=np.float32).reshape(1, 100, 100)
    masks = maps > 0.5
    assert streaming.compute(one_pass(maps, masks)).notes == ()
    maps[0, :2] = 0.25  # 2% of the pixels, exactly equal
    assert "2% of the pixels" in streaming.compute(one_pass(maps, masks)).notes[0].reason
    with few_bins():
        crowded = streaming.compute(one_pass(maps, masks))
    assert "into one bin" in crowded.notes[0].reason
    assert "into one bin" in caplog.text


def test_memory_stays_constant():
    rng = np.random.default_rng(0)
    state = streaming.init()
    size = sum(array.nbytes for array in state[1:4])
    for scale in (1e-30, 1e-6, 1.0, 1e6, 1e30):
        maps = rng.normal(scale=scale, size=(2, 300, 300)).astype(np.float32)
        state = streaming.update(state, maps, masks=maps > scale)
        assert sum(array.nbytes for array in state[1:4]) == size < 30e6
    assert state.negatives.sum() + state.positives.sum() == 5 * 2 * 300 * 300


def test_rejects_non_finite_scores():
    with pytest.raises(UserError, match="finite"):
        one_pass(np.array([[[0.1, np.nan]]]), np.zeros((1, 1, 2), bool))


def binned(maps):
    return jax.tree.map(np.asarray, jax.jit(bin_maps)(maps))


def decoded(maps):
    return np.stack([BinnedMaps(*one).decode() for one in zip(*binned(maps), strict=True)])


def hard_set(kind):
    name, _, change = kind.partition(" + ")
    maps, masks = fixed_set(name)
    if change == "constant maps":
        maps[::3] = 0.5
    elif change == "low pixel":
        maps[:, 3, 3] = 0
    elif change == "high pixel":
        maps[:, 8, 8] = 1e30
    return maps, masks


@pytest.mark.parametrize(
    "kind",
    [
        *("ordinary", "saturated low", "saturated high", "narrow", "unbounded", "uniform"),
        *("ordinary + constant maps", "ordinary + low pixel", "narrow + low pixel"),
        *("narrow + high pixel", "saturated high + low pixel", "unbounded + low pixel"),
    ],
)
def test_binned_maps_are_close_to_exact_on_hard_sets(kind):
    maps, masks = hard_set(kind)
    state = streaming.update(streaming.init(), binned(maps), masks=masks)
    found, expected = streaming.compute(state).values, exact_values(maps, masks)
    errors = {name: abs(found[name] - expected[name]) for name in PIXEL_METRICS}
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize("maps", [np.zeros(SHAPE), np.full(SHAPE, -2.5)])
def test_binning_keeps_constant_maps(maps):
    np.testing.assert_array_equal(decoded(maps.astype(np.float32)), maps)


@settings(max_examples=60, deadline=None)
@given(maps=MAPS)
def test_binning_keeps_order_and_extremes(maps):
    rounded = decoded(maps)
    for before, after in zip(
        maps.reshape(len(maps), -1), rounded.reshape(len(maps), -1), strict=True
    ):
        assert (np.diff(after[np.argsort(before)]) >= 0).all()
        assert (after.min(), after.max()) == (before.min(), before.max())


def test_binning_keeps_scores_in_narrow_range():
    maps, _ = fixed_set("narrow")
    np.testing.assert_array_equal(decoded(maps), maps)


def test_batches_and_threads_do_not_change_the_counts_of_binned_maps(monkeypatch):
    maps, masks = hard_set("ordinary")
    states = []
    for size, cores in ((10, 1), (10, 3), (4, 2)):
        monkeypatch.setattr(streaming, "num_cores", lambda cores=cores: cores)
        state = streaming.init()
        for start in range(0, 10, size):
            rows = slice(start, start + size)
            state = streaming.update(state, binned(maps[rows]), masks=masks[rows])
        states.append(state)
    for other in states[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, states[0])


def test_category_uses_binned_maps_with_mask():
    maps, masks = fixed_set("narrow")
    labels, scores = masks.any((1, 2)), maps.max((1, 2))
    has_mask = np.arange(10) != 3
    found, expected = (
        category.compute(category.update(category.init(), scores, labels, one, masks, has_mask))
        for one in (binned(maps), maps)
    )
    assert found.values == pytest.approx(expected.values, abs=1e-12, nan_ok=True)
    with pytest.raises(UserError, match="9 anomaly maps for 10 image labels"):
        category.update(category.init(), scores, labels, binned(maps[:9]), masks)


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_rejects_non_finite_scores_of_binned_maps(value):
    maps = np.ones((2, 70, 70), np.float32)
    maps[1, 35, 36] = value
    with pytest.raises(UserError, match="entry 1 has NaN or infinity"):
        streaming.update(streaming.init(), binned(maps), masks=maps > 2)


def test_rejects_masks_of_other_size_than_binned_maps():
    maps = binned(np.ones((1, 6, 6), np.float32))
    with pytest.raises(UserError, match=r"\(1, 6, 6\) and \(1, 5, 6\)"):
        streaming.update(streaming.init(), maps, masks=np.zeros((1, 5, 6), bool))
