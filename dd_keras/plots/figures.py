"""The paper's figures, drawn from numbers already computed.

Every figure is written to `path`, in the format that its ending says: .png,
.pdf or .svg. Sizes are those of print: a column is 3.3 inches wide, a page 7.
"""

import collections.abc
import math
import os
import reprlib
import textwrap

import numpy as np
from adjustText import adjust_text
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from dd_keras.utils import validation

_COLUMN, _PAGE = 3.3, 7.0  # inches
_TEXT, _SMALL = 8, 7  # points
_DPI = 200

# Okabe and Ito's palette, told apart under every colour blindness; markers
# and lines tell the series apart in grey. The numbers of colours and of lines
# have no common factor, so the first 30 series differ in at least one.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_LINES = ("-", "--", "-.", ":", (0, (4, 1, 1, 1, 1, 1)))

_BINS = 40
_MOST_PANELS = 20
_PANEL_COLUMNS = 5
_LABEL_ITERATIONS = 500  # ends by count, not by time: always the same

_ROUNDING = 1e-6  # of a share near 0 or 1, computed in float32

# The date of writing, which would make two files of one figure differ.
_DATES = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}, ".png": None}


def convergence_curves(histories, path, norm=2):
    """Test accuracy and rho over the epochs of fine-tuning (Figure 2).

    Args:
        histories: dict from a model's name to a dict with `"accuracy"` (in
            [0, 1]) and `"rho"`, each a sequence over epochs that starts with
            epoch 0, the reference. Models may differ in epochs.
        path: file to write; its ending says the format.
        norm: the order p of rho's norm, for the axis label.

    Raises:
        ValueError: if an argument is not as above.
    """
    _check_series("histories", histories, ("accuracy", "rho"))
    rho = _rho(norm)
    figure = _figure(_PAGE, 2.8)
    left, right = figure.subplots(1, 2)
    for i, (name, history) in enumerate(histories.items()):
        where = f"histories[{name!r}]"
        accuracy = _numbers(f"{where}['accuracy']", history["accuracy"], 1)
        values = _numbers(f"{where}['rho']", history["rho"])
        _check_lengths(where, {"accuracy": accuracy, "rho": values})
        _plot(left, i, name, range(len(accuracy)), 100 * accuracy)
        _plot(right, i, name, range(len(values)), values)
    _finish(left, "Epoch (0: reference)", "Test accuracy (%)")
    _finish(right, "Epoch (0: reference)", f"Test {rho}")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(figure, left.get_lines())
    _save(figure, path)


def success_rate_curves(
    curves, path, unit="pixels of 0 to 255", eps_ref=None, width=_COLUMN
):
    """Success rate of FGSM against its step eps (Figure 5).

    Args:
        curves: dict from a model's name to a dict with `"eps"` (E,),
            increasing, and `"success_rate"` (E,), the share of samples in
            [0, 1]; optionally `"low"` and `"high"` (E,), the ends of its 95 %
            confidence interval, drawn as a band.
        path: file to write; its ending says the format.
        unit: of eps, that of the inputs, for the axis label.
        eps_ref: an eps to mark by a vertical line, or a dict from names of
            models to theirs.
        width: of the figure, in inches.

    Raises:
        ValueError: if an argument is not as above.
    """
    _check_series("curves", curves, ("eps", "success_rate"))
    figure = _figure(width, 2.5)
    axes = figure.subplots()
    extra = []  # legend entries that all models share
    for i, (name, curve) in enumerate(curves.items()):
        where = f"curves[{name!r}]"
        eps = _numbers(f"{where}['eps']", curve["eps"])
        if np.any(np.diff(eps) <= 0):
            raise ValueError(
                f"{where}['eps']: expected increasing numbers; received "
                f"{reprlib.repr(eps.tolist())}."
            )
        rates = {
            key: _numbers(f"{where}[{key!r}]", curve[key], 1)
            for key in ("success_rate", "low", "high")
            if key in curve
        }
        _check_lengths(where, {"eps": eps} | rates)
        _plot(axes, i, name, eps, 100 * rates["success_rate"])
        if len(rates) == 1:
            continue
        ends = ("low", "success_rate", "high")
        if len(rates) == 2 or np.any(
            np.diff([rates[e] for e in ends], axis=0) < -_ROUNDING
        ):
            raise ValueError(
                f"{where}: expected 'low' <= 'success_rate' <= 'high', or "
                f"neither 'low' nor 'high'; received {reprlib.repr(curve)}."
            )
        axes.fill_between(
            eps,
            100 * rates["low"],
            100 * rates["high"],
            color=_COLORS[i % len(_COLORS)],
            alpha=0.2,
            linewidth=0,
        )
        if not extra:
            extra.append(Patch(color="0.8", label="95 % confidence"))
    handles = [*axes.get_lines(), *extra]
    if eps_ref is not None:
        handles.append(_mark_eps_ref(axes, eps_ref, list(curves)))
    _finish(axes, rf"$\epsilon$ ({unit})", "Success rate (%)")
    _legend(figure, handles)
    _save(figure, path)


def trade_off(points, path, norm=2, reference=None, width=_COLUMN, note=None):
    """Accuracy against rho over hyper-parameters (Figures 3, 4 and 6).

    Args:
        points: dict from a series' name, as "lam = 15", to a dict with
            `"accuracy"` (K,), in [0, 1], and `"rho"` (K,), joined by a line in
            this order; optionally `"labels"` (K,), as "c = 25", written
            beside the points, empty ones not.
        path: file to write; its ending says the format.
        norm: the order p of rho's norm, for the axis label.
        reference: (rho, accuracy) of the model before fine-tuning, drawn as
            a star.
        width: of the figure, in inches.
        note: a text below it; None: none.

    Raises:
        ValueError: if an argument is not as above.
    """
    _check_series("points", points, ("accuracy", "rho"))
    rho = _rho(norm)
    # Labels need room.
    labelled = any("labels" in entry for entry in points.values())
    figure = _figure(width, 3.2 if labelled else 2.5)
    axes = figure.subplots()
    axes.margins(0.12)
    labels = []
    for i, (name, entry) in enumerate(points.items()):
        where = f"points[{name!r}]"
        x = _numbers(f"{where}['rho']", entry["rho"])
        y = 100 * _numbers(f"{where}['accuracy']", entry["accuracy"], 1)
        texts = [str(text) for text in entry.get("labels", [""] * len(x))]
        _check_lengths(where, {"accuracy": y, "rho": x, "labels": texts})
        _plot(axes, i, name, x, y)
        labels += [
            (*label, _COLORS[i % len(_COLORS)])
            for label in zip(x, y, texts, strict=True)
            if label[2]
        ]
    handles = axes.get_lines()
    if reference is not None:
        reference = _numbers("reference", reference)
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
    _finish(axes, f"Test {rho}", "Test accuracy (%)")
    if note is not None:
        figure.supxlabel(_wrap(note, width, _SMALL), fontsize=_SMALL)
    _legend(figure, handles)
    _write_beside(axes, labels)
    _save(figure, path)


def rho_histogram(rhos, labels, path, class_names=None, norm=2):
    """How rho spreads over the samples of each class.

    A panel a class, its histograms in per cent of the class, all panels with
    the same bins and axes; a vertical line at each mean. Of more than 20
    classes, it shows the 10 least and the 10 most robust, by the mean rho over
    the class's samples and all models, in this order.

    Args:
        rhos: dict from a model's name to (N,), its rho of each sample.
        labels: (N,), integers, the true classes.
        path: file to write; its ending says the format.
        class_names: names of all classes, in their order; by default
            "class 0", ... up to the largest label.
        norm: the order p of rho's norm, for the axis label.

    Raises:
        ValueError: if an argument is not as above.
    """
    _check_series("rhos", rhos)
    symbol = _rho(norm, r"\rho")
    labels = np.asarray(labels)
    rhos = {
        name: _numbers(f"rhos[{name!r}]", values)
        for name, values in rhos.items()
    }
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
    if class_names is None:
        class_names = [f"class {k}" for k in range(labels.max() + 1)]
    members = {k: labels == k for k in range(len(class_names))}
    caption = ""
    if len(members) > _MOST_PANELS:
        mean = np.mean(list(rhos.values()), axis=0)  # (N,)
        present = [k for k, chosen in members.items() if chosen.any()]
        ranked = sorted(present, key=lambda k: mean[members[k]].mean())
        if len(ranked) > _MOST_PANELS:
            half = _MOST_PANELS // 2
            ranked = ranked[:half] + ranked[-half:]
            caption = f"\nThe {half} least and the {half} most robust"
        else:
            caption = "\nThose with samples, the least robust first,"
        caption += f" of {len(members)} classes."
        members = {k: members[k] for k in ranked}

    rows = math.ceil(len(members) / _PANEL_COLUMNS)
    columns = math.ceil(len(members) / rows)
    figure = _figure(_PAGE, 1.25 * rows + 0.75)
    grid = figure.subplots(
        rows, columns, sharex=True, sharey=True, squeeze=False
    )
    top = max(values.max() for values in rhos.values())
    edges = np.linspace(0, top or 1.0, _BINS + 1)
    margin = edges[1]  # keeps the first and the last bin off the frame
    for axes, (k, chosen) in zip(grid.flat, members.items(), strict=False):
        _finish(axes)
        axes.set_title(
            _wrap(class_names[k], _PAGE / columns - 0.4, max_lines=2),
            fontsize=_TEXT,
        )
        for i, values in enumerate(rhos.values()):
            if chosen.any():
                _histogram(axes, i, values[chosen], edges)
        if not chosen.any():
            axes.text(
                0.5,
                0.5,
                "no samples",
                transform=axes.transAxes,
                ha="center",
                va="center",
                fontsize=_SMALL,
            )
    for axes in grid.flat[len(members) :]:
        axes.remove()
    for axes in grid.flat[len(members) - columns : len(members)]:
        axes.tick_params(labelbottom=True)  # also above a removed panel
    grid[0, 0].set_xlim(-margin, edges[-1] + margin)
    grid[0, 0].set_ylim(bottom=0)
    figure.supxlabel(
        f"{symbol}, the perturbation's norm over the input's. Vertical lines: "
        f"means.{caption}",
        fontsize=_TEXT,
    )
    figure.supylabel("Share of the class (%)", fontsize=_TEXT)
    _legend(
        figure,
        [Line2D([], [], label=n, **_style(i)) for i, n in enumerate(rhos)],
    )
    _save(figure, path)


def adversarial_images(images, labels, attacked, path):
    """Clean images, perturbations and adversarial images (Figure 7).

    Up to three models fit the width of a page; more make a wider figure.

    Args:
        images: (N, H, W, C), pixels 0 to 255; C is 1 or 3.
        labels: (N,), the true classes.
        attacked: dict from a model's name to a dict with `"perturbation"`
            (N, H, W, C), in pixels, `"clean"` and `"adversarial"` (N,), the
            classes before and after, and `"rho"` (N,).
        path: file to write; its ending says the format.

    Raises:
        ValueError: if an argument is not as above.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
        raise ValueError(
            "images: expected shape (N, H, W, 1) or (N, H, W, 3), none of them "
            f"0; received {images.shape}."
        )
    _numbers("images", images.ravel(), 255)
    _check_series(
        "attacked", attacked, ("perturbation", "clean", "adversarial", "rho")
    )
    _check_lengths("labels", {"images": images, "labels": labels})
    for name, found in attacked.items():
        where = f"attacked[{name!r}]"
        change = np.asarray(found["perturbation"])
        if change.shape != images.shape:
            raise ValueError(
                f"{where}['perturbation']: expected the images' shape "
                f"{images.shape}; received {change.shape}."
            )
        _numbers(f"{where}['perturbation']", change.ravel(), low=-math.inf)
        _numbers(f"{where}['rho']", found["rho"])
        _check_lengths(where, {"images": images, **found})

    columns = 1 + 2 * len(attacked)
    width = min(1.25, max(_PAGE / columns, 1.0))  # of a column, in inches
    names = [_wrap(f"{name}:", width) for name in attacked]
    # One colour scale for all perturbations, so that sizes can be compared.
    limit = max(np.abs(a["perturbation"]).max() for a in attacked.values())
    limit = max(float(limit), np.finfo(np.float32).tiny)
    colors = (
        "blue darkens, red brightens" if images.shape[-1] == 1 else "from grey"
    )
    caption = _wrap(
        f"Perturbations: {colors}, by up to {limit:.0f} of 255. Adversarial "
        "images: clipped to 0 to 255.",
        width * columns,
        _SMALL,
    )
    lines = max(name.count("\n") for name in names) + caption.count("\n")
    figure = _figure(
        width * columns,
        (width + 0.2) * len(images) + 0.4 + 0.16 * lines,
        "compressed",  # as images keep their shape
    )
    grid = figure.subplots(len(images), columns, squeeze=False)
    for row, image in enumerate(images):
        _show(grid[row, 0], image / 255, f"label {labels[row]}")
        for column, found in enumerate(attacked.values()):
            change = np.asarray(found["perturbation"][row])
            axes = grid[row, 1 + 2 * column]
            _show(
                axes,
                0.5 + change / (2 * limit),
                rf"$\rho$ = {found['rho'][row]:.2f}",
                "RdBu_r",
            )
            _show(
                grid[row, 2 + 2 * column],
                (image + change) / 255,
                f"{found['clean'][row]} → {found['adversarial'][row]}",
            )
    grid[0, 0].set_title("clean", fontsize=_TEXT)
    for column, name in enumerate(names):
        for offset, what in ((1, "perturbation"), (2, "adversarial")):
            grid[0, offset + 2 * column].set_title(
                f"{name}\n{what}", fontsize=_TEXT
            )
    figure.supxlabel(caption, fontsize=_SMALL)
    _save(figure, path)


def _figure(width, height, layout="constrained"):
    return Figure(figsize=(width, height), dpi=_DPI, layout=layout)


def _style(i):
    return {
        "color": _COLORS[i % len(_COLORS)],
        "linestyle": _LINES[i % len(_LINES)],
        "linewidth": 1.2,
    }


def _plot(axes, i, name, x, y):
    """The curve of series i."""
    marker = _MARKERS[i % len(_MARKERS)]
    axes.plot(x, y, label=name, marker=marker, markersize=3.5, **_style(i))


def _histogram(axes, i, values, edges):
    """The outline of series i's histogram, in per cent, and its mean."""
    counts, _ = np.histogram(values, edges)
    axes.stairs(100 * counts / len(values), edges, **_style(i))
    axes.axvline(values.mean(), **_style(i) | {"linewidth": 0.8})


def _mark_eps_ref(axes, eps_ref, names):
    """Vertical lines at eps_ref; returns the legend's entry."""
    common = not isinstance(eps_ref, collections.abc.Mapping)
    marks = {None: eps_ref} if common else eps_ref
    for name, eps in marks.items():
        if not common and name not in names:
            raise ValueError(
                f"eps_ref: expected names out of {names}; received {name!r}."
            )
        (eps,) = _numbers("eps_ref", [eps])
        color = "0.4" if common else _COLORS[names.index(name) % len(_COLORS)]
        axes.axvline(eps, color=color, linestyle=":", linewidth=1, zorder=1)
    return Line2D(
        [], [], color="0.4", linestyle=":", label=r"$\epsilon_{\mathrm{ref}}$"
    )


def _finish(axes, x_label="", y_label=""):
    axes.set_xlabel(x_label, fontsize=_TEXT)
    axes.set_ylabel(y_label, fontsize=_TEXT)
    axes.tick_params(labelsize=_SMALL)
    axes.grid(alpha=0.3)


def _legend(figure, handles):
    """A legend above all axes, in as few rows as the width takes."""
    width = figure.get_figwidth() - 0.5  # without handle
    names = [_wrap(handle.get_label(), width) for handle in handles]
    for rows in range(1, len(handles) + 1):
        legend = figure.legend(
            handles,
            names,
            loc="outside upper center",
            ncols=math.ceil(len(handles) / rows),
            frameon=False,
            fontsize=_TEXT,
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
            fontsize=_SMALL,
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


def _show(axes, image, label, color_map="gray"):
    """One image in [0, 1], with its label below."""
    image = np.clip(image, 0, 1)
    axes.imshow(
        image[..., 0] if image.shape[-1] == 1 else image,
        cmap=color_map,
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(label, fontsize=_TEXT)


def _rho(norm, symbol=r"\hat\rho"):
    """The symbol of rho_p (with a hat: of its mean over a data set, Eq. 7)."""
    norm = validation.validate_norm(norm)
    order = r"\infty" if math.isinf(norm) else f"{norm:g}"
    return f"${symbol}_{{{order}}}$"


def _wrap(text, width, size=_TEXT, max_lines=None):
    """Breaks lines such that they fit into a width in inches."""
    letter = 0.55 * size / 72  # the mean, in DejaVu Sans
    return textwrap.fill(
        str(text),
        max(int(width / letter), 1),
        max_lines=max_lines,
        placeholder=" …",
    )


def _save(figure, path):
    ending = os.path.splitext(path)[1].lower()
    if ending not in _DATES:
        raise ValueError(
            f"path: expected an ending out of {sorted(_DATES)}; received "
            f"{os.fspath(path)!r}."
        )
    figure.savefig(path, dpi=_DPI, metadata=_DATES[ending])


def _check_series(name, series, keys=()):
    """Checks a dict of at least one series, each a dict with the keys."""
    if not isinstance(series, collections.abc.Mapping) or not series:
        raise ValueError(
            f"{name}: expected a dict with at least one entry; received "
            f"{reprlib.repr(series)}."
        )
    for label, entry in series.items():
        if any(key not in entry for key in keys):
            raise ValueError(
                f"{name}[{label!r}]: expected the keys {list(keys)}; received "
                f"{list(entry)}."
            )


def _numbers(name, values, high=math.inf, low=0.0):
    """The values as an array (n,), checked to be finite and in [low, high]."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        array = None
    if array is None or array.ndim != 1 or not array.size:
        raise ValueError(
            f"{name}: expected at least one number, in one dimension; received "
            f"{reprlib.repr(values)}."
        )
    within = (low - _ROUNDING <= array) & (array <= high + _ROUNDING)
    wrong = ~(np.isfinite(array) & within)
    if wrong.any():
        raise ValueError(
            f"{name}: expected finite numbers in [{low:g}, {high:g}]; received "
            f"{array[wrong][0]:g}."
        )
    return array


def _check_lengths(name, values):
    """Checks that all in a dict of sequences have the same length."""
    lengths = {key: len(value) for key, value in values.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"{name}: expected the same length of all; received {lengths}."
        )
