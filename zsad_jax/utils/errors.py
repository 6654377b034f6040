"""Errors for users, and suggestions for misspelt names."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Sequence

LISTED = 12  # names in a suggestion: more would hide what is wrong


class UserError(Exception):
    """An error that the user can correct; commands print it without a traceback and exit with code 2.

    The message says what is wrong, what was expected and what to do.
    """


class NotPreparedError(UserError):
    """A known dataset that is not prepared yet; the message says how to prepare it."""


class NoSplitError(UserError):
    """A prepared dataset that has no images in a split."""


@contextlib.contextmanager
def located(place: str) -> Iterator[None]:
    """Puts the place of a mistake, such as a section of the config, before the errors of its body."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{place}: {error}") from error


def nearest(name: str, known: Iterable[str], *, cutoffs: Sequence[float] = (0.8, 0.6)) -> list[str]:
    """Returns up to three known names that resemble a name by the first cutoff that finds any."""
    # Two short names share letters by chance: "metal_nut" and "bent" have a ratio of 0.5.
    # Case and punctuation are ignored: "TIPS_L14_HR" is "tips-l14-hr".
    plain = {_plain(one): one for one in known}
    found = (difflib.get_close_matches(_plain(name), plain, cutoff=one) for one in cutoffs)
    return [plain[one] for one in next(filter(None, found), ())]


def plural(number: int, noun: str) -> str:
    """Returns a number with its noun: "1 image", "2 images", "3 categories"."""
    many = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {noun if number == 1 else many}"


def agree(number: int, one: str, many: str) -> str:
    """Returns the form of a verb for a number of things."""
    return one if number == 1 else many


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns a sentence with the known names that resemble a name, or else with the first of all."""
    known = list(known)
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
    available = f"Available: {', '.join(known[:LISTED])}{more}."
    return did_you_mean(nearest(name, known)) or available


def did_you_mean(near: Sequence[str]) -> str:
    """Returns a question that suggests names; "" without any."""
    *others, last = near or [""]
    return f"Did you mean {', '.join(others)}{' or ' * bool(others)}{last}?" if near else ""


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
