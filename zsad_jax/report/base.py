"""What a report is made of: plain data, nothing computed."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from zsad_jax.data.issues import Issue
from zsad_jax.evaluate import Case, DatasetScores
from zsad_jax.metrics import Note
from zsad_jax.report.rows import Row


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Report:
    """All that a report shows.

    Attributes:
      title: the heading, method and backbone in words.
      rows: results.json.
      comparisons: comparisons.json (fixed prompts, other image scores, single seeds).
      notes: by (dataset, category): why something is undefined, and the like.
      scores: image scores, one entry per dataset.
      cases: images to show; `choose_cases` says which are worth it.
      history: the training curve, dicts with "step" and any numbers.
      issues: images that could not be read, by dataset.
      config_text: the resolved config.
      run: run.json. Keys that end in "_seconds" and "_bytes" are shown in fitting units.
      demonstration: True when the backbone is a demonstration model.
      map_scale: (low, high), the one color scale of all maps.
      skipped: datasets that were left out, with the reason.
    """

    title: str
    rows: Sequence[Row]
    comparisons: Sequence[Row] = ()
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
