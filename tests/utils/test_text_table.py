from zsad_jax.utils.text_table import TERMINAL, TextTable


def test_terminal_hides_columns_and_wraps_the_last():
    state = "prepared, " * 12
    row = ("visa", "CC BY 4.0", (962, 1200), state)
    table = TextTable(
        ("dataset", "license", "test", "state"), frozenset({"test"}), [row], frozenset({"license"})
    )
    head, first, *others = table.to_text("plain").splitlines()
    assert head.split() == ["dataset", "test", "state"]
    assert first.startswith("visa     962 / 1200  prepared, prepared,")
    assert all(line.startswith(" " * 21 + "prepared,") for line in others)
    assert max(map(len, (first, *others))) <= TERMINAL
    assert "license" in table.to_text("csv")
