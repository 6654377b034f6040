"""Predictions for people: the table predictions.csv, and index.html with a thumbnail of each image."""

import base64
import os
from collections import Counter

from zsad_jax.data.issues import group_issues, summarize_issues
from zsad_jax.predict.outputs import Outcome, Record, Writer, format_score, write_changed
from zsad_jax.predict.score import Model
from zsad_jax.report import formats
from zsad_jax.utils.images import printable
from zsad_jax.utils.text_table import csv_text

COLUMNS = (
    *("path", "score", "decision", "threshold", "category", "width", "height", "regions"),
    *("map", "figure", "mask", "note", "warning", "error"),
)


def write(writer: Writer, model: Model, outcome: Outcome, threshold: Record | None) -> None:
    """Writes both files, highest score first; `threshold` is the description of the common one in run.json."""
    scored = outcome.scored
    ordered = [*scored, *(record for record in outcome.records if "score" not in record)]
    table = [[_flat(record).get(name) for name in COLUMNS] for record in ordered]
    # Without the byte-order mark, Excel does not read UTF-8.
    write_changed(writer.folder / "predictions.csv", "\ufeff" + csv_text([COLUMNS, *table]))
    paths = [os.path.abspath(record["path"]) for record in ordered]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    names = [printable(os.path.relpath(path, root)) for path in paths]
    folders = [os.path.dirname(name) or "." for name in names]
    rows = list(zip(ordered, names, folders, strict=True))
    page = formats.render(
        "predictions.html",
        model=model.description,
        categories=dict.fromkeys(record["category"] for record in scored),
        warning=model.warning,
        threshold=threshold,
        ignored=[summarize_issues(kind) for kind in group_issues(outcome.ignored)],
        num_ignored=len(outcome.ignored),
        rows=rows,
        decisions=Counter(record["decision"] for record in ordered if "decision" in record),
        folders=Counter(folder for record, _, folder in rows if "score" in record),
        root=printable(root),
        format_score=format_score,
        thumbnail=lambda record: base64.b64encode(
            (writer.folder / record["thumbnail"]).read_bytes()
        ).decode("ascii"),
    )
    write_changed(writer.folder / "index.html", page)


def _flat(record: Record) -> Record:
    regions = {"regions": len(record["regions"])} if "regions" in record else {}
    return record | dict(zip(("width", "height"), record.get("size", ()), strict=False)) | regions
