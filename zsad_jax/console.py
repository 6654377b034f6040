"""How commands talk: our own messages, one plain line each."""

import logging as python_logging
import pathlib
import sys

from absl import logging

from zsad_jax.data.preprocess import set_up_decoders


def log_plainly() -> None:
    """Sends log messages to stderr as they are; those of libraries from warnings on."""
    handler = python_logging.StreamHandler(sys.stderr)
    ours = str(pathlib.Path(__file__).parent)
    handler.addFilter(
        lambda record: record.pathname.startswith(ours) or record.levelno >= python_logging.WARNING
    )
    logger = logging.get_absl_logger()
    logger.handlers = [handler]
    logger.propagate = False
    logging.set_verbosity(logging.INFO)
    set_up_decoders()
    python_logging.getLogger("jax").setLevel(python_logging.WARNING)  # it has its own way to stderr
