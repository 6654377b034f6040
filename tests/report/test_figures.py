import dataclasses

import numpy as np
import pytest

from zsad_jax.report import figures, gallery, heatmap_figure


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_heatmap_has_all_panels_words_and_one_scale(cases):
    case = cases[1]
    figure = heatmap_figure(
        case.image,
        case.anomaly_map,
        case.mask,
        scale=(0, 2),
        file_name="a/b.png",
        score=0.25,
        label=1,
    )
    words = texts(figure)
    assert "a/b.png · score 0.250 · anomalous" in words
    assert {"image", "ground truth", "anomaly map", "overlay"} <= set(words)
    bar = figure.axes[-1]
    assert bar.get_ylim() == (0, 2)


def test_without_truth_there_is_no_panel_for_it(cases):
    case = cases[0]
    figure = heatmap_figure(case.image, case.anomaly_map, scale=(0, 1), file_name="a", score=0.1)
    assert len(figure.axes) == 4  # image, map, overlay, bar
    assert "ground truth" not in texts(figure)


@pytest.mark.parametrize(("label", "words"), [(0, "no defect"), (1, "no mask")])
def test_absent_masks_are_said_to_be_absent(cases, label, words):
    case = dataclasses.replace(cases[0], mask=None, label=label)
    assert words in texts(gallery([case], scale=(0, 1)))


def test_gallery_has_a_row_per_case(cases, tmp_path):
    figure = gallery(cases[:3], scale=(0, 1), title="three")
    assert len(figure.axes) == 3 * 4 + 1
    figures.save_png(figure, tmp_path / "a.png")
    figures.save_png(gallery(cases[:3], scale=(0, 1), title="three"), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_histogram_counts_every_image_once(scores):
    figure = figures.score_histogram(scores)
    patches = [
        patch
        for axes in figure.axes
        for patch in axes.patches
        if patch.get_label() in figures.LABELS.values()
    ]
    assert sum(np.nansum(patch.get_data().values) for patch in patches) == len(scores.scores)
    assert len(figure.axes) == 2


def test_roc_is_drawn_only_where_both_labels_are(scores):
    figure = figures.roc_figure(scores)
    assert {"gear: 75.0", "ring: 100.0"} <= set(texts(figure))
    labels = np.where(np.array(scores.categories) == "gear", scores.labels, 1)
    assert len(figures.roc_figure(dataclasses.replace(scores, labels=labels)).axes) == 1
    assert figures.roc_figure(dataclasses.replace(scores, labels=np.ones(8, int))) is None


def test_training_curves_have_a_line_per_training():
    history = [{"step": i, "epoch": 1, "loss": 1.0 / i, "dice": None} for i in (1, 2, 3, 1, 2)]
    figure = figures.training_figure(history)
    (axes,) = figure.axes
    assert [line.get_xdata().tolist() for line in axes.lines] == [[1, 2, 3], [1, 2]]
    assert figures.training_figure([]) is None


def test_svg_takes_its_ink_from_the_page_and_is_reproducible(scores):
    svg = figures.to_svg(figures.score_histogram(scores))
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert figures.INK not in svg
    assert svg == figures.to_svg(figures.score_histogram(scores))


def test_figures_belong_to_no_global_list(scores):
    from matplotlib._pylab_helpers import Gcf

    before = Gcf.get_num_fig_managers()
    figures.score_histogram(scores)
    assert Gcf.get_num_fig_managers() == before
