"""Charts: score histograms, ROC curves, training curves. No pyplot, so no global state."""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from zsad_jax import metrics
from zsad_jax.evaluate import DatasetScores
from zsad_jax.report import names
from zsad_jax.utils.files import PathLike, replaced
from zsad_jax.utils.images import ANOMALOUS, INK, NORMAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_COLUMNS = 5
LINES = ((NORMAL, "-"), (ANOMALOUS, "--"), (NORMAL, ":"), (ANOMALOUS, "-."))
STYLE: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may hold dollar signs
    "svg.hashsalt": "zsad_jax",
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The look of every figure, in force while one is made or written."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def new_figure(inches: tuple[float, float], *, layout: Any = "constrained") -> "Figure":
    """An empty figure that belongs to no window and no global list."""
    from matplotlib.figure import Figure

    return Figure(figsize=inches, layout=layout)


def score_histogram(scores: DatasetScores) -> "Figure":
    """Image scores of normal and anomalous images, a panel per category, on common bins."""
    values = np.asarray(scores.scores, np.float64)
    bins = np.histogram_bin_edges(values, bins=24) if len(values) else np.linspace(0, 1, 25)
    with style():
        figure, panels = _category_panels(scores, aspect=0.83, sharex=True)
        for axes, name, members in panels:
            for label, color, hatch in ((0, NORMAL, ""), (1, ANOMALOUS, "////")):
                chosen = values[members & (np.asarray(scores.labels) == label)]
                counts = np.histogram(chosen, bins)[0].astype(float)
                counts[counts == 0] = np.nan  # no line along the axis
                axes.stairs(counts, bins, fill=True, color=color, alpha=0.35)
                axes.stairs(
                    counts, bins, color=color, linewidth=1.3, hatch=hatch, label=names.LABELS[label]
                )
            axes.set_title(name)
            axes.locator_params(axis="y", integer=True, nbins=3)
        figure.supxlabel("image score", fontsize=9)
        figure.supylabel("images", fontsize=9)
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2)
    return figure


def roc_figure(scores: DatasetScores) -> "Figure | None":
    """ROC curves of the image scores, a panel per category with both labels; None without any."""
    labels, values = np.asarray(scores.labels), np.asarray(scores.scores, np.float64)
    with style():
        figure, panels = _category_panels(scores, aspect=1.0, both_labels=True)
        for axes, name, members in panels:
            false_rate, true_rate = metrics.roc_curve(values[members], labels[members])
            axes.plot([0, 1], [0, 1], color=INK, linewidth=0.7, linestyle=":")
            axes.plot(false_rate, true_rate, color=NORMAL, linewidth=1.6)
            axes.fill_between(false_rate, true_rate, color=NORMAL, alpha=0.12, linewidth=0)
            auroc = metrics.compute(values[members], labels[members])["image_auroc"]
            axes.set_title(f"{name}: {100 * auroc:.1f}")
            axes.set(
                xlim=(-0.02, 1), ylim=(0, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), aspect=1
            )
        if not panels:
            return None
        figure.supxlabel("false positive rate", fontsize=9)
        figure.supylabel("true positive rate", fontsize=9)
    return figure


def training_figure(history: Sequence[Mapping[str, Any]]) -> "Figure | None":
    """The loss and its terms over the training steps, a panel each; None without a history.

    Where the steps start again, another training begins, with a line of its own.
    """
    trainings = _split_trainings(history)
    curves = [
        name
        for name in dict.fromkeys(name for line in history for name in line)
        if name not in ("step", "epoch") and any(line.get(name) is not None for line in history)
    ]
    if not curves:
        return None
    with style():
        columns = min(len(curves), 4)
        rows = -(-len(curves) // columns)
        figure = new_figure((2.9 * columns, 2.2 * rows))
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, name in zip(grid, curves, strict=False):
            for number, lines in enumerate(trainings):
                points = [line for line in lines if line.get(name) is not None]
                steps, values = ([line[key] for line in points] for key in ("step", name))
                color, dashes = LINES[number % len(LINES)]
                axes.plot(steps, values, dashes, color=color, label=f"training {number + 1}")
            axes.set_title(name.replace("_", " "))
            axes.margins(x=0.01)
        for axes in grid[len(curves) :]:
            axes.remove()
        if len(trainings) > 1:
            grid[0].legend()
        figure.supxlabel("step", fontsize=9)
    return figure


def _split_trainings(history: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    trainings: list[list[Mapping[str, Any]]] = []
    for line in history:
        if not trainings or line["step"] <= trainings[-1][-1]["step"]:
            trainings.append([])
        trainings[-1].append(line)
    return trainings


def save_png(picture: "Figure | Image.Image", path: PathLike) -> None:
    """Writes a picture as PNG, atomically; the same picture gives the same bytes."""
    with replaced(path) as temporary:
        if isinstance(picture, Image.Image):
            picture.save(temporary, compress_level=4)
        else:
            options = {"compress_level": 4}
            picture.savefig(temporary, dpi=100, metadata={"Software": None}, pil_kwargs=options)


def to_svg(figure: "Figure") -> str:
    """A figure as an SVG element that takes its ink from the page (`currentColor`), without background."""
    text = io.StringIO()
    with style():
        figure.savefig(
            text, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor").strip()


def _category_panels(
    scores: DatasetScores, *, aspect: float, both_labels: bool = False, sharex: bool = False
) -> "tuple[Figure, list[tuple[Axes, str, np.ndarray]]]":
    """A figure with one panel per category: axes, name, and which images belong to it."""
    categories = np.asarray(scores.categories)
    labels = np.asarray(scores.labels)
    members = {name: categories == name for name in dict.fromkeys(scores.categories)}
    if both_labels:
        members = {name: of for name, of in members.items() if len(set(labels[of].tolist())) == 2}
    rows = max(-(-len(members) // PANEL_COLUMNS), 1)
    columns = max(-(-len(members) // rows), 1)
    width = {1: 3.2, 2: 2.6, 3: 1.75}.get(columns, 2.1)  # up to three, two figures fit side by side
    figure = new_figure((width * columns, aspect * width * rows + 0.5))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=sharex).ravel()
    for axes in grid[len(members) :]:
        axes.remove()
    named = zip(grid, members.items(), strict=False)
    return figure, [(axes, names.category_name(name), of) for axes, (name, of) in named]
