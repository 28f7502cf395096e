"""Accuracy against robustness, of several measures, side by side."""

import math
import os
from collections.abc import Mapping

import numpy as np

from dd_keras.plots.checks import check_lengths, check_series, numbers
from dd_keras.plots.style import (
    COLORS,
    PAGE,
    SMALL_SIZE,
    add_legend,
    finish_axes,
    in_styles,
    new_figure,
    plot_series,
    save,
)


def frontier(
    points: Mapping[str, Mapping],
    measures: Mapping[str, str],
    path: str | os.PathLike,
    reference: Mapping[str, float] | None = None,
    least_accuracy: float = 0.0,
    width: float = PAGE,
) -> None:
    """Accuracy against measures of robustness, one panel per measure.

    Args:
        points: dict from a series' name, such as "PGD training", to a dict
            with `"accuracy"` (K,), in [0, 1], and the values (K,) of each
            measure, joined by a line in this order; optionally `"labels"`
            (K,), such as "c = 25", for the points of the first panel.
        measures: dict from a measure's key to its axis label. If the label
            ends in "(%)", values are shares in [0, 1].
        path: file to write; its extension sets the format.
        reference: dict with `"accuracy"` and each measure of the model before
            fine-tuning, drawn as a star; None for none.
        least_accuracy: in [0, 1]; points below it are omitted, and a note
            gives their number.
        width: width of the figure, in inches.

    Raises:
        ValueError: if an argument is not as above.

    Example:
        >>> from dd_keras import plots
        >>> pgd = {"accuracy": [0.98, 0.9], "rho": [0.2, 0.3], "aa": [0.5, 0.6]}
        >>> plots.frontier(
        ...     {"PGD training": pgd},
        ...     {"rho": "rho", "aa": "AutoAttack (%)"},
        ...     "frontier.png",
        ... )
        >>> os.path.exists("frontier.png")
        True
    """
    check_series("points", points, ("accuracy", *measures))
    figure = new_figure(width, 3.0)
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    left_out = 0
    for axes, (key, title) in zip(panels, measures.items(), strict=True):
        axes.margins(0.1)
        scale, most = (100, 1) if title.endswith("(%)") else (1, math.inf)
        for i, name, entry in in_styles(points):
            where = f"points[{name!r}]"
            x = scale * numbers(f"{where}[{key!r}]", entry[key], most)
            y = 100 * numbers(f"{where}['accuracy']", entry["accuracy"], 1)
            texts = entry.get("labels", [""] * len(x))
            check_lengths(where, {"accuracy": y, key: x, "labels": texts})
            shown = y >= 100 * least_accuracy
            plot_series(axes, i, name, x[shown], y[shown])
            if axes is panels[0]:
                left_out += len(x) - np.count_nonzero(shown)
                _annotate(axes, i, x[shown], y[shown], np.array(texts)[shown])
        handles = axes.get_lines()
        if reference is not None:
            (x,) = numbers(f"reference[{key!r}]", [reference[key]], most)
            (y,) = numbers("reference['accuracy']", [reference["accuracy"]], 1)
            star = axes.plot(
                scale * x, 100 * y, "*k", markersize=9, label="reference"
            )
            handles = [*handles, *star]
        finish_axes(axes, title, "Test accuracy (%)" * (axes is panels[0]))
    if left_out:
        figure.supxlabel(
            f"{left_out} points below {100 * least_accuracy:.4g} % are left "
            "out.",
            fontsize=SMALL_SIZE,
        )
    add_legend(figure, handles)
    save(figure, path)


def _annotate(axes, i, x, y, texts):
    """Writes a text beside each point of series i."""
    for *at, text in zip(x, y, texts, strict=True):
        axes.annotate(
            str(text),
            at,
            xytext=(3, 2),
            textcoords="offset points",
            fontsize=SMALL_SIZE - 1,
            color=COLORS[i % len(COLORS)],
        )
