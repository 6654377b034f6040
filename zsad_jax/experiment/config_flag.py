"""The flag --config, which the commands share, and errors on the command line."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, cast

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from zsad_jax.experiment.config import Experiment, from_config
from zsad_jax.experiment.config_files import LIST_COMMAND, describe_configs, load_config
from zsad_jax.experiment.config_keys import describe_keys, flatten
from zsad_jax.experiment.variants import drop_foreign_options, make_variants
from zsad_jax.methods import config_class
from zsad_jax.utils import command_line, compilations, distributed
from zsad_jax.utils.config import plain
from zsad_jax.utils.errors import UserError, did_you_mean, nearest, suggest


class _Parser(flags.ArgumentParser):
    """The parser of the flag --config, which loads local files and included ones."""

    original: Mapping[str, Any] = {}

    def parse(self, argument: str) -> ConfigDict:
        config = load_config(argument)
        self.original = flatten(config)
        if isinstance(config, ConfigDict):
            config.lock()  # other keys on the command line are errors
        return config


def define(**options: Any) -> flags.FlagHolder:
    """Defines the flag --config; options are those of `DEFINE_config_file`."""
    help_text = f"The config: FILE or FILE:VARIANT. To list the included ones: {LIST_COMMAND}"
    holder = config_flags.DEFINE_config_file("config", None, help_text, **options)
    options.get("flag_values", flags.FLAGS)["config"].parser = _Parser()
    return holder


_CONFIG = define()


def run(main: Callable[[list[str]], None], module: str) -> NoReturn:
    """Runs a command with absl's flags and exits."""

    def body() -> None:
        compilations.store()
        app.run(main, flags_parser=flags_parser(module))

    sys.exit(distributed.ended_together(lambda: command_line.guarded(body)))


def list_configs() -> str:
    """Returns the included configs and variants, a line each."""
    configs = describe_configs()
    width = max(map(len, configs))
    return "\n".join(f"{name:{width}}  {line}" for name, line in configs.items())


def flags_parser(module: str) -> Callable[[list[str]], list[str]]:
    """Returns absl's parsing for `app.run`; mistakes are reported without a traceback, with `module`'s help."""

    def parse(argv: list[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        except SystemExit:  # after --help, which absl ends with 1
            print(f"\nConfigs (FILE or FILE:VARIANT of --config):\n{list_configs()}")
            raise SystemExit(0) from None
        except flags.Error as error:
            mistake = str(error).splitlines()[0]
            if isinstance(error, flags.IllegalFlagValueError):
                _reject_illegal(argv)
            elif isinstance(error, flags.UnrecognizedFlagError):
                known = [*flags.FLAGS, *(f"config.{one}" for one in flatten(_from_file(argv)))]
                near = did_you_mean([f"--{one}" for one in _nearest_keys(error.flagname, known)])
                mistake = f"Unknown option '--{error.flagname}'. {near}".rstrip()
            if paths := [one for one in argv if one.startswith("-") and os.path.exists(one)]:
                mistake = f"The file {paths[0]!r} is read as an option. Give it as ./{paths[0]}"
            stop = "" if mistake.endswith((".", "?")) else "."  # absl has both
            raise UserError(f"{mistake}{stop} See python -m {module} --help.") from error
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise UserError(_config_mistake(argv, error)) from error

    return parse


def read_config() -> ConfigDict:
    """Returns the config of the flag --config with its overrides; raises `UserError` if none is named."""
    if _CONFIG.value is None:
        raise UserError(
            "--config is missing. Name a config, for example --config configs/tipsomaly.py:demo. To list all:"
            f" {LIST_COMMAND}"
        )
    return _CONFIG.value


def read_experiment() -> Experiment:
    """Returns the experiment of the flag --config and its overrides; raises `UserError` on any mistake."""
    config, changed = plain(read_config()), changed_keys()
    before = cast(_Parser, flags.FLAGS["config"].parser).original.get("backbone.name")
    experiment = from_config(drop_foreign_options(config, before, changed))
    make_variants(experiment)  # for their mistakes
    return experiment


def changed_keys() -> dict[str, Any]:
    """Returns the values of the keys that differ from the config file, by dotted name."""
    original = cast(_Parser, flags.FLAGS["config"].parser).original
    return {
        key: value
        for key, value in flatten(read_config()).items()
        if key not in original or original[key] != value
    }


def config_file() -> str:
    """Returns the value of the flag --config: a file, with its variant."""
    return flags.FLAGS["config"].config_filename  # type: ignore[attr-defined]


def reject_checkpoints(experiment: Experiment, changed: Iterable[str]) -> None:
    """Rejects checkpoints among the keys of the command line, if training would replace them."""
    given = [key for key in changed if key.startswith("checkpoints")]
    if experiment.train and given:
        raise UserError(
            f"config.{given[0]} is given, but config.train is True, which trains new prompts. Omit it, or set"
            " --config.train=False."
        )


def reject_strays(arguments: Sequence[str]) -> None:
    """Rejects arguments that are not options, with the option that was probably meant."""
    if not arguments:
        return
    key, _, value = arguments[0].lstrip("-").removeprefix("config.").partition("=")
    known = [f"config.{one}" for one in _nearest_keys(key, [*flatten(_CONFIG.value)])]
    meant = [key] if key in flags.FLAGS else known
    remedy = did_you_mean([f"--{one}={value or 'VALUE'}" for one in meant])
    remedy = remedy or "Options have the form --NAME=VALUE."
    raise UserError(f"Unexpected argument {arguments[0]!r}. {remedy}")


def _nearest_keys(key: str, known: Sequence[str]) -> list[str]:
    """Returns the dotted keys that end like a key, or whose last part resembles its last part."""
    last = {one.rpartition(".")[2]: one for one in known}
    ending = [one for one in known if f".{one}".endswith(f".{key}")]
    like_it = [last[one] for one in nearest(key.rpartition(".")[2], last, cutoffs=(0.8,))]
    return ending or like_it or nearest(key, known)


def _reject_illegal(argv: list[str]) -> None:
    """Raises `UserError` on the first value that the parser of its flag rejects."""
    for flag, value in re.findall(r"^--?([\w.]+)(?:=|\n(?!-))(.*)", "\n".join(argv), re.MULTILINE):
        parser = flags.FLAGS[flag].parser if flag in flags.FLAGS else flags.ArgumentParser()
        try:
            parser.parse(value)
        except (TypeError, ValueError):
            if not flag.startswith("config."):
                choices = getattr(parser, "enum_values", None)
                kind = parser.syntactic_help or "True or False"
                remedy = suggest(value, choices) if choices else f"Expected {kind}."
                raise UserError(f"--{flag} is {value!r}. {remedy}") from None
            name, config = flag.removeprefix("config."), _from_file(argv)
            inside = {
                key: one for key, one in flatten(config).items() if key.startswith(f"{name}.")
            }
            # The name of a method or a backbone, else the first key of the section.
            key = min(inside, key=lambda key: not key.endswith(".name"), default="")
            example = value if key.endswith(".name") else inside.get(key)
            remedy = f" Set its keys, for example --config.{key}={example}." if key else ""
            kind = describe_keys(config)[name][0]
            raise UserError(
                f"{flag} is {value!r}. Expected {kind}.{remedy} To list all keys:"
                " python -m zsad_jax.main --config CONFIG --keys"
            ) from None


def _config_mistake(argv: list[str], error: Exception) -> str:
    """Returns what is wrong with the config or its overrides."""
    # The errors of ml_collections do not say which override is wrong, so each is looked up.
    overrides = re.findall(r"^-{1,2}(?:no)?config\.([\w.]+)", "\n".join(argv), re.MULTILINE)
    with contextlib.suppress(AttributeError, KeyError):  # of the config file itself
        config = _from_file(argv)
        known = [*flatten(config)]
        renamed = config_class(config.method.name).renamed
        for key in overrides:
            if key.startswith("method.") and (new := renamed.get(key.removeprefix("method."))):
                return f"config.{key} does not exist. It was renamed to config.method.{new}."
            if not any(f"{one}.".startswith(f"{key}.") for one in known):
                remedy = did_you_mean([f"config.{one}" for one in _nearest_keys(key, known)])
                return f"config.{key} does not exist. {remedy or suggest(key, [*config])}"
    reason = str(error).splitlines()[0]
    return f"Cannot read the config ({reason}). Correct the config file or the overrides."


def _from_file(argv: list[str]) -> ConfigDict:
    """Returns the config that a command line names, as its file has it; an empty one if it names none."""
    values = flags.FlagValues()
    define(flag_values=values, sys_argv=argv[:1])
    values(argv, known_only=True)
    return values.config or ConfigDict()
