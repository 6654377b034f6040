"""Tests of stored values: JSON texts that are rejected, and records that notice damage."""

import json

import pytest

from zsad_jax.utils.records import fingerprint, parse_json, sealed, unsealed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Expecting property name"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": {"b": 1, "c": 2, "b": 3}}', "the key 'b' is repeated"),
        (b"\xff\xfe\xfd", "codec can't decode"),
    ],
)
def test_invalid_json_is_one_kind_of_error(text, words):
    with pytest.raises(ValueError, match=words):
        parse_json(text)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_reads_unicode_encodings(encoding):
    assert parse_json('{"ü": [1, null]}'.encode(encoding)) == {"ü": [1, None]}


def test_records_notice_changes():
    record = {"path": "a.png", "score": 0.5, "size": [4, 3]}
    stored = json.loads(json.dumps(sealed(record)))
    assert unsealed(stored) == record
    for damaged in (stored | {"score": 0.6}, stored | {"more": 1}, record, [record], None):
        assert unsealed(damaged) is None


def test_fingerprints_do_not_depend_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1})
