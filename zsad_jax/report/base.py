"""The contents of a report."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from zsad_jax.data.issues import Issue
from zsad_jax.evaluate import Case, DatasetScores
from zsad_jax.metrics import Note
from zsad_jax.report import charts, run_tables, wording
from zsad_jax.report.papers import compare_run
from zsad_jax.report.rows import Row
from zsad_jax.report.tables import Table


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Report:
    """The contents of a report.

    Attributes:
      title: the heading, method and backbone in words.
      rows: results.json.
      comparisons: comparisons.json (fixed prompts, other image scores, points of a sweep).
      by_seed: results_by_seed.json.
      notes: by (dataset, category), such as the reason why a metric is undefined.
      scores: image scores, one entry per dataset.
      cases: images to show, see `evaluate.choose_cases`.
      history: the training curve, dicts with "step" and any numbers.
      issues: images that could not be read, by dataset.
      config_text: the resolved config.
      run: run.json.
      demonstration: whether the backbone is a demo model.
      map_scale: (low, high), the one color scale of all maps.
      skipped: skipped datasets, with the reason.
    """

    title: str
    rows: Sequence[Row]
    comparisons: Sequence[Row] = ()
    by_seed: Sequence[Row] = ()
    notes: Mapping[tuple[str, str], Sequence[Note]] = dataclasses.field(default_factory=dict)
    scores: Sequence[DatasetScores] = ()
    cases: Sequence[Case] = ()
    history: Sequence[Mapping[str, Any]] = ()
    issues: Mapping[str, Sequence[Issue]] = dataclasses.field(default_factory=dict)
    config_text: str = ""
    run: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    demonstration: bool = False
    map_scale: tuple[float, float] = (0.0, 1.0)
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def tables(self) -> list[Table]:
        """The results by dataset, by category, and the comparisons."""
        tables = run_tables.make_tables(self.rows, self.comparisons, notes=self.notes, run=self.run)
        return self._name_setting(tables)

    @functools.cached_property
    def paper_tables(self) -> list[Table]:
        """The tables of the papers with these results."""
        return self._name_setting(compare_run(self.rows, self.run))

    @functools.cached_property
    def ablation_charts(self) -> dict[str, list[charts.Chart]]:
        """The charts of a sweep by dataset."""
        points = wording.swept_points(self.run)
        swept = [row for row in self.comparisons if row["variant"] in points]
        made, remark = {}, wording.DEMONSTRATION * self.demonstration
        for dataset in dict.fromkeys(row["dataset"] for row in swept):
            _, rows = run_tables.compared_rows(dataset, self.rows, swept)
            made[dataset] = charts.ablation_charts(points, rows, remark)
        return made

    def _name_setting(self, tables: Sequence[Table]) -> list[Table]:
        """Returns tables that name what differs from the config file."""
        setting = wording.describe_changes(self.run)
        return [dataclasses.replace(table, setting=setting) for table in tables]
