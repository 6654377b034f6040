"""Fuzz test of command lines and config files.

    python scripts/fuzz/command_lines.py --count 250 --seed 0

Every command either starts its work or is rejected with an error: wrong names, types, ranges and paths never
end in a traceback. Commands stop where training or inference would begin, and there is no network.
"""

import contextlib
import functools
import os
import pathlib
import runpy
import shutil
import sys
import tempfile
import unittest.mock
from collections.abc import Callable, Iterator
from typing import Any

import grain  # noqa: F401 - defines flags, which must outlive the restored ones
import numpy as np
from absl import flags
from absl.testing import flagsaver
from kills import write_inputs
from ml_collections import ConfigDict
from runner import Case, make_parser, run_cases

import zsad_jax.main
import zsad_jax.predict.__main__
from zsad_jax.backbones.__main__ import main as backbones
from zsad_jax.data.__main__ import main as data
from zsad_jax.experiment import config as experiment_config
from zsad_jax.experiment import config_flag
from zsad_jax.experiment import run as experiment_run
from zsad_jax.experiment.config_files import find_config
from zsad_jax.predict import run as predict_run
from zsad_jax.report.__main__ import main as report
from zsad_jax.utils import command_line, downloads
from zsad_jax.utils.errors import UserError

CONFIG = "configs/tipsomaly.py:demo"
# fmt: off
WORDS = (
    "", " ", "nan", "inf", "-inf", "-1", "0", "1", "2.5", "1e22", "100000000", "None", "True", "yes", "'a'",
    "[]", "()", "{}", "[1, 'a']", "('a', 'b')", "{'name': 5}", "{'folder': 5}", "{'a': {'b': 1}}", "{1: 2}",
    "1,2,3", "../x", "~", "~nobody/x", "/dev/null", "a\0b", "a\nb", "ü", "\udce9", "x" * 5000, "[" * 500,
    "mvtec_ad", "tips-l14", "images", "images/*", "*", "[", "images.tar", "0.5:0.9", "images:2", "1,0",
    "__import__('os').abort()", "lambda: 0", "$HOME", "%s", "{", "'", '"', "=", "--", "-x",
)
OBJECTS = (
    None, True, -1, 0, 1.5, float("nan"), float("inf"), 10**22, 10**8, "", "a", "a\0b", b"a", object(),
    [], (), {}, [1, "a"], ("a", 5), {"name": 5}, {1: 2}, {"a": {"b": None}}, [[]], {"a"}, len, ConfigDict(),
)
FLAGS = {
    "main": ("workdir", "config", "list", "keys", "help", "confg"),
    "predict": (
        "out", "checkpoint", "category", "prompts", "scale", "threshold", "pixel_threshold", "map_size",
        "depth", "batch_size", "folders", "include_masks", "config",
    ),
}
# Of each command: its function, the first arguments, and its options.
COMMANDS: dict[str, tuple[Callable[..., Any], tuple[tuple[str, ...], ...], tuple[str, ...]]] = {
    "data": (
        data,
        (("prepare", "sd_saliency_900"), ("verify", "images"), ("list",), ("show", "images"), ("shw",)),
        ("--data_dir", "--source", "--workers", "--categories", "--images", "--split", "--out", "--format"),
    ),
    "report": (report, (("images",), ("missing",)), ("--paper", "--table", "--format", "--out")),
    "backbones": (
        backbones,
        (("list",), ("fetch", "tips-l14"), ("convert", "images.tar"), ("fetch",)),
        ("--lineage", "--prompts", "--out", "--weights"),
    ),
}
# fmt: on


class _StartedError(BaseException):
    """The work would begin here."""


def stop(*_: object, **__: object) -> None:
    raise _StartedError


def no_network(url: str, *_: object, **__: object) -> None:
    raise UserError(f"Cannot download {url}.")


def list_keys(config: ConfigDict, prefix: str = "config") -> list[str]:
    """Returns the keys of a config and of the dicts in it."""
    keys = []
    for name, value in config.items():
        keys.append(f"{prefix}.{name}")
        if isinstance(value, ConfigDict):
            keys += list_keys(value, keys[-1])
    return keys


def make_config() -> ConfigDict:
    config = runpy.run_path(find_config(CONFIG.partition(":")[0]))["get_config"]("demo")
    config.backbone.image_size = 56
    return config


def run_with_flags(main: Callable[[list[str]], None], module: str, arguments: list[str]) -> None:
    """Runs a command with absl's flags in this process."""
    flags.FLAGS.unparse_flags()
    argv = [module, *arguments]
    parse = config_flag.flags_parser(module)
    with flagsaver.flagsaver(), unittest.mock.patch.object(sys, "argv", argv):
        begin(lambda: main(parse(argv)))


def begin(run: Callable[[], Any]) -> None:
    """Runs a command until it begins its work, or is rejected."""
    for folder in ("run", "out"):  # of earlier cases
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(_StartedError):
        command_line.guarded(run)


def run_config(config: ConfigDict) -> None:
    def run() -> None:
        experiment = experiment_config.from_config(config)
        experiment_run.run_experiment(experiment, pathlib.Path("run"))

    begin(run)


def draw_case(rng: np.random.Generator, position: int) -> Case:
    def pick(options: Any) -> Any:
        return options[rng.integers(len(options))]

    kind = pick(("main", "main", "config", "predict", *COMMANDS))
    keys = list_keys(make_config())
    if kind == "config":
        config, given = make_config(), []
        for _ in range(rng.integers(1, 3)):
            *path, name = pick(keys).split(".")[1:]
            place = functools.reduce(lambda node, key: node.get(key), path, config)
            if isinstance(place, ConfigDict):
                with place.ignore_type(), place.unlocked():
                    place[name] = pick(OBJECTS)
                given.append(f"{'.'.join([*path, name])}={place.get(name)!r}")
        return Case(kind, f"case {position}: {given}", functools.partial(run_config, config))
    if kind in COMMANDS:
        main, starts, options = COMMANDS[kind]
        arguments = [*pick(starts)]
        for _ in range(rng.integers(1, 3)):
            arguments += [pick(options), pick(WORDS)] if rng.random() < 0.7 else [pick(WORDS)]
        act = functools.partial(begin, functools.partial(main, arguments))
        return Case(kind, f"case {position}: {arguments}", act)
    names = [*FLAGS[kind], *keys] if kind == "main" else [*FLAGS[kind] * 4, *keys]
    arguments = [f"--config={CONFIG}", "--config.backbone.image_size=56"]
    arguments += ["--workdir=run"] if kind == "main" else ["images", "--out=out"]
    for _ in range(rng.integers(1, 3)):
        word = f"--{pick(names)}={pick(WORDS)}" if rng.random() < 0.9 else pick(WORDS)
        arguments.append(word)
    module = zsad_jax.main if kind == "main" else zsad_jax.predict.__main__
    act = functools.partial(run_with_flags, module.main, f"zsad_jax.{kind}", arguments)
    return Case(kind, f"case {position}: {arguments}", act)


def draw_cases(count: int, seed: int) -> Iterator[Case]:
    yield Case("unchanged", "config", functools.partial(run_config, make_config()))
    rng = np.random.default_rng(seed)
    for position in range(count):
        yield draw_case(rng, position)


def main(arguments: list[str] | None = None) -> int:
    options = make_parser(__doc__, 250, "command lines and configs").parse_args(arguments)
    with (
        tempfile.TemporaryDirectory() as place,
        contextlib.chdir(place),
        unittest.mock.patch.dict(os.environ, {"ZSAD_JAX_HOME": f"{place}/home", "HOME": place}),
        unittest.mock.patch.object(experiment_run, "obtain_prompts", stop),
        unittest.mock.patch.object(predict_run, "_score_all", stop),
        unittest.mock.patch.object(downloads, "fetch", no_network),
    ):
        write_inputs(pathlib.Path(place))
        return run_cases(draw_cases(options.count, options.seed))


if __name__ == "__main__":
    sys.exit(main())
