"""Curves: convergence, success rates, trade-offs (Figures 2 to 6).

And one that the paper does not have: robust accuracy against eps.
"""

import os
import reprlib
from collections.abc import Mapping

import numpy as np
from adjustText import adjust_text
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike

from dd_keras.plots.checks import (
    ROUNDING,
    check_lengths,
    check_series,
    numbers,
)
from dd_keras.plots.style import (
    COLORS,
    COLUMN,
    PAGE,
    SMALL_SIZE,
    add_legend,
    finish_axes,
    in_styles,
    new_figure,
    plot_series,
    rho_symbol,
    save,
    series_style,
    style_numbers,
    wrap,
)

_LABEL_ITERATIONS = 500  # ends by count, not by time: always the same


def convergence_curves(
    histories: Mapping[str, Mapping],
    path: str | os.PathLike,
    norm: float = 2,
) -> None:
    """Test accuracy and rho over the epochs of fine-tuning (Figure 2).

    Args:
        histories: dict from a model's name to a dict with `"accuracy"` (in
            [0, 1]) and `"rho"`, each a sequence over epochs that starts with
            epoch 0, the reference; optionally `"epochs"`, those that they
            are of, increasing. Models may differ in the number of epochs.
        path: file to write; its extension sets the format.
        norm: the order p of rho's norm, for the axis label.

    Raises:
        ValueError: if an argument is not as above.

    Example:
        >>> from dd_keras import plots
        >>> history = {"accuracy": [0.98, 0.97, 0.98], "rho": [0.1, 0.15, 0.2]}
        >>> plots.convergence_curves({"Deep Defense": history}, "figure2.png")
        >>> os.path.exists("figure2.png")
        True
    """
    check_series("histories", histories, ("accuracy", "rho"))
    rho = rho_symbol(norm)
    figure = new_figure(PAGE, 2.8)
    left, right = figure.subplots(1, 2)
    for i, name, history in in_styles(histories):
        where = f"histories[{name!r}]"
        accuracy = numbers(f"{where}['accuracy']", history["accuracy"], 1)
        values = numbers(f"{where}['rho']", history["rho"])
        check_lengths(where, {"accuracy": accuracy, "rho": values})
        epochs = np.arange(len(accuracy))
        if "epochs" in history:
            epochs = numbers(f"{where}['epochs']", history["epochs"])
            _check_increasing(f"{where}['epochs']", epochs)
            check_lengths(where, {"accuracy": accuracy, "epochs": epochs})
        plot_series(left, i, name, epochs, 100 * accuracy)
        plot_series(right, i, name, epochs, values)
    finish_axes(left, "Epoch (0: reference)", "Test accuracy (%)")
    finish_axes(right, "Epoch (0: reference)", f"Test {rho}")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    add_legend(figure, left.get_lines())
    save(figure, path)


def success_rate_curves(
    curves: Mapping[str, Mapping],
    path: str | os.PathLike,
    unit: str = "pixels of 0 to 255",
    eps_ref: float | Mapping[str, float] | None = None,
    width: float = COLUMN,
) -> None:
    """Success rate of FGSM against its step eps (Figure 5).

    Args:
        curves: dict from a model's name to a dict with `"eps"` (E,),
            increasing, and `"success_rate"` (E,), the share of samples in
            [0, 1]; optionally `"low"` and `"high"` (E,), the ends of its 95 %
            confidence interval, drawn as a band.
        path: file to write; its extension sets the format.
        unit: unit of eps, for the axis label.
        eps_ref: an eps to mark by a vertical line, or a dict from names of
            models to one for each; None for none.
        width: width of the figure, in inches.

    Raises:
        ValueError: if an argument is not as above.

    Example:
        >>> from dd_keras import plots
        >>> curve = {"eps": [0.05, 0.1, 0.2], "success_rate": [0.1, 0.4, 0.9]}
        >>> plots.success_rate_curves(
        ...     {"reference": curve}, "figure5.svg", unit="pixels of 0 to 1"
        ... )
        >>> os.path.exists("figure5.svg")
        True
    """
    figure = new_figure(width, 2.5)
    axes = figure.subplots()
    extra = _plot_shares(axes, curves, "success_rate")
    handles = [*axes.get_lines(), *extra]
    if eps_ref is not None:
        handles.append(_mark_eps_ref(axes, eps_ref, list(curves)))
    finish_axes(axes, rf"$\epsilon$ ({unit})", "Success rate (%)")
    add_legend(figure, handles)
    save(figure, path)


def robust_accuracy_curves(
    curves: Mapping[str, Mapping],
    path: str | os.PathLike,
    unit: str = "pixels of 0 to 255",
    norm: float = 2,
    width: float = COLUMN,
) -> None:
    """Robust accuracy against eps.

    Args:
        curves: dict from a model's name to the result of
            `RobustnessReport.robust_accuracy`: a dict with `"eps"` (E,),
            increasing, and `"accuracy"` (E,), in [0, 1]; optionally `"low"`
            and `"high"`, as in `success_rate_curves`.
        path: file to write; its extension sets the format.
        unit: unit of eps, for the axis label.
        norm: the order p of the perturbations' norm, for the axis label.
        width: width of the figure, in inches.

    Raises:
        ValueError: if an argument is not as above.

    Example:
        >>> from dd_keras import plots
        >>> # A curve is what `RobustnessReport.robust_accuracy` returns.
        >>> curve = {"eps": [0.0, 0.5, 1.0], "accuracy": [0.98, 0.4, 0.0]}
        >>> plots.robust_accuracy_curves(
        ...     {"reference": curve}, "robust.pdf", unit="pixels of 0 to 1"
        ... )
        >>> os.path.exists("robust.pdf")
        True
    """
    figure = new_figure(width, 2.5)
    axes = figure.subplots()
    extra = _plot_shares(axes, curves, "accuracy")
    order = r"\infty" if np.isinf(norm) else f"{norm:g}"
    finish_axes(
        axes,
        rf"$\epsilon$, $l_{{{order}}}$ ({unit})",
        "Robust accuracy (%)",
    )
    add_legend(figure, [*axes.get_lines(), *extra])
    save(figure, path)


def trade_off(
    points: Mapping[str, Mapping],
    path: str | os.PathLike,
    norm: float = 2,
    reference: ArrayLike | None = None,
    width: float = COLUMN,
    note: str | None = None,
) -> None:
    """Accuracy against rho over hyper-parameters (Figures 3, 4 and 6).

    Args:
        points: dict from a series' name, such as "lam = 15", to a dict with
            `"accuracy"` (K,), in [0, 1], and `"rho"` (K,), joined by a line in
            this order; optionally `"labels"` (K,), such as "c = 25", written
            next to the points, except empty ones.
        path: file to write; its extension sets the format.
        norm: the order p of rho's norm, for the axis label.
        reference: (rho, accuracy) of the model before fine-tuning, drawn as
            a star; None for none.
        width: width of the figure, in inches.
        note: a text below the figure; None for none.

    Raises:
        ValueError: if an argument is not as above.

    Example:
        >>> from dd_keras import plots
        >>> series = {
        ...     "accuracy": [0.98, 0.96], "rho": [0.2, 0.3],
        ...     "labels": ["c = 25", "c = 5"],
        ... }
        >>> plots.trade_off(
        ...     {"lam = 15": series}, "figure3.png", reference=(0.1, 0.98)
        ... )
        >>> os.path.exists("figure3.png")
        True
    """
    check_series("points", points, ("accuracy", "rho"))
    rho = rho_symbol(norm)
    # Labels need room.
    labelled = any("labels" in entry for entry in points.values())
    figure = new_figure(width, 3.2 if labelled else 2.5)
    axes = figure.subplots()
    axes.margins(0.12)
    labels = []
    for i, name, entry in in_styles(points):
        where = f"points[{name!r}]"
        x = numbers(f"{where}['rho']", entry["rho"])
        y = 100 * numbers(f"{where}['accuracy']", entry["accuracy"], 1)
        texts = [str(text) for text in entry.get("labels", [""] * len(x))]
        check_lengths(where, {"accuracy": y, "rho": x, "labels": texts})
        plot_series(axes, i, name, x, y)
        labels += [
            (*label, COLORS[i % len(COLORS)])
            for label in zip(x, y, texts, strict=True)
            if label[2]
        ]
    handles = axes.get_lines()
    if reference is not None:
        reference = numbers("reference", reference)
        if len(reference) != 2 or reference[1] > 1:
            raise ValueError(
                "reference: expected (rho, accuracy), the accuracy in [0, 1]; "
                f"received {reference.tolist()}."
            )
        x, y = reference
        for line in (axes.axvline(x), axes.axhline(100 * y)):
            line.set(color="0.4", linestyle="--", linewidth=0.8, zorder=1)
        handles = [
            *handles,
            *axes.plot(x, 100 * y, "*k", markersize=9, label="reference"),
        ]
    finish_axes(axes, f"Test {rho}", "Test accuracy (%)")
    if note is not None:
        figure.supxlabel(wrap(note, width, SMALL_SIZE), fontsize=SMALL_SIZE)
    add_legend(figure, handles)
    _write_beside(axes, labels)
    save(figure, path)


def _check_increasing(name, values):
    if np.any(np.diff(values) <= 0):
        raise ValueError(
            f"{name}: expected increasing numbers; received "
            f"{reprlib.repr(values.tolist())}."
        )


def _mark_eps_ref(axes, eps_ref, names):
    """Vertical lines at eps_ref; returns the legend's entry."""
    common = not isinstance(eps_ref, Mapping)
    marks = {None: eps_ref} if common else eps_ref
    styles = dict(zip(names, style_numbers(names), strict=True))
    for name, eps in marks.items():
        if not common and name not in names:
            raise ValueError(
                f"eps_ref: expected names out of {names}; received {name!r}."
            )
        (eps,) = numbers("eps_ref", [eps])
        color = "0.4" if common else series_style(styles[name])["color"]
        axes.axvline(eps, color=color, linestyle=":", linewidth=1, zorder=1)
    return Line2D(
        [], [], color="0.4", linestyle=":", label=r"$\epsilon_{\mathrm{ref}}$"
    )


def _write_beside(axes, labels):
    """Writes a text beside each point, clear of points and other texts.

    Args:
        axes: with the points.
        labels: list of (x, y, text, the series' colour).
    """
    if not labels:
        return
    figure = axes.get_figure()
    FigureCanvasAgg(figure)  # measures texts
    figure.draw_without_rendering()  # places the axes,
    figure.set_layout_engine("none")  # for good
    x, y, *_ = zip(*labels, strict=True)
    notes = [
        axes.text(
            *at,
            text,
            fontsize=SMALL_SIZE,
            # Small letters need more contrast than lines.
            color=tuple(0.65 * np.array(to_rgb(color))),
            path_effects=[withStroke(linewidth=1.5, foreground="white")],
        )
        for *at, text, color in labels
    ]
    adjust_text(
        notes,
        x,
        y,
        ax=axes,
        iter_lim=_LABEL_ITERATIONS,
        expand=(1.3, 1.5),
        arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "0.4"},
    )


def _plot_shares(axes, curves, key):
    """Draws shares against eps, with their intervals; returns legend entries.

    Args and Raises: see `success_rate_curves`; `key` is the share's name.
    """
    check_series("curves", curves, ("eps", key))
    extra: list = []  # legend entries that all models share
    for i, name, curve in in_styles(curves):
        where = f"curves[{name!r}]"
        eps = numbers(f"{where}['eps']", curve["eps"])
        _check_increasing(f"{where}['eps']", eps)
        rates = {
            which: numbers(f"{where}[{which!r}]", curve[which], 1)
            for which in (key, "low", "high")
            if which in curve
        }
        check_lengths(where, {"eps": eps} | rates)
        plot_series(axes, i, name, eps, 100 * rates[key])
        if len(rates) == 1:
            continue
        ends = ("low", key, "high")
        if len(rates) == 2 or np.any(
            np.diff([rates[e] for e in ends], axis=0) < -ROUNDING
        ):
            raise ValueError(
                f"{where}: expected 'low' <= {key!r} <= 'high', or neither "
                f"'low' nor 'high'; received {reprlib.repr(curve)}."
            )
        band = eps, 100 * rates["low"], 100 * rates["high"]
        color = COLORS[i % len(COLORS)]
        if len(eps) > 1:
            axes.fill_between(*band, color=color, alpha=0.2, linewidth=0)
        else:
            axes.vlines(*band, color=color, linewidth=2, alpha=0.5)
        if not extra:
            extra.append(Patch(color="0.8", label="95 % confidence"))
    return extra
