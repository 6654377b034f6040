"""What is amiss or worth a note, many times over, told in a few lines."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from zsad_jax.data.base import Fault

NAMES_SHOWN = 3

_PATH = re.compile(r"\S*[/\\]\S*")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


class Kind(NamedTuple):
    """Remarks that say the same, but for numbers and paths, in order."""

    remarks: list[Fault]

    def __str__(self) -> str:
        """One line: how often, what, and the first few files."""
        reason = self.remarks[0].reason
        if len(self.remarks) == 1:
            return self.each()[0]
        alike = "" if all(one.reason == reason for one in self.remarks) else ", or the like"
        names = [one.file_name for one in self.remarks[:NAMES_SHOWN]]
        shown = ", ".join(names) + ", …" * (len(self.remarks) > NAMES_SHOWN)
        return f"{len(self.remarks)} times: {reason}{alike} ({shown})"

    def each(self) -> list[str]:
        """A line for each file."""
        return [f"{file_name}: {reason}" for file_name, reason in self.remarks]


def kind_of(reason: str) -> str:
    """The words of a remark, the same for all of its kind."""
    return _NUMBER.sub("#", _PATH.sub("…", reason))


def group(remarks: Iterable[Fault]) -> list[Kind]:
    """Puts remarks together by kind, in the order in which the kinds first come."""
    kinds: dict[str, Kind] = {}
    for remark in remarks:
        kinds.setdefault(kind_of(remark.reason), Kind([])).remarks.append(remark)
    return list(kinds.values())


def count_amiss(faults: Sequence[Fault]) -> str:
    """How many remarks there are on what is amiss, in words."""
    return "1 file is amiss" if len(faults) == 1 else f"{len(faults)} files are amiss"
