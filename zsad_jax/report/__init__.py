"""Tables, figures, training curves and the HTML page of a run."""

from zsad_jax.report.base import Report
from zsad_jax.report.curves import CurveWriter, curve_files, read_curves
from zsad_jax.report.images import gallery
from zsad_jax.report.rows import Row, result_row
from zsad_jax.report.wording import DEMONSTRATION
from zsad_jax.report.write import write_report

__all__ = [
    "DEMONSTRATION",
    "CurveWriter",
    "Report",
    "Row",
    "curve_files",
    "gallery",
    "read_curves",
    "result_row",
    "write_report",
]
