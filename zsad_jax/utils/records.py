"""JSON of stored values: their parsing, their fingerprints, and records that notice damage."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Returns the value of a JSON text; the encoding of bytes is detected.

    Raises `ValueError` if it is not valid, is nested too deeply, or repeats a key (see `unique`).
    """
    try:
        return json.loads(text, object_pairs_hook=unique)
    except RecursionError as error:
        raise ValueError(f"it is nested too deeply: {error}") from error


def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a mapping, and rejects a repeated key, of which one value would be lost."""
    made = dict(pairs)
    keys = [key for key, _ in pairs]
    if len(made) < len(keys):
        raise ValueError(
            f"the key {next(key for key in made if keys.count(key) > 1)!r} is repeated"
        )
    return made


def fingerprint(*parts: Any) -> str:
    """Returns a short name for what a result depends on: 12 hexadecimal digits of the SHA-256 of its JSON."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a record with a check of its values, by which `unsealed` notices damage."""
    return {**record, "check": fingerprint(record)}


def unsealed(record: Any) -> dict[str, Any] | None:
    """Returns what `sealed` was given; None if anything in it has changed, or it is something else."""
    if not isinstance(record, dict):
        return None
    values = {name: value for name, value in record.items() if name != "check"}
    return values if record.get("check") == fingerprint(values) else None
