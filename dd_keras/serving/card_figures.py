"""The figures of a model card: what its report measured, drawn."""

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dd_keras.utils import text

_WIDTH = 4.6  # inches
_UNIT = "units of the inputs"


def draw(
    report: Any, directory: str, name: str, class_names: Sequence[str] | None
) -> dict[str, str]:
    """Draws what a report has: accuracy and FGSM against eps, rho by class.

    Args:
        report: `RobustnessReport`.
        directory: where the figures are written, as PNG.
        name: what the names of their files begin with.
        class_names: of all classes, in their order; None: their numbers.

    Returns:
        dict from the names of the files to titles; empty without matplotlib.
    """
    try:
        from dd_keras import plots
    except ImportError:
        return {}
    drawn = {}
    for ending, (title, plot) in _figures(report, class_names, plots).items():
        file = f"{name}_{ending}.png"
        with warnings.catch_warnings():
            # A name of a class may have letters that the font lacks.
            warnings.filterwarnings("ignore", "Glyph .* missing")
            plot(os.path.join(directory, file))
        drawn[file] = title
    return drawn


def _figures(
    report: Any, class_names: Sequence[str] | None, plots: Any
) -> dict[str, tuple[str, Callable[[str], None]]]:
    """The figures there are: (title, function that draws to a path)."""
    found: dict[str, tuple[str, Callable[[str], None]]] = {}
    metric = _distance_metric(report)
    if metric is not None:
        curve = report.robust_accuracy(distance=metric.distance_name)
        if _drawable(curve, "accuracy"):
            found["accuracy"] = (
                f"Robust accuracy against eps, by {metric.distance_name}",
                lambda path: plots.robust_accuracy_curves(
                    {metric.distance_name: curve},
                    path,
                    _UNIT,
                    _norm_of(metric),
                    _WIDTH,
                ),
            )
    with contextlib.suppress(ValueError):  # a report without "fgsm"
        rates = report.success_rate()
        if _drawable(rates, "success_rate"):
            found["fgsm"] = (
                "Success rate of FGSM against eps",
                lambda path: plots.success_rate_curves(
                    {"FGSM": rates}, path, _UNIT, width=_WIDTH
                ),
            )
    if metric is not None:
        rho = report.values[metric.name]
        known = np.isfinite(rho)
        names = class_names and list(map(text.printable, class_names))
        if known.any():
            found["rho"] = (
                f"{metric.name} of each sample, by class",
                lambda path: plots.rho_histogram(
                    {metric.name: rho[known]},
                    report.labels[known],
                    path,
                    names,
                    _norm_of(metric),
                ),
            )
    return found


def _distance_metric(report):
    """The metric whose distances are drawn: the best known, in l_2, first."""
    known = [m for m in report.metrics if m.distance_name]

    def rank(metric):
        return not metric.name.endswith("_best"), _norm_of(metric) != 2

    return min(known, key=rank, default=None)


def _norm_of(metric):
    """The order of the norm of a metric's distances."""
    norm = getattr(metric, "norm", None)
    return norm or getattr(metric.attack, "norm", math.inf)


def _drawable(curve, share):
    """Whether something was found, and samples count."""
    return bool(
        len(curve["eps"]) > 1
        and np.all(np.diff(curve["eps"]) > 0)
        and np.all(np.isfinite(curve[share]))
    )
