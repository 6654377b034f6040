"""What is amiss or worth a note, many times over, told in a few lines."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from zsad_jax.data.base import Fault

NAMES_SHOWN = 3

_PATH = re.compile(r"\S*[/\\]\S*")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


class Kind(NamedTuple):
    """Remarks that say the same, but for numbers and paths.

    Attributes:
      reasons: in the order in which they first came, without repetition.
      file_names: of all, in order.
    """

    reasons: list[str]
    file_names: list[str]

    def __str__(self) -> str:
        """One line: how often, what, and the first few files."""
        names, reason = self.file_names, self.reasons[0]
        if len(names) == 1:
            return f"{names[0]}: {reason}"
        alike = ", or the like" if len(self.reasons) > 1 else ""
        shown = ", ".join(names[:NAMES_SHOWN]) + ", …" * (len(names) > NAMES_SHOWN)
        return f"{len(names)} times: {reason}{alike} ({shown})"


def kind_of(reason: str) -> str:
    """The words of a remark, the same for all of its kind."""
    return _NUMBER.sub("#", _PATH.sub("…", reason))


def group(remarks: Iterable[Fault]) -> list[Kind]:
    """Puts remarks together by kind, in the order in which the kinds first come."""
    kinds: dict[str, Kind] = {}
    for file_name, reason in remarks:
        kind = kinds.setdefault(kind_of(reason), Kind([], []))
        kind.file_names.append(file_name)
        if reason not in kind.reasons:
            kind.reasons.append(reason)
    return list(kinds.values())
