"""Tests of streaming pixel metrics: exact on rounded scores, and close to exact on unrounded ones."""

import contextlib

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zsad_jax.metrics import exact, streaming
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
    keys = streaming._keys(np.asarray(scores, np.float32))
    return streaming._scores((keys >> state.level) << state.level)


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
