"""Trains and evaluates the method of a config, and writes a report.

python -m zsad_jax.main --config configs/tipsomaly.py [--config.key=value ...] [--workdir DIR]
python -m zsad_jax.main --list
python -m zsad_jax.main --config configs/tipsomaly.py --keys

Included configs are found from any directory; a local file with the same name takes precedence.
"""

import contextlib

from absl import flags

from zsad_jax.experiment import config_flag
from zsad_jax.experiment.config_keys import list_keys
from zsad_jax.experiment.run import OUTPUTS, run_experiment
from zsad_jax.experiment.workdir import default_workdir
from zsad_jax.utils import distributed, remote
from zsad_jax.utils.command_line import log_plainly

flags.adopt_module_key_flags(config_flag)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of all outputs, local or gs://; default: runs/<config>."
)
_LIST = flags.DEFINE_bool("list", False, "List the included configs and their variants.")
_KEYS = flags.DEFINE_bool("keys", False, "List every key of the config with its value and meaning.")


def main(argv: list[str]) -> None:
    """Runs the experiment of the command line."""
    if _LIST.value:
        print(config_flag.list_configs())
        return
    if _KEYS.value:
        print(list_keys(config_flag.read_config()))
        return
    experiment = config_flag.read_experiment()
    config_flag.reject_strays(argv[1:])
    changed = config_flag.changed_keys()
    config_flag.reject_checkpoints(experiment, changed)
    log_plainly()
    if experiment.distributed:
        distributed.initialize()
    given = default_workdir(config_flag.config_file()) if _WORKDIR.value is None else _WORKDIR.value
    with contextlib.ExitStack() as stack:
        if not distributed.is_main():  # so that code that writes files needs no check of its own
            given = stack.enter_context(distributed.scratch_folder())
        workdir = stack.enter_context(remote.open_workdir(given, OUTPUTS, "--workdir"))
        run_experiment(experiment, workdir, changed)


if __name__ == "__main__":
    config_flag.run(main, "zsad_jax.main")
