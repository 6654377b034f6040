"""What is meant for a person: one exception, and what a misspelt name may mean."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: bad config, missing weights, unreadable input.

    The message is one clear sentence that names the thing and the remedy. Commands print it without a
    traceback and exit with code 2.
    """


class NotPreparedError(UserError):
    """A known dataset is not there yet; the message says how to get it."""


class NoSplitError(UserError):
    """A dataset that is there has no images in a split."""


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Returns up to three known names that resemble a name; fewer where some resemble it closely."""
    plain = {_plain(one): one for one in known}
    near: list[str] = []
    for cutoff in (0.8, 0.5):
        near = near or difflib.get_close_matches(_plain(name), plain, n=3, cutoff=cutoff)
    return [plain[one] for one in near]


def plural(number: int, noun: str) -> str:
    """Returns a number with its noun: "1 image", "2 images"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def suggest(name: str, known: Iterable[str]) -> str:
    """Says which of the known names may be meant, or which there are; the end of a sentence."""
    known = list(known)
    near = nearest(name, known)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known are {', '.join(known)}."


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
