import csv
import io

import pytest

from dd_keras.utils import tables

HEADER = ("name", "value", "p")
ROWS = [("rho2", "0.1234", "2"), ("a long name", "12.00 %", "1")]


def test_text_is_aligned_first_column_left_others_right():
    assert tables.render(HEADER, ROWS) == (
        "name           value  p\n"
        "-----------------------\n"
        "rho2          0.1234  2\n"
        "a long name  12.00 %  1"
    )


def test_text_has_no_spaces_at_the_end_of_lines():
    text = tables.render(("a", "b"), [("x", ""), ("y", "long cell")])
    assert all(line == line.rstrip() for line in text.splitlines())


def test_markdown_is_a_table_with_aligned_columns():
    assert tables.render(HEADER, ROWS, "markdown") == (
        "| name        |   value |   p |\n"
        "| ----------- | ------: | --: |\n"
        "| rho2        |  0.1234 |   2 |\n"
        "| a long name | 12.00 % |   1 |"
    )


def parsed(markdown):
    """The cells, as GitHub's specification of tables has it."""
    rows = []
    for line in markdown.splitlines():
        assert line.startswith("| ")
        assert line.endswith(" |")
        cells = line.replace(r"\|", "\0")[1:-1].split("|")
        rows.append([cell.strip().replace("\0", "|") for cell in cells])
    header, rule, *rows = rows
    for cell in rule:
        assert set(cell) <= {"-", ":"}
        assert "-" in cell
    assert {len(row) for row in rows} | {len(rule)} == {len(header)}
    return header, rows


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        (HEADER, ROWS),
        (("", "p", "q"), [("", "1", "2")]),  # narrower than a rule
        (("a|b", "p"), [("||", "x|y")]),
        (("alone",), [("x",), ("y",)]),
        (HEADER, []),
    ],
)
def test_markdown_reads_back(header, rows):
    assert parsed(tables.render(header, rows, "markdown")) == (
        list(header),
        [list(row) for row in rows],
    )


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        [("a, b", 'said "x"', "line\nbreak"), ("|", " spaced ", "")],
        [("", "", "")],
        [("ends in", "a", "newline\n")],
        [],
    ],
)
def test_csv_reads_back(rows):
    text = tables.render(HEADER, rows, "csv")
    assert not text.endswith("\n")
    found = list(csv.reader(io.StringIO(text)))
    assert found == [list(HEADER), *map(list, rows)]


def test_csv_quotes_only_what_needs_it():
    assert tables.render(("a", "b"), [("x, y", "1.0 to 2.0")], "csv") == (
        'a,b\n"x, y",1.0 to 2.0'
    )


@pytest.mark.parametrize("form", tables.FORMS)
def test_rows_may_come_from_any_iterable(form):
    rows = ((cell for cell in row) for row in ROWS)
    assert tables.render(iter(HEADER), rows, form) == tables.render(
        HEADER, ROWS, form
    )


@pytest.mark.parametrize("form", ["html", "CSV", "", None])
def test_unknown_form_is_refused(form):
    with pytest.raises(
        ValueError,
        match=r"^form: expected one of \('text', 'markdown', 'csv'\); "
        rf"received {form!r}\.$",
    ):
        tables.render(HEADER, ROWS, form)
