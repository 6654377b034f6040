"""Tests of the wording: phrases that stop a reader are not used anywhere in the tree."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SUFFIXES = {".py", ".md", ".toml", ".j2", ".yaml", ".yml", ".cff", ""}
BANNED = (
    *("told", "amiss", "lies in", "mends?", "mended", "with a word", "left out", "taken over"),
    *("that ships?", "in one sentence", "refused?"),
)
PHRASES = re.compile(rf"\b(?:{'|'.join(BANNED)})\b".replace(" ", r"\s+"), re.IGNORECASE)
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for top in ("zsad_jax", "configs", "tests", "scripts", "docs", ".github", ".ci/run", ".")
    for path in ((ROOT / top).glob("*") if top == "." else [*(ROOT / top).rglob("*"), ROOT / top])
    if path.is_file() and path.suffix in SUFFIXES and "goldens" not in path.parts
    if path.name not in ("test_language.py", "LICENSE")
)


def docstrings(text):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        ast.get_docstring(node) or ""
        for node in ast.walk(ast.parse(text))
        if isinstance(node, kinds)
    ]


@pytest.mark.parametrize("name", FILES)
def test_has_no_banned_phrase(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    found = [match[0] for match in PHRASES.finditer(text)]
    if name.endswith(".py"):
        starts = (re.match(r"(?:What|How|One of)\b.*", doc) for doc in docstrings(text))
        found += [start[0] for start in starts if start]
    assert not found


def test_the_search_finds_phrases():
    assert PHRASES.findall("It was left\n out and Refused.") == ["left\n out", "Refused"]
    assert docstrings('def f():\n    """What f is."""') == ["", "What f is."]
