"""Scores, anomaly maps and figures of a user's own images.

python -m zsad_jax.predict PATH ... --config configs/tipsomaly.py --out DIR

PATH is a file, a folder (searched recursively) or a glob pattern. The results are written to DIR:
predictions.jsonl, predictions.csv, index.html, maps/, figures/ and run.json. Running the same command again
scores only new images; other thresholds, scales and map sizes need no inference.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence

from absl import flags

from zsad_jax.experiment import config_flag
from zsad_jax.experiment.config import Experiment
from zsad_jax.methods.shared.prompts import PROMPT_FAMILIES
from zsad_jax.predict.folders import EXAMPLE, Folder, Folders, read_folders
from zsad_jax.predict.run import predict
from zsad_jax.predict.score import Options
from zsad_jax.predict.thresholds import parse_scale, parse_threshold
from zsad_jax.utils import command_line, files
from zsad_jax.utils.errors import UserError

flags.adopt_module_key_flags(config_flag)
_OUT = flags.DEFINE_string("out", None, "Output folder (required).")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Learned prompts: a released name or a file. Default: the config's."
)
_CATEGORY = flags.DEFINE_string(
    "category", "object", "What the images show, in the words of a prompt, for example 'metal nut'."
)
_FOLDERS = flags.DEFINE_string(
    "folders",
    None,
    "JSON file with a category and, optionally, a threshold for each of several folders of images, relative"
    f" to the file: {EXAMPLE}. --category and --threshold apply to all others.",
)
_REFERENCES = flags.DEFINE_string(
    "references",
    None,
    "Folder of normal images of the category, for methods that compare with them, such as knn.",
)
_INCLUDE_MASKS = flags.DEFINE_bool(
    "include_masks", False, "Also score files that look like ground-truth masks (can_label.png)."
)
_PROMPTS = flags.DEFINE_enum(
    "prompts", None, list(PROMPT_FAMILIES), "Prompt family. Default: the config's."
)
_SCALE = flags.DEFINE_string(
    "scale",
    None,
    "LOW,HIGH of the figures' color scale. Default: the method's range, or that of each map.",
)
_THRESHOLD = flags.DEFINE_string(
    "threshold",
    None,
    "Image-score threshold; images with score >= threshold are anomalous. A number (0.6), or FOLDER:QUANTILE"
    " to calibrate on known-good images (good_images:0.99): the lowest threshold with this share of them"
    " below it. Default: scores only, no decision.",
)
_PIXEL_THRESHOLD = flags.DEFINE_float(
    "pixel_threshold", None, "Also write a mask and the regions where map >= pixel_threshold."
)
_MAP_SIZE = flags.DEFINE_integer("map_size", 1024, "Longest side of maps (pixels).", lower_bound=1)
_DEPTH = flags.DEFINE_integer(
    "depth",
    None,
    "Bits used in 16-bit images. Default: the config's.",
    lower_bound=8,
    upper_bound=16,
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Images per batch. Default: the config's.", lower_bound=1
)


def main(argv: list[str]) -> None:
    """Scores the images of the command line."""
    options = _read_options(argv[1:])
    experiment = _read_experiment()
    # A path may contain "="; only a missing one can be a flag without its dashes.
    keys = re.compile(r"-*[\w.]+=[^*?]*")
    missing = [path for path in options.paths if not os.path.lexists(path)]
    config_flag.reject_strays([path for path in missing if keys.fullmatch(path)])
    command_line.log_plainly()
    predict(experiment, options)


def _read_experiment() -> Experiment:
    experiment = config_flag.read_experiment()
    if experiment.distributed:
        raise UserError(
            "config.distributed has no effect on predict, which runs in one process. Set it to False, and give"
            " each process its own images and --out."
        )
    depth = {} if _DEPTH.value is None else {"bit_depth": _DEPTH.value}
    backbone, size = {**experiment.backbone, **depth}, _BATCH_SIZE.value or experiment.batch_size
    return dataclasses.replace(experiment, backbone=backbone, batch_size=size)


def _read_options(paths: Sequence[str]) -> Options:
    if _OUT.value is None:
        raise UserError("--out is missing. Name a folder for the results with --out DIR.")
    if not paths:
        raise UserError("No images are given. Name files, folders or glob patterns.")
    scale, threshold = _SCALE.value, _THRESHOLD.value
    folders = Folders(Folder(_CATEGORY.value))
    if _FOLDERS.value is not None:
        folders = read_folders(files.user_path(_FOLDERS.value, "--folders"), folders.default)
    return Options(
        paths=paths,
        out=pathlib.Path(files.user_path(_OUT.value, "--out")),
        checkpoint=_CHECKPOINT.value,
        folders=folders,
        references=_REFERENCES.value,
        include_masks=_INCLUDE_MASKS.value,
        prompt_family=_PROMPTS.value,
        scale=None if scale is None else parse_scale(scale),
        threshold=None if threshold is None else parse_threshold(threshold),
        pixel_threshold=_PIXEL_THRESHOLD.value,
        map_size=_MAP_SIZE.value,
    )


if __name__ == "__main__":
    config_flag.run(main, "zsad_jax.predict")
