"""Tables of text: for the terminal, Markdown or a spreadsheet."""

import csv
import io
from collections.abc import Sequence

from dd_keras.utils import validation

FORMS = ("text", "markdown", "csv")


def render(
    header: Sequence[str], rows: Sequence[Sequence[str]], form: str = "text"
) -> str:
    """Lays out cells in columns: the first to the left, others to the right.

    Args:
        header: sequence of str, one for each column.
        rows: sequence of sequences of str, each as long as `header`.
        form: `"text"`, `"markdown"` or `"csv"`.

    Returns:
        str, without a newline at its end.

    Raises:
        ValueError: if `form` is not known.
    """
    validation.validate_choice("form", form, FORMS)
    table = [list(header), *map(list, rows)]
    if form == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(table)
        return text.getvalue().rstrip("\n")
    least = 0
    if form == "markdown":
        least = 3  # a rule is at least "--:"
        table = [[cell.replace("|", r"\|") for cell in row] for row in table]
    widths = [
        max(least, *map(len, column)) for column in zip(*table, strict=True)
    ]
    padded = [
        [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in table
    ]
    if form == "text":
        lines = ["  ".join(line).rstrip() for line in padded]
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:]])
    dashes = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join(
        f"| {' | '.join(line)} |" for line in [padded[0], dashes, *padded[1:]]
    )
