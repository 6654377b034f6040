import dataclasses

import numpy as np
import pytest

from zsad_jax.report import charts, names
from zsad_jax.report.rows import METRIC_COLUMNS
from zsad_jax.utils.images import INK


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_histogram_counts_each_image_once(scores):
    figure = charts.score_histogram(scores)
    patches = [
        patch for axes in figure.axes for patch in axes.patches if patch.get_label() in names.LABELS
    ]
    assert sum(np.nansum(patch.get_data().values) for patch in patches) == len(scores.scores)
    assert len(figure.axes) == 2


def test_titles_have_a_font_with_their_letters(scores, set_fallback_fonts):
    set_fallback_fonts("DejaVu Serif")
    for name, family in (("gear", "DejaVu Sans"), ("正常", "DejaVu Serif")):
        figure = charts.roc_figure(dataclasses.replace(scores, categories=[name] * 8))
        assert figure.axes[0].title.get_fontfamily() == ["sans-serif", family]


def test_draws_roc_only_with_both_labels(scores):
    figure = charts.roc_figure(scores)
    assert {"gear: 75.0", "ring: 100.0"} <= set(texts(figure))
    labels = np.where(np.array(scores.categories) == "gear", scores.labels, 1)
    assert len(charts.roc_figure(dataclasses.replace(scores, labels=labels)).axes) == 1
    assert charts.roc_figure(dataclasses.replace(scores, labels=np.ones(8, int))) is None


def test_training_curves_have_one_line_per_training():
    history = [{"step": i, "epoch": 1, "loss": 1.0 / i, "dice": None} for i in (1, 2, 3, 1, 2)]
    figure = charts.training_figure(history)
    (axes,) = figure.axes
    assert [line.get_xdata().tolist() for line in axes.lines] == [[1, 2, 3], [1, 2]]
    assert charts.training_figure([]) is None


def ablation(make_row, values, **fields):
    """Returns the points of a sweep of `sigma` and "name", and their rows."""
    points = {f"{s}, {n}": {"method.sigma": s, "method.name": n} for s in values for n in "ab"}
    rows = [
        make_row("visa", variant=label, image_ap=point["method.sigma"] / 1000, **fields)
        for label, point in points.items()
    ]
    return points, rows


def test_ablation_has_a_line_for_each_combination_of_other_keys(make_row):
    """Checks values out of order, spreads over seeds, and a metric that is undefined."""
    points, rows = ablation(make_row, (8, 2, 4), pixel_ap=None)
    rows[2] |= {"seeds": 3, "image_ap_std": 0.5}
    (chart,) = charts.ablation_charts(points, rows, "Demo.")
    assert (chart.name, chart.caption) == ("ablation_sigma.png", "Metrics over sigma on VisA")
    figure = chart.draw()
    assert len(figure.axes) == len(names.METRICS) - 1
    axes = next(axes for axes in figure.axes if axes.get_title("left") == "Image AP")
    first, second = (lines[0] for lines in axes.containers)
    assert first.get_xdata().tolist() == second.get_xdata().tolist() == [2, 4, 8]
    assert first.get_ydata() == pytest.approx([0.2, 0.4, 0.8])
    bar = axes.containers[0].lines[2][0].get_segments()[0]
    assert bar[:, 1] == pytest.approx([0.2 - 50, 0.2 + 50])
    assert {"Demo.", "sigma", "name=a", "name=b", "percent, ± standard deviation"} <= set(
        texts(figure)
    )
    assert axes.get_xscale() == "linear"


@pytest.mark.parametrize(
    ("values", "scale", "labels"),
    [
        ((1, 2, 20), "linear", ["1", "2", "20"]),
        ((1e-4, 1e-3, 1e-2), "log", ["0.0001", "0.001", "0.01"]),
        ((0, 1, 2, 3, 4, 100), "linear", ["0", "2", "4"]),
    ],
)
def test_ablation_has_a_logarithmic_scale_for_wide_ranges(make_row, values, scale, labels):
    points, rows = ablation(make_row, values)
    axes = charts.ablation_figure(points, rows, "method.sigma").axes[0]
    assert axes.get_xscale() == scale
    assert [label.get_text() for label in axes.get_xticklabels()] == labels


@pytest.mark.parametrize(
    "values", [(True, False), ("a", "b"), (1,), (1, "b"), ({"name": "a"}, {"name": "b"})]
)
def test_charts_only_keys_with_several_numbers(make_row, values):
    points = {str(value): {"method.x": value} for value in values}
    assert not charts.ablation_charts(points, [make_row("visa")])


def test_many_lines_of_an_ablation_look_different(make_row):
    points = {f"{s} {d}": {"sigma": s, "depth": d} for s in (1, 2) for d in range(20)}
    rows = [make_row("visa", variant=label) for label in points]
    axes = charts.ablation_figure(points, rows, "sigma").axes[0]
    lines = [container.lines[0] for container in axes.containers]
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}
    assert len(looks) == len(lines) == 20


def test_no_chart_without_a_metric(make_row):
    points, rows = ablation(make_row, (1, 2))
    rows = [row | dict.fromkeys(METRIC_COLUMNS) for row in rows]
    assert charts.ablation_figure(points, rows, "method.sigma") is None


def test_svg_inherits_page_color_and_is_reproducible(scores):
    histogram, _ = charts.score_charts(scores)
    svg = charts.to_svg(histogram)
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert INK not in svg
    assert svg == charts.to_svg(histogram)


def test_failed_chart_is_empty(caplog):
    assert charts.to_svg(charts.Chart("a.png", "A chart", lambda: 1 / 0)) == ""
    assert "Cannot draw A chart: division by zero." in caplog.text
    assert charts.to_svg(charts.training_chart([])) == ""


def test_charts_do_not_use_global_figures(scores):
    from matplotlib._pylab_helpers import Gcf

    before = Gcf.get_num_fig_managers()
    charts.score_histogram(scores)
    assert Gcf.get_num_fig_managers() == before
