import dataclasses

import numpy as np

from zsad_jax.report import charts, names
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
