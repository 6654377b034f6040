"""How commands without absl flags talk: our own messages, one plain line each."""

import logging as python_logging
import sys

from absl import logging


def log_plainly() -> None:
    """Sends log messages to stderr as they are; those of libraries from warnings on."""
    handler = python_logging.StreamHandler(sys.stderr)
    handler.addFilter(
        lambda record: "zsad_jax" in record.pathname or record.levelno >= python_logging.WARNING
    )
    logger = logging.get_absl_logger()
    logger.handlers = [handler]
    logger.propagate = False
    logging.set_verbosity(logging.INFO)
