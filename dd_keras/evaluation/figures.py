"""The paper's figures, drawn from numbers already computed."""

import numpy as np
from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart under every colour blindness; markers
# tell the lines apart in print.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")


def convergence_curves(histories, path, norm=2):
    """Test accuracy and rho over the epochs of fine-tuning (Figure 2).

    Args:
        histories: dict from a model's name to a dict with `"accuracy"` (in
            [0, 1]) and `"rho"`, each a sequence over epochs that starts with
            epoch 0, the reference.
        path: file to write; its ending says the format.
        norm: the order p of rho's norm, for the axis label.
    """
    figure = Figure(figsize=(7.0, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, key, scale, label in (
        (left, "accuracy", 100, "Test accuracy (%)"),
        (right, "rho", 1, rf"Test $\hat\rho_{{{norm:g}}}$"),
    ):
        for i, (name, history) in enumerate(histories.items()):
            values = scale * np.asarray(history[key])
            axes.plot(
                range(len(values)),
                values,
                color=_COLORS[i % len(_COLORS)],
                marker=_MARKERS[i % len(_MARKERS)],
                markersize=4,
                label=name,
            )
        axes.set_xlabel("Epoch (0: reference)")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.legend(
        *left.get_legend_handles_labels(),
        loc="outside upper center",
        ncols=len(histories),
        frameon=False,
    )
    figure.savefig(path, dpi=200)


def adversarial_images(images, labels, attacked, path):
    """Clean images, perturbations and adversarial images (Figure 7).

    Args:
        images: (N, H, W, C), pixels 0 to 255; C is 1 or 3.
        labels: (N,), the true classes.
        attacked: dict from a model's name to a dict with `"perturbation"`
            (N, H, W, C), in pixels, `"clean"` and `"adversarial"` (N,), the
            classes before and after, and `"rho"` (N,).
        path: file to write; its ending says the format.
    """
    images = np.asarray(images)
    columns = 1 + 2 * len(attacked)
    figure = Figure(
        figsize=(1.25 * columns, 1.45 * len(images) + 0.4),
        layout="constrained",
    )
    grid = figure.subplots(len(images), columns, squeeze=False)
    # One colour scale for all perturbations, so that sizes can be compared.
    limit = max(np.abs(a["perturbation"]).max() for a in attacked.values())
    limit = max(float(limit), np.finfo(np.float32).tiny)
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
    grid[0, 0].set_title("clean", fontsize=9)
    for column, name in enumerate(attacked):
        grid[0, 1 + 2 * column].set_title(f"{name}:\nperturbation", fontsize=9)
        grid[0, 2 + 2 * column].set_title(f"{name}:\nadversarial", fontsize=9)
    colors = (
        "blue darkens, red brightens" if images.shape[-1] == 1 else "from grey"
    )
    figure.supxlabel(
        f"Perturbations: {colors}, by up to {limit:.0f} of 255. "
        "Adversarial images are clipped to 0 to 255 for display.",
        fontsize=7,
    )
    figure.savefig(path, dpi=200)


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
    axes.set_xlabel(label, fontsize=8)
