"""Score histograms, ROC curves, ablations and training curves, without pyplot and its global state."""

import contextlib
import functools
import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from zsad_jax import metrics
from zsad_jax.evaluate import DatasetScores
from zsad_jax.report import names, wording
from zsad_jax.report.rows import METRIC_COLUMNS, STD_OF, Row
from zsad_jax.utils.files import PathLike, replaced, safe_name
from zsad_jax.utils.images import ANOMALOUS, INK, NORMAL, drawing, load_font

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_COLUMNS = 5
WIDTH, HALF = 11.5, 5.5  # in inches: all of the page, and two figures side by side
TALLEST = 3.4  # panel, in inches
MARKERS = "osD^v"  # of ablations: with LINES, 20 looks
LINES = ((NORMAL, "-"), (ANOMALOUS, "--"), (NORMAL, ":"), (ANOMALOUS, "-."))
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    # Text stays text: it can be searched and copied, and takes less room than outlines.
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may hold dollar signs
    # Without a salt the ids in the file are random, and so its bytes.
    "svg.hashsalt": "zsad_jax",
}


class Chart(NamedTuple):
    """A chart to be drawn: the name of its file, its caption, and what draws it (None: there is no data)."""

    name: str
    caption: str
    draw: "Callable[[], Figure | None]"


def training_chart(history: Sequence[Mapping[str, Any]]) -> Chart:
    """Returns the chart of the training."""
    caption = "Training loss and its terms"
    return Chart("training.png", caption, lambda: training_figure(history))


def score_charts(scores: DatasetScores) -> list[Chart]:
    """Returns the charts of a dataset's image scores."""
    title = f"the image scores of {names.dataset_name(scores.dataset)}"
    histogram = f"Histograms of {title} by category"
    roc = f"ROC curves of {title} by category, with AUROC in percent"
    return [
        Chart("score_histogram.png", histogram, lambda: score_histogram(scores)),
        Chart("roc.png", roc, lambda: roc_figure(scores)),
    ]


def ablation_charts(points: wording.Points, rows: Sequence[Row], remark: str = "") -> list[Chart]:
    """Returns the charts of a sweep, one over each key with numbers, of its results on a dataset."""
    charts, dataset = [], names.dataset_name(rows[0]["dataset"])
    for key, short in wording.short_keys(points).items():
        values = [point[key] for point in points.values()]
        if {*map(type, values)} <= {int, float} and len(set(values)) > 1:
            caption = f"Metrics over {short} on {dataset}"
            draw = functools.partial(ablation_figure, points, rows, key, remark)
            charts.append(Chart(f"ablation_{safe_name(short)}.png", caption, draw))
    return charts


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Sets the look of every chart, while it is made or written."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


@style()
def score_histogram(scores: DatasetScores) -> "Figure":
    """Draws the scores of normal and anomalous images, a panel per category, on common bins."""
    values = np.asarray(scores.scores, np.float64)
    # Bins of all categories are the same, so that panels can be compared.
    bins = np.histogram_bin_edges(values, bins=24) if len(values) else np.linspace(0, 1, 25)
    figure, panels = _category_panels(scores, aspect=0.83, sharex=True)
    for axes, name, members in panels:
        for label, color, hatch in ((0, NORMAL, ""), (1, ANOMALOUS, "////")):
            chosen = values[members & (np.asarray(scores.labels) == label)]
            counts = np.histogram(chosen, bins)[0].astype(float)
            counts[counts == 0] = np.nan  # no line along the axis
            axes.stairs(counts, bins, fill=True, color=color, alpha=0.35)
            # Hatches distinguish the labels where colors cannot: in gray prints, to color-blind readers.
            line: Any = {"linewidth": 1.3, "hatch": hatch, "label": names.LABELS[label]}
            axes.stairs(counts, bins, color=color, **line)
        axes.set_title(name)
        axes.locator_params(axis="y", integer=True, nbins=3)
    figure.supxlabel("image score", fontsize=9)
    figure.supylabel("images", fontsize=9)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2)
    return figure


@style()
def roc_figure(scores: DatasetScores) -> "Figure | None":
    """Draws ROC curves of the image scores, a panel per category with both labels; None without any."""
    labels, values = np.asarray(scores.labels), np.asarray(scores.scores, np.float64)
    figure, panels = _category_panels(scores, aspect=1.0, both_labels=True)
    ticks = (0, 0.5, 1)
    for axes, name, members in panels:
        false_rate, true_rate = metrics.roc_curve(values[members], labels[members])
        # The curve of random scores.
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.7, linestyle=":")
        axes.plot(false_rate, true_rate, color=NORMAL, linewidth=1.6)
        axes.fill_between(false_rate, true_rate, color=NORMAL, alpha=0.12, linewidth=0)
        auroc = metrics.compute(values[members], labels[members])["image_auroc"]
        axes.set_title(f"{name}: {100 * auroc:.1f}")
        # Slightly beyond 0 and 1, so that the axes do not hide a perfect curve.
        axes.set(xlim=(-0.02, 1), ylim=(0, 1.02), xticks=ticks, yticks=ticks, aspect=1)
    figure.supxlabel("false positive rate", fontsize=9)
    figure.supylabel("true positive rate", fontsize=9)
    return figure if panels else None


@style()
def ablation_figure(
    points: wording.Points, rows: Sequence[Row], key: str, remark: str = ""
) -> "Figure | None":
    """Draws metrics over a key of a sweep, a panel each; None if no metric is defined.

    Every combination of the other keys has a line, with standard deviations over seeds as error bars.
    """
    short, at = wording.short_keys(points), {name: point[key] for name, point in points.items()}
    lines: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: at[row["variant"]]):
        others = {short[one]: of for one, of in points[row["variant"]].items() if one != key}
        label = ", ".join(f"{name}={wording.describe_value(of)}" for name, of in others.items())
        lines.setdefault(label, []).append(row)
    shown = [metric for metric in METRIC_COLUMNS if any(row[metric] is not None for row in rows)]
    if not shown:
        return None
    figure, grid = _panels(len(shown), min(len(shown), 4), (WIDTH / 4, 2.3))
    values = sorted({at[row["variant"]] for row in rows})
    log = values[0] > 0 and values[-1] > 20 * values[0]
    ticks = values[:: -(-len(values) // 5)]  # a panel has room for five
    for axes, metric in zip(grid, shown, strict=True):
        looks = zip(itertools.cycle(LINES), itertools.cycle(MARKERS), lines.items(), strict=False)
        for (color, dashes), marker, (label, line) in looks:
            found = ([row.get(name) for row in line] for name in (metric, STD_OF[metric]))
            means, spreads = 100 * np.array([*found], float)
            look: Any = {"color": color, "fmt": marker + dashes, "markersize": 4, "capsize": 3}
            axes.errorbar([at[row["variant"]] for row in line], means, spreads, label=label, **look)
        axes.set(xlabel=short[key], title=names.METRICS[metric], xscale="log" if log else "linear")
        axes.minorticks_off()
        labels = [f"{value:g}" for value in ticks]
        axes.set_xticks(ticks, labels, rotation=30 if max(map(len, labels)) > 3 else 0)
        axes.set_ylim(top=min(axes.get_ylim()[1], 100.5))
    if len(lines) > 1:
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    several = any("seeds" in row for row in rows)
    figure.supylabel("percent" + ", ± standard deviation" * several, fontsize=9)
    figure.suptitle(remark, fontsize=9)
    return figure


@style()
def training_figure(history: Sequence[Mapping[str, Any]]) -> "Figure | None":
    """Draws the loss and its terms over the training steps, a panel each; None without a history.

    Where the steps start again, another training begins, with a line of its own.
    """
    trainings: list[list[Mapping[str, Any]]] = []
    for point in history:
        if not trainings or point["step"] <= trainings[-1][-1]["step"]:
            trainings.append([])
        trainings[-1].append(point)
    # A term that was never finite has no curve.
    defined = [name for point in history for name in point if point[name] is not None]
    order = dict.fromkeys(name for point in history for name in point)
    curves = [name for name in order if name in set(defined) - {"step", "epoch"}]
    if not curves:
        return None
    columns = min(len(curves), 4)
    figure, grid = _panels(len(curves), columns, (WIDTH / columns, 2.2))
    for axes, name in zip(grid, curves, strict=True):
        for number, training in enumerate(trainings):
            points = [point for point in training if point.get(name) is not None]
            steps, values = ([point[key] for point in points] for key in ("step", name))
            color, dashes = LINES[number % len(LINES)]
            axes.plot(steps, values, dashes, color=color, label=f"training {number + 1}")
        axes.set_title(name.replace("_", " "))
        axes.margins(x=0.01)
    if len(trainings) > 1:
        grid[0].legend()
    figure.supxlabel("step", fontsize=9)
    return figure


def save_png(picture: "Figure | Image.Image", path: PathLike) -> None:
    """Writes a picture as PNG, atomically; the same picture gives the same bytes."""
    with replaced(path) as temporary:
        if isinstance(picture, Image.Image):
            picture.save(temporary, compress_level=4)
        else:
            # Without the version of matplotlib, which would change the bytes.
            options = {"compress_level": 4}
            picture.savefig(temporary, dpi=100, metadata={"Software": None}, pil_kwargs=options)


def to_svg(chart: Chart) -> str:
    """Draws a chart as an SVG element without background, with the page's ink (`currentColor`) and colors.

    Returns "" for a chart that has no data or cannot be drawn.
    """
    svg = ""
    with drawing(chart.caption), style():
        if figure := chart.draw():
            text = io.StringIO()
            # Neither date nor version: the same report gives the same bytes.
            metadata = {"Date": None, "Creator": None}
            # Transparent, since the page has a light and a dark mode.
            figure.savefig(text, format="svg", transparent=True, metadata=metadata)
            # An XML declaration is not allowed inside an HTML page.
            svg = text.getvalue()[text.getvalue().index("<svg") :].strip()
    # Matplotlib writes colors as literals; variables of the page follow its dark mode.
    colors = {INK: "currentColor", NORMAL: "var(--normal)", ANOMALOUS: "var(--anomalous)"}
    for color, name in colors.items():
        svg = svg.replace(color, name)
    return svg


def _category_panels(
    scores: DatasetScores, *, aspect: float, both_labels: bool = False, sharex: bool = False
) -> "tuple[Figure, list[tuple[Axes, str, np.ndarray]]]":
    """Makes a figure with a panel per category; returns axes, name and which images belong to it."""
    import matplotlib

    categories, labels = np.asarray(scores.categories), np.asarray(scores.labels)
    members = {name: categories == name for name in dict.fromkeys(scores.categories)}
    if both_labels:
        members = {name: of for name, of in members.items() if len(set(labels[of].tolist())) == 2}
    rows = max(-(-len(members) // PANEL_COLUMNS), 1)
    columns = max(-(-len(members) // rows), 1)
    width = (HALF if columns <= 3 else WIDTH) / columns
    size = (width, min(aspect * width, TALLEST) + 0.5 / rows)
    titles = [names.category_name(name) for name in members]
    # Inside of `style`, which restores it.
    other = load_font(9, "".join(titles)).getname()[0]
    matplotlib.rcParams["font.family"] = ["sans-serif", str(other)]
    figure, grid = _panels(len(members), columns, size, sharex=sharex)
    return figure, list(zip(grid, titles, members.values(), strict=True))


def _panels(
    count: int, columns: int, size: tuple[float, float], *, sharex: bool = False
) -> "tuple[Figure, list[Axes]]":
    """Makes a figure of `count` panels of a size in inches; it belongs to no window and no global list."""
    from matplotlib.figure import Figure

    rows = max(-(-count // columns), 1)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=sharex).ravel()
    for axes in grid[count:]:
        axes.remove()
    return figure, list(grid[:count])
