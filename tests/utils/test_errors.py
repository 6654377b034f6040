import pytest

from zsad_jax.utils.errors import LISTED, suggest


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("botle", ["bottle", "cable"], "Did you mean bottle?"),
        ("elvp", ["elpv", "visa"], "Did you mean elpv?"),
        ("mvtek", ["mvtec_ad", "visa"], "Did you mean mvtec_ad?"),
        ("metal_nut", ["bent", "good"], "Available: bent, good."),
    ],
)
def test_suggests_names_that_resemble_a_name(name, known, expected):
    assert suggest(name, known) == expected


def test_lists_the_first_names_where_there_are_many():
    known = [f"x{number}" for number in range(LISTED + 2)]
    assert suggest("bottle", known) == f"Available: {', '.join(known[:LISTED])} and 2 more."
    assert suggest("bottle", known[:LISTED]) == f"Available: {', '.join(known[:LISTED])}."
