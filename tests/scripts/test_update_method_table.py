"""Tests that the table of methods and backbone families is that of the code."""

import pathlib
import runpy

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "update_method_table.py"))


def test_table_is_current():
    page = SCRIPT["PAGE"].read_text(encoding="utf-8")
    begin = SCRIPT["BEGIN"]
    assert SCRIPT["fill_in"](page) == page
    assert SCRIPT["fill_in"](page.replace(begin, f"{begin}| stale |\n")) == page
