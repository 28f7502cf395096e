"""How rho spreads over the samples of each class."""

import math
import os
import reprlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from dd_keras.plots.checks import check_series, numbers
from dd_keras.plots.style import (
    PAGE,
    SMALL_SIZE,
    TEXT_SIZE,
    add_legend,
    finish_axes,
    in_styles,
    new_figure,
    rho_symbol,
    save,
    series_style,
    wrap,
)

_BINS = 40
_MOST_PANELS = 20
_PANEL_COLUMNS = 5


def rho_histogram(
    rhos: Mapping[str, ArrayLike],
    labels: ArrayLike,
    path: str | os.PathLike,
    class_names: Sequence[str] | None = None,
    norm: float = 2,
) -> None:
    """Histograms of rho over the samples of each class.

    Each class has a panel with histograms in per cent of its samples, and a
    vertical line at each mean. All panels share bins and axes. Of more than 20
    classes, the 10 least and the 10 most robust are shown, ordered by the mean
    rho over the class's samples and all models.

    Args:
        rhos: dict from a model's name to an array (N,), rho of each sample.
        labels: (N,), integers, the true classes.
        path: file to write; its extension sets the format.
        class_names: names of all classes, in order; by default "class 0", ...
            up to the largest label.
        norm: the order p of rho's norm, for the axis label.

    Raises:
        ValueError: if an argument is not as above.

    Example:
        >>> from dd_keras import plots
        >>> report = dd_keras.evaluate_robustness(
        ...     classifier, x_test, y_test, verbose=0
        ... )
        >>> rhos = {"reference": report.values["rho2"]}
        >>> plots.rho_histogram(rhos, y_test, "histogram.png")
        >>> os.path.exists("histogram.png")
        True
    """
    check_series("rhos", rhos)
    symbol = rho_symbol(norm, r"\rho")
    labels = np.asarray(labels)
    rhos = {
        name: numbers(f"rhos[{name!r}]", values)
        for name, values in rhos.items()
    }
    _check_labels(labels, rhos, class_names)
    if class_names is None:
        class_names = [f"class {k}" for k in range(labels.max() + 1)]
    members = {k: labels == k for k in range(len(class_names))}
    members, caption = _shown(members, np.mean(list(rhos.values()), axis=0))
    rows = math.ceil(len(members) / _PANEL_COLUMNS)
    columns = math.ceil(len(members) / rows)
    figure = new_figure(PAGE, 1.25 * rows + 0.75)
    grid = figure.subplots(
        rows, columns, sharex=True, sharey=True, squeeze=False
    )
    top = max(values.max() for values in rhos.values())
    edges = np.linspace(0, top or 1.0, _BINS + 1)
    styled = in_styles(rhos)
    for axes, (k, chosen) in zip(grid.flat, members.items(), strict=False):
        title = wrap(class_names[k], PAGE / columns - 0.4, max_lines=2)
        # A dollar sign of a name is no formula.
        axes.set_title(title, fontsize=TEXT_SIZE, parse_math=False)
        _panel(
            axes,
            {i: values[chosen] for i, _, values in styled},
            edges,
        )
    for axes in grid.flat[len(members) :]:
        axes.remove()
    for axes in grid.flat[len(members) - columns : len(members)]:
        axes.tick_params(labelbottom=True)  # also above a removed panel
    margin = edges[1]  # keeps the first and the last bin off the frame
    grid[0, 0].set_xlim(-margin, edges[-1] + margin)
    grid[0, 0].set_ylim(bottom=0)
    figure.supxlabel(
        f"{symbol}, the perturbation's norm over the input's. Vertical lines: "
        f"means.{caption}",
        fontsize=TEXT_SIZE,
    )
    figure.supylabel("Share of the class (%)", fontsize=TEXT_SIZE)
    add_legend(
        figure,
        [
            Line2D([], [], label=name, **series_style(i))
            for i, name, _ in styled
        ],
    )
    save(figure, path)


def _check_labels(labels, rhos, class_names):
    for name, values in rhos.items():
        if labels.shape != values.shape:
            raise ValueError(
                f"labels: expected the shape of rhos[{name!r}], "
                f"{values.shape}; received {labels.shape}."
            )
    known = math.inf if class_names is None else len(class_names)
    if not (
        np.issubdtype(labels.dtype, np.integer)
        and np.all((labels >= 0) & (labels < known))
    ):
        raise ValueError(
            f"labels: expected integers in [0, {known}); received "
            f"{reprlib.repr(labels.tolist())}."
        )


def _shown(members, mean):
    """The classes that get a panel, and a caption where these are not all.

    Args:
        members: dict from a class to (N,), bool, which samples are its own.
        mean: (N,), each sample's rho, the mean over all models.
    """
    if len(members) <= _MOST_PANELS:
        return members, ""
    present = [k for k, chosen in members.items() if chosen.any()]
    ranked = sorted(present, key=lambda k: mean[members[k]].mean())
    if len(ranked) > _MOST_PANELS:
        half = _MOST_PANELS // 2
        ranked = ranked[:half] + ranked[-half:]
        caption = f"\nThe {half} least and the {half} most robust"
    else:
        caption = "\nThose with samples, the least robust first,"
    caption += f" of {len(members)} classes."
    return {k: members[k] for k in ranked}, caption


def _panel(axes, series, edges):
    """The histograms of one class, one a model, by the number of its style."""
    finish_axes(axes)
    if not any(values.size for values in series.values()):
        axes.text(
            0.5,
            0.5,
            "no samples",
            transform=axes.transAxes,
            ha="center",
            va="center",
            fontsize=SMALL_SIZE,
        )
        return
    for i, values in series.items():
        _histogram(axes, i, values, edges)


def _histogram(axes, i, values, edges):
    """The outline of a histogram in style i, in per cent, and its mean."""
    counts, _ = np.histogram(values, edges)
    axes.stairs(100 * counts / len(values), edges, **series_style(i))
    axes.axvline(values.mean(), **series_style(i) | {"linewidth": 0.8})
