"""The one exception that is meant for a person."""


class UserError(Exception):
    """Something the user can mend: bad config, missing weights, unreadable input.

    The message is one clear sentence that names the thing and the remedy. Commands print it without a
    traceback and exit with code 2.
    """


class NotPreparedError(UserError):
    """A known dataset is not there yet; the message says how to get it."""


class NoSplitError(UserError):
    """A dataset that is there has no images in a split."""
