"""Tables of pages."""

from lutra_flows.pages import markdown_table


def test_a_table() -> None:
    """Numbers are aligned on the right, from a column on."""
    lines = ["| name | n |", "| --- | --- |", "| a | 1 |", "| b | 20 |"]
    rows = [("a", 1), ("b", "20")]
    assert markdown_table(("name", "n"), rows).splitlines() == lines
    for numbers_from, rule in ((0, "| ---: | ---: |"), (1, "| --- | ---: |")):
        found = markdown_table(("name", "n"), rows, numbers_from).splitlines()
        assert found == [lines[0], rule, *lines[2:]]
    assert markdown_table(("name",), []) == "| name |\n| --- |"
