"""Images and what fools classifiers on them (Figure 7), in two forms."""

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np

from dd_keras.plots.checks import check_lengths, check_series, numbers
from dd_keras.plots.style import (
    PAGE,
    SMALL_SIZE,
    TEXT_SIZE,
    new_figure,
    save,
    wrap,
)

_ON_ONE_LINE = 10  # characters of two classes that fit below an image


def adversarial_images(
    images: np.ndarray,
    labels: Sequence[int],
    attacked: Mapping[str, Mapping],
    path: str | os.PathLike,
    class_names: Sequence[str] | None = None,
) -> None:
    """Clean images, perturbations and adversarial images (Figure 7).

    The perturbations of a row are amplified by one factor, which is printed
    below them, so that the largest pixel is clearly visible. Up to three
    models fit the width of a page; more make a wider figure.

    Args:
        images: (N, H, W, C), pixels 0 to 255; C is 1 or 3.
        labels: (N,), the true classes.
        attacked: dict from a model's name to a dict with `"perturbation"`
            (N, H, W, C), in pixels; `"clean"` and `"adversarial"` (N,), the
            classes predicted before and after the attack; and `"rho"` (N,).
        path: file to write; its extension sets the format.
        class_names: names of all classes, in order; None: their numbers.

    Raises:
        ValueError: if an argument is not as above.

    Example:
        >>> from dd_keras import plots
        >>> x = x_test[:3]
        >>> found = dd_keras.attacks.DeepFool().run(classifier, x)
        >>> l2 = tf.norm(tf.reshape(found.perturbation, (3, -1)), axis=1)
        >>> attacked = {
        ...     "perturbation": 255 * found.perturbation.numpy(),
        ...     "clean": found.predictions.numpy(),
        ...     "adversarial": np.argmax(classifier(x + found.perturbation), 1),
        ...     "rho": l2 / tf.norm(x.reshape(3, -1), axis=1),
        ... }
        >>> plots.adversarial_images(
        ...     255 * x, y_test[:3], {"reference": attacked}, "figure7.png"
        ... )
        >>> os.path.exists("figure7.png")
        True
    """
    images = _pixels("images", images, ("N", "H", "W"))
    check_series(
        "attacked", attacked, ("perturbation", "clean", "adversarial", "rho")
    )
    check_lengths("labels", {"images": images, "labels": labels})
    for name, found in attacked.items():
        where = f"attacked[{name!r}]"
        _check_change(where, found, "the images'", images.shape)
        numbers(f"{where}['rho']", found["rho"])
        check_lengths(where, {"images": images, **found})

    columns = 1 + 2 * len(attacked)
    width = min(1.25, max(PAGE / columns, 1.0))  # of a column, in inches
    names = [wrap(f"{name}:", width) for name in attacked]
    colors = "blue darkens, red brightens, " if images.shape[-1] == 1 else ""
    caption = wrap(
        f"Perturbations: {colors}amplified by the factor below them. "
        "Adversarial images: as they are, clipped to 0 to 255.",
        width * columns,
        SMALL_SIZE,
    )
    lines = max(name.count("\n") for name in names) + caption.count("\n")
    figure = new_figure(
        width * columns,
        (width + 0.2) * len(images) + 0.4 + 0.16 * lines,
        "compressed",  # as images keep their shape
    )
    grid = figure.subplots(len(images), columns, squeeze=False)
    for row, image in enumerate(images):
        changes = [
            np.asarray(a["perturbation"][row]) for a in attacked.values()
        ]
        factor = _factor(changes)
        name = _name(labels[row], class_names)
        _show(grid[row, 0], image / 255, f"label {name}")
        for column, found in enumerate(attacked.values()):
            change = changes[column]
            _show(
                grid[row, 1 + 2 * column],
                0.5 + factor * change / 255,
                rf"$\rho$ = {found['rho'][row]:.2g}, ×{factor:.2g}",
                "RdBu_r",
            )
            before, after = (
                _name(found[when][row], class_names)
                for when in ("clean", "adversarial")
            )
            line_break = "\n" if len(before + after) > _ON_ONE_LINE else " "
            _show(
                grid[row, 2 + 2 * column],
                (image + change) / 255,
                f"{before}{line_break}→ {after}",
            )
    grid[0, 0].set_title("clean", fontsize=TEXT_SIZE)
    for column, name in enumerate(names):
        for offset, what in ((1, "perturbation"), (2, "adversarial")):
            grid[0, offset + 2 * column].set_title(
                f"{name}\n{what}", fontsize=TEXT_SIZE
            )
    figure.supxlabel(caption, fontsize=SMALL_SIZE)
    save(figure, path)


def fooling_images(
    image: np.ndarray,
    label: int,
    attacked: Mapping[str, Mapping[str, Mapping]],
    path: str | os.PathLike,
    class_names: Sequence[str] | None = None,
) -> None:
    """One image, and what fools each of several models on it (Figure 7).

    Args:
        image: (H, W, C), pixels 0 to 255; C is 1 or 3.
        label: its true class.
        attacked: dict from the name of a row, such as a network's, to a dict
            from a model's name to a dict with `"perturbation"` (H, W, C), in
            pixels, `"adversarial"`, the class it leads to, and `"rho"`. All
            rows have the same models, of which each is a column.
        path: file to write; its extension sets the format.
        class_names: names of all classes, in order; None: their numbers.

    Raises:
        ValueError: if an argument is not as above.

    Example:
        >>> from dd_keras import plots
        >>> found = dd_keras.attacks.DeepFool().run(classifier, x_test[:1])
        >>> l2 = np.linalg.norm(found.perturbation)
        >>> reference = {
        ...     "perturbation": 255 * found.perturbation[0].numpy(),
        ...     "adversarial": np.argmax(
        ...         classifier(x_test[:1] + found.perturbation)
        ...     ),
        ...     "rho": l2 / np.linalg.norm(x_test[0]),
        ... }
        >>> plots.fooling_images(
        ...     255 * x_test[0], y_test[0], {"CNN": {"reference": reference}},
        ...     "figure7.png",
        ... )
        >>> os.path.exists("figure7.png")
        True
    """
    image = _pixels("image", image, ("H", "W"))
    check_series("attacked", attacked)
    models = list(next(iter(attacked.values())))
    for row, found in attacked.items():
        where = f"attacked[{row!r}]"
        check_series(where, found, ("perturbation", "adversarial", "rho"))
        if list(found) != models:
            raise ValueError(
                f"{where}: expected the models {models}; received "
                f"{list(found)}."
            )
        for name, each in found.items():
            _check_change(
                f"{where}[{name!r}]", each, "the image's", image.shape
            )
    columns = 1 + len(models)
    width = min(1.25, PAGE / columns)  # of a column, in inches
    titles = ["clean", *(wrap(name, width) for name in models)]
    lines = max(title.count("\n") for title in titles)
    figure = new_figure(
        width * columns,
        (width + 0.35) * len(attacked) + 0.3 + 0.16 * lines,
        "compressed",  # as images keep their shape
    )
    grid = figure.subplots(len(attacked), columns, squeeze=False)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=TEXT_SIZE)
    for axes, (row, found) in zip(grid, attacked.items(), strict=True):
        _show(axes[0], image / 255, f"label {_name(label, class_names)}")
        axes[0].set_ylabel(row, fontsize=TEXT_SIZE)
        for place, each in zip(axes[1:], found.values(), strict=True):
            (rho,) = numbers("rho", [each["rho"]])
            _show(
                place,
                (image + np.asarray(each["perturbation"])) / 255,
                f"{_name(each['adversarial'], class_names)}\n"
                rf"$\rho$ = {rho:.2g}",
            )
    save(figure, path)


def _pixels(name, values, axes):
    """The values as an array of these axes and channels, in [0, 255]."""
    array = np.asarray(values)
    rank = len(axes) + 1
    if array.ndim != rank or array.shape[-1] not in (1, 3) or not array.size:
        gray, color = (f"({', '.join(axes)}, {c})" for c in (1, 3))
        raise ValueError(
            f"{name}: expected shape {gray} or {color}, none of them 0; "
            f"received {array.shape}."
        )
    numbers(name, array.ravel(), 255)
    return array


def _check_change(where, found, whose, shape):
    """Checks that a perturbation is finite, and as large as what it changes."""
    change = np.asarray(found["perturbation"])
    if change.shape != shape:
        raise ValueError(
            f"{where}['perturbation']: expected {whose} shape {shape}; "
            f"received {change.shape}."
        )
    numbers(f"{where}['perturbation']", change.ravel(), low=-math.inf)


def _factor(changes):
    """What makes the largest pixel of perturbations black or white.

    Two digits, as it is said; of no perturbation 1.
    """
    largest = max(float(np.abs(change).max()) for change in changes)
    return float(f"{127.5 / largest:.2g}") if largest else 1.0


def _name(number, class_names):
    """What a class is called."""
    return str(number) if class_names is None else class_names[int(number)]


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
    axes.set_xlabel(label, fontsize=TEXT_SIZE)
