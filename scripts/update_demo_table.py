"""Method table of the README, from stored demo runs: `python scripts/update_demo_table.py [WORKDIR ...]`.

The runs of the working directories are stored in docs/results/demos.json, in place of earlier ones of the same
method and backbone. Then the last two columns of the table are written from all stored runs.
"""

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from zsad_jax.experiment.config import WITHOUT_EFFECT, is_one_of
from zsad_jax.experiment.config_keys import flatten
from zsad_jax.report.rows import MEAN, STD_OF
from zsad_jax.utils import command_line, files
from zsad_jax.utils.errors import UserError
from zsad_jax.utils.records import fingerprint

ROOT = pathlib.Path(__file__).parents[1]
README, STORED = ROOT / "README.md", ROOT / "docs" / "results" / "demos.json"
BACKBONES = ("clip-nano", "tips-nano")
BASELINE = "fixed prompts"  # a comparison in the demos of TIPSomaly
METRICS = ("image_auroc", "pixel_auroc")

# A method, or one of its comparisons: "| `winclip`, 4-shot | ".
ROW = (
    rf"^(?P<kept>\| (?:`(?P<method>\w+)`(?:, (?P<label>[\w-]+))?|{BASELINE}) \|[^|]*\|[^|]*\|)"
    r"[^|]*/[^|]*\|[^|]*/[^|]*\|$"
)

Runs = dict[str, dict[str, Any]]  # by method and backbone


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("workdirs", nargs="*", type=pathlib.Path, help="finished runs of demos")
    options = parser.parse_args(arguments)
    return command_line.guarded(lambda: update(options.workdirs))


def update(workdirs: Sequence[pathlib.Path]) -> None:
    runs: Runs = json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else {}
    for workdir in workdirs:
        runs |= condense(workdir)
    text = fill_in(README.read_text(encoding="utf-8"), runs)
    files.write_json(STORED, dict(sorted(runs.items())))
    files.write_text(README, text)


def condense(workdir: pathlib.Path) -> Runs:
    """Returns what is stored of a run: the fingerprint of its setting, and its means and deviations.

    The means are those of its method in the main setting ("") and in comparisons.
    """
    config, results, comparisons = (
        json.loads((workdir / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("config", "results", "comparisons")
    )
    row = next(row for row in results if row["category"] == MEAN)
    if row["backbone"] not in BACKBONES:
        raise UserError(f"{workdir} is not a run of a demo. Give runs of configs/METHOD.py:demo.")
    own = ("category", "method", "image_score")
    # The main setting has a variant if options that are no columns differ from their defaults.
    means = {
        "" if other is row else other["variant"]: {
            name: other[name] for m in METRICS for name in (m, STD_OF[m]) if name in other
        }
        for other in (row, *comparisons)
        if all(other[name] == row[name] for name in own)
    }
    return {
        f"{row['method']} on {row['backbone']}": {"setting": setting_of(config), "means": means}
    }


def setting_of(config: Mapping[str, Any]) -> str:
    """Returns the fingerprint of the keys that results depend on, as far as they are set."""
    values = flatten(config, Mapping)
    given = {key: value for key, value in values.items() if value not in (None, {}, [])}
    return fingerprint({k: v for k, v in given.items() if not is_one_of(k, WITHOUT_EFFECT)})


def fill_in(text: str, runs: Runs) -> str:
    """Returns the README with the last two columns of its table written anew."""

    def row(found: re.Match[str]) -> str:
        method, label = found["method"], found["label"] or ""
        if not method:
            method, label = "tipsomaly", BASELINE
        keys = [f"{method} on {backbone}" for backbone in BACKBONES]
        if missing := [key for key in keys if key not in runs]:
            raise UserError(
                f"No stored run of {missing[0]}. Run its demo and give the working directory."
            )
        values = (runs[key]["means"][label] for key in keys)
        shown = (" / ".join(_show(mean, metric) for metric in METRICS) for mean in values)
        return f"{found['kept']} {' | '.join(shown)} |"

    return re.sub(ROW, row, text, flags=re.MULTILINE)


def _show(mean: Mapping[str, float], metric: str) -> str:
    std = mean.get(STD_OF[metric])
    return f"{mean[metric]:.3f}" + ("" if std is None else f" ± {std:.3f}")


if __name__ == "__main__":
    sys.exit(main())
