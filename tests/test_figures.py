"""The figures' contents, read back from the Figure and from its PNG file."""

import math
import warnings

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from dd_keras.evaluation import figures

HISTORIES = {
    "plain": {"accuracy": [0.9, 0.91, 0.92], "rho": [0.2, 0.21, 0.2]},
    "Deep Defense": {"accuracy": [0.9, 0.93, 0.94], "rho": [0.2, 0.27, 0.29]},
}


@pytest.fixture
def saved(monkeypatch):
    """The figures saved in a test; warnings while drawing are errors."""
    seen, savefig = [], Figure.savefig

    def save(figure, *args, **kwargs):
        seen.append(figure)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", save)
    return seen


def png_size(path):
    """Width and height of an image that is not blank."""
    pixels = matplotlib.image.imread(path)
    assert pixels.std() > 0
    return pixels.shape[1], pixels.shape[0]


def attacked(n, channels, models=2, scale=20.0):
    """Images, labels and made-up attack results of several models."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (n, 6, 5, channels)).astype(np.float32)
    results = {
        f"model {m}": {
            "perturbation": (m + 1)
            * scale
            * rng.uniform(-1, 1, images.shape).astype(np.float32),
            "clean": np.arange(n),
            "adversarial": np.arange(n) + m + 1,
            "rho": 0.125 * np.arange(1, n + 1) * (m + 1),
        }
        for m in range(models)
    }
    return images, np.arange(n) + 4, results


def test_convergence_draws_accuracy_and_rho_of_each_model(saved, tmp_path):
    path = tmp_path / "curves.png"
    figures.convergence_curves(HISTORIES, path)
    left, right = saved[0].axes
    for axes, key, scale in ((left, "accuracy", 100), (right, "rho", 1)):
        assert len(axes.lines) == len(HISTORIES)
        for line, (name, history) in zip(
            axes.lines, HISTORIES.items(), strict=True
        ):
            np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2])
            np.testing.assert_allclose(
                line.get_ydata(), scale * np.array(history[key])
            )
            assert line.get_label() == name
    assert png_size(path) == (1400, 560)


def test_convergence_labels_its_axes_and_models(saved, tmp_path):
    figures.convergence_curves(HISTORIES, tmp_path / "curves.png")
    left, right = saved[0].axes
    assert left.get_xlabel() == right.get_xlabel() == "Epoch (0: reference)"
    assert left.get_ylabel() == "Test accuracy (%)"
    assert right.get_ylabel() == r"Test $\hat\rho_{2}$"
    (legend,) = saved[0].legends  # one for both
    assert [text.get_text() for text in legend.get_texts()] == list(HISTORIES)
    lines = [(line.get_color(), line.get_marker()) for line in left.lines]
    assert lines == [
        (handle.get_color(), handle.get_marker())
        for handle in legend.get_lines()
    ]


@pytest.mark.parametrize(
    ("norm", "label"),
    [(1, r"Test $\hat\rho_{1}$"), (math.inf, r"Test $\hat\rho_{inf}$")],
)
def test_convergence_names_the_norm(saved, tmp_path, norm, label):
    figures.convergence_curves(HISTORIES, tmp_path / "curves.png", norm)
    assert saved[0].axes[1].get_ylabel() == label


@pytest.mark.parametrize("epochs", [0, 1, 50])
def test_convergence_takes_any_number_of_epochs(saved, tmp_path, epochs):
    path = tmp_path / "curves.png"
    values = list(np.linspace(0.1, 0.2, epochs + 1))
    figures.convergence_curves({"m": {"accuracy": values, "rho": values}}, path)
    for axes in saved[0].axes:
        (line,) = axes.lines
        np.testing.assert_array_equal(line.get_xdata(), np.arange(epochs + 1))
        ticks = axes.get_xticks()
        if epochs:
            np.testing.assert_array_equal(ticks, np.round(ticks))
    assert png_size(path) == (1400, 560)


def test_convergence_tells_six_models_apart(saved, tmp_path):
    histories = {f"model {i}": HISTORIES["plain"] for i in range(6)}
    figures.convergence_curves(histories, tmp_path / "curves.png")
    for axes in saved[0].axes:
        assert len({line.get_color() for line in axes.lines}) == 6
        assert len({line.get_marker() for line in axes.lines}) == 6


def test_convergence_of_many_models_repeats_its_colors(saved, tmp_path):
    histories = {f"model {i}": HISTORIES["plain"] for i in range(8)}
    figures.convergence_curves(histories, tmp_path / "curves.png")
    for axes in saved[0].axes:
        assert len(axes.lines) == 8


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_show_image_perturbation_and_sum(saved, tmp_path, channels):
    path = tmp_path / "images.png"
    images, labels, results = attacked(2, channels)
    figures.adversarial_images(images, labels, results, path)
    grid = np.reshape(saved[0].axes, (2, 5))
    limit = max(np.abs(r["perturbation"]).max() for r in results.values())
    assert limit > 20  # that of the second model: one scale for all

    def shown(axes):
        (image,) = axes.images
        return np.reshape(image.get_array(), images.shape[1:])

    for row, image in enumerate(images):
        np.testing.assert_allclose(shown(grid[row, 0]), image / 255, rtol=1e-6)
        for column, found in enumerate(results.values()):
            change = found["perturbation"][row]
            np.testing.assert_allclose(
                shown(grid[row, 1 + 2 * column]),
                0.5 + change / (2 * limit),
                rtol=1e-5,
            )
            np.testing.assert_allclose(
                shown(grid[row, 2 + 2 * column]),
                np.clip((image + change) / 255, 0, 1),
                rtol=1e-5,
            )
    assert png_size(path) == (1250, 660)


def test_pictures_name_labels_sizes_and_decisions(saved, tmp_path):
    images, labels, results = attacked(2, 1)
    figures.adversarial_images(images, labels, results, tmp_path / "images.png")
    grid = np.reshape(saved[0].axes, (2, 5))
    assert [[axes.get_xlabel() for axes in row] for row in grid] == [
        ["label 4", r"$\rho$ = 0.12", "0 → 1", r"$\rho$ = 0.25", "0 → 2"],
        ["label 5", r"$\rho$ = 0.25", "1 → 2", r"$\rho$ = 0.50", "1 → 3"],
    ]
    assert [axes.get_title() for axes in grid[0]] == [
        "clean",
        "model 0:\nperturbation",
        "model 0:\nadversarial",
        "model 1:\nperturbation",
        "model 1:\nadversarial",
    ]
    limit = max(np.abs(r["perturbation"]).max() for r in results.values())
    assert f"by up to {limit:.0f} of 255" in saved[0].get_supxlabel()


@pytest.mark.parametrize(
    ("n", "models", "size"),
    [(1, 1, (750, 370)), (4, 2, (1250, 1240)), (2, 3, (1750, 660))],
)
def test_pictures_grow_with_images_and_models(tmp_path, n, models, size):
    path = tmp_path / "images.png"
    images, labels, results = attacked(n, 3, models)
    figures.adversarial_images(images, labels, results, path)
    assert png_size(path) == size


def test_zero_perturbation_is_drawn_as_no_change(saved, tmp_path):
    path = tmp_path / "images.png"
    images, labels, results = attacked(1, 1, models=1, scale=0.0)
    figures.adversarial_images(images, labels, results, path)
    clean, change, adversarial = (axes.images[0] for axes in saved[0].axes)
    np.testing.assert_array_equal(change.get_array(), np.full((6, 5), 0.5))
    np.testing.assert_array_equal(adversarial.get_array(), clean.get_array())
    assert png_size(path) == (750, 370)


def test_figures_overwrite_and_leave_no_other_file(tmp_path):
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")
    figures.convergence_curves(HISTORIES, path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert list(tmp_path.iterdir()) == [path]
