"""How every figure looks: sizes, colours, axes, legends, and its file.

Sizes are those of print: a column is 3.3 inches wide, a page 7.
"""

import itertools
import math
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dd_keras.utils import validation

T = TypeVar("T")

COLUMN, PAGE = 3.3, 7.0  # inches
TEXT_SIZE, SMALL_SIZE = 8, 7  # points
_DPI = 200

# Okabe and Ito's palette, told apart under every colour blindness; markers
# and lines tell the series apart in grey. The numbers of colours and of lines
# have no common factor, so the first 35 series differ in at least one.
COLORS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    "#000000",
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", "-.", ":", (0, (4, 1, 1, 1, 1, 1)))
# A method looks the same in every figure: the number of its style, by its
# title or the name that programs have for it.
_STYLES = {
    "deep defense": 0,
    "adv. train ii": 1,
    "adv train 2": 1,
    "adv. train i": 2,
    "adv train 1": 2,
    "deep defense + adv. train ii": 3,
    "combined": 3,
    "parseval": 4,
    "fine-tuned, no regulariser": 5,
    "clean": 5,
    "reference": 6,
    "deep defense, two epochs more": 7,
    "pgd adversarial training": 8,
    "pgd": 8,
    "trades": 9,
    "mma": 11,
    "input-gradient regularisation": 12,
    "input gradient": 12,
}

# The date of writing, which would make two files of one figure differ.
_DATES = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}, ".png": None}


def new_figure(
    width: float, height: float, layout: str = "constrained"
) -> Figure:
    """A figure of this size in inches."""
    return Figure(figsize=(width, height), dpi=_DPI, layout=layout)


def style_numbers(names: Iterable[str]) -> list[int]:
    """Which style each series of a figure has.

    Known methods have their own, all others the first that are free, of colours
    that nothing else has as long as there are such.
    """
    names = list(names)
    known = [_STYLES.get(name.lower().replace("_", " ")) for name in names]
    taken = {number for number in known if number is not None}
    numbers: list[int] = []
    for number in known:
        if number is None or number in numbers:
            number = _free(taken)
            taken.add(number)
        numbers.append(number)
    return numbers


def in_styles(series: Mapping[str, T]) -> list[tuple[int, str, T]]:
    """The series of a figure: (number of its style, name, value) of each."""
    numbers = style_numbers(series)
    return [
        (number, name, value)
        for number, (name, value) in zip(numbers, series.items(), strict=True)
    ]


def _free(taken):
    """The first number that is not taken, if possible of a new colour."""
    colors = {number % len(COLORS) for number in taken}
    return next(
        number
        for number in itertools.count()
        if number not in taken
        and (number % len(COLORS) not in colors or len(colors) == len(COLORS))
    )


def series_style(i: int) -> dict[str, Any]:
    """Colour and line of style i."""
    return {
        "color": COLORS[i % len(COLORS)],
        "linestyle": _LINES[i % len(_LINES)],
        "linewidth": 1.2,
    }


def plot_series(
    axes: Axes, i: int, name: str, x: Sequence, y: Sequence
) -> None:
    """A series' curve, in style i."""
    axes.plot(
        x,
        y,
        label=name,
        marker=_MARKERS[i % len(_MARKERS)],
        markersize=3.5,
        **series_style(i),
    )


def finish_axes(axes: Axes, x_label: str = "", y_label: str = "") -> None:
    """Labels, ticks and grid of finished axes."""
    axes.set_xlabel(x_label, fontsize=TEXT_SIZE)
    axes.set_ylabel(y_label, fontsize=TEXT_SIZE)
    axes.tick_params(labelsize=SMALL_SIZE)
    axes.grid(alpha=0.3)


def add_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """A legend above all axes, in as few rows as the width takes."""
    width = figure.get_figwidth() - 0.5  # without handle
    names = [wrap(handle.get_label(), width) for handle in handles]
    for rows in range(1, len(handles) + 1):
        legend = figure.legend(
            handles,
            names,
            loc="outside upper center",
            ncols=math.ceil(len(handles) / rows),
            frameon=False,
            fontsize=TEXT_SIZE,
            handlelength=2.6,
            columnspacing=1.4,
        )
        fits = legend.get_window_extent().width <= figure.bbox.width
        if fits or rows == len(handles):
            break
        legend.remove()
    # The axes keep their size.
    more = rows - 1 + sum(name.count("\n") for name in names)
    figure.set_figheight(figure.get_figheight() + 0.16 * more)


def rho_symbol(norm: float, symbol: str = r"\hat\rho") -> str:
    """The symbol of rho_p (with a hat: of its mean over a data set, Eq. 7)."""
    norm = validation.validate_norm(norm)
    order = r"\infty" if math.isinf(norm) else f"{norm:g}"
    return f"${symbol}_{{{order}}}$"


def wrap(
    text: object,
    width: float,
    size: int = TEXT_SIZE,
    max_lines: int | None = None,
) -> str:
    """Breaks lines such that they fit into a width in inches."""
    letter = 0.55 * size / 72  # the mean, in DejaVu Sans
    return textwrap.fill(
        str(text),
        max(int(width / letter), 1),
        max_lines=max_lines,
        placeholder=" …",
    )


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure in the format that the path's ending says."""
    ending = os.path.splitext(path)[1].lower()
    if ending not in _DATES:
        raise ValueError(
            f"path: expected an ending out of {sorted(_DATES)}; received "
            f"{os.fspath(path)!r}."
        )
    figure.savefig(path, dpi=_DPI, metadata=_DATES[ending])
