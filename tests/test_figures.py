"""The figures' contents, read back from the Figure and from its files."""

import contextlib
import importlib
import itertools
import math
import re
import sys
import types
import warnings

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

from shared import pictures

from dd_keras import plots
from dd_keras.defenses.methods import METHODS
from dd_keras.plots import style

HISTORIES = {
    "plain": {"accuracy": [0.9, 0.91, 0.92], "rho": [0.2, 0.21, 0.2]},
    "Deep Defense": {"accuracy": [0.9, 0.93, 0.94], "rho": [0.2, 0.27, 0.29]},
}
NAMES = (
    "reference",
    "Deep Defense",
    "Parseval",
    "Adv. Train I",
    "fine-tuned, no regulariser",
)


def histories(models, epochs=5):
    """Curves of several models."""
    steps = np.arange(epochs + 1)
    return {
        name: {"accuracy": 0.9 + 0.001 * i * steps, "rho": 0.2 + 0.01 * steps}
        for i, name in enumerate(NAMES[:models])
    }


def curves(models, band=True):
    """Success rates of FGSM on several models, at 20 eps."""
    eps = np.linspace(0, 60, 20)
    found = {}
    for i, name in enumerate(NAMES[:models]):
        rate = 0.95 / (1 + np.exp((22 + 4 * i - eps) / 6)) + 0.02
        found[name] = {"eps": eps, "success_rate": rate}
        if band:
            found[name] |= {"low": rate - 0.02, "high": rate + 0.03}
    return found


def sweep(series=3):
    """Nine points each in series very near to each other."""
    rng = np.random.default_rng(5)
    return {
        rf"$\lambda$ = {5 + 10 * i}": {
            "accuracy": 0.99 + 0.001 * np.sort(rng.random(9)),
            "rho": 0.2 + 0.02 * np.sort(rng.random(9)),
            "labels": [f"c={c}" for c in range(5, 50, 5)],
        }
        for i in range(series)
    }


def spread(models, classes=10, each=100):
    """Values of rho of several models, and the labels."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), each)
    return {
        name: rng.gamma(9 + labels % 7, 0.02 * (i + 1))
        for i, name in enumerate(NAMES[:models])
    }, labels


@contextlib.contextmanager
def recorded():
    """The figures saved in it; warnings while drawing are errors."""
    seen, savefig = [], Figure.savefig

    def save(figure, *args, **kwargs):
        seen.append(figure)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            savefig(figure, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        yield seen


@pytest.fixture
def saved():
    with recorded() as seen:
        yield seen


def drawn_in(path):
    """Whether an image is not blank."""
    return matplotlib.image.imread(path).std() > 0


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


def legend_of(figure):
    """The texts of the only legend."""
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_convergence_draws_accuracy_and_rho_of_each_model(saved, tmp_path):
    path = tmp_path / "curves.png"
    plots.convergence_curves(HISTORIES, path)
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
    assert drawn_in(path)


@pytest.mark.parametrize("epochs", [0, 50])
def test_convergence_takes_any_number_of_epochs(saved, tmp_path, epochs):
    path = tmp_path / "curves.png"
    values = list(np.linspace(0.1, 0.2, epochs + 1))
    plots.convergence_curves({"m": {"accuracy": values, "rho": values}}, path)
    for axes in saved[0].axes:
        (line,) = axes.lines
        np.testing.assert_array_equal(line.get_xdata(), np.arange(epochs + 1))
        ticks = axes.get_xticks()
        if epochs:
            np.testing.assert_array_equal(ticks, np.round(ticks))
    assert drawn_in(path)


def test_convergence_may_leave_epochs_out(saved, tmp_path):
    curve = {"epochs": [0, 5, 10], "accuracy": [0.9, 0.8, 0.9]}
    plots.convergence_curves(
        {"m": curve | {"rho": [1, 2, 3]}}, tmp_path / "a.png"
    )
    for axes in saved[0].axes:
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), [0, 5, 10])


def test_models_may_differ_in_epochs(saved, tmp_path):
    plots.convergence_curves(
        histories(1, 3) | {"early": HISTORIES["plain"]}, tmp_path / "a.png"
    )
    assert [len(line.get_xdata()) for line in saved[0].axes[0].lines] == [4, 3]


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_show_image_perturbation_and_sum(saved, tmp_path, channels):
    path = tmp_path / "images.png"
    images, labels, results = attacked(2, channels)
    plots.adversarial_images(images, labels, results, path)
    grid = np.reshape(saved[0].axes, (2, 5))

    def shown(axes):
        (image,) = axes.images
        return np.reshape(image.get_array(), images.shape[1:])

    for row, image in enumerate(images):
        np.testing.assert_allclose(shown(grid[row, 0]), image / 255, rtol=1e-6)
        # One scale a row, so that its models can be compared.
        limit = np.abs(results["model 1"]["perturbation"][row]).max()
        factor = float(f"{127.5 / limit:.2g}")
        for column, found in enumerate(results.values()):
            change = found["perturbation"][row]
            np.testing.assert_allclose(
                shown(grid[row, 1 + 2 * column]),
                np.clip(0.5 + factor * change / 255, 0, 1),
                rtol=1e-5,
            )
            np.testing.assert_allclose(
                shown(grid[row, 2 + 2 * column]),
                np.clip((image + change) / 255, 0, 1),
                rtol=1e-5,
            )
    assert drawn_in(path)


@pytest.mark.parametrize("scale", [20.0, 0.01])
def test_pictures_name_labels_sizes_and_decisions(saved, tmp_path, scale):
    """However small, the perturbations show, and by how much is said."""
    images, labels, results = attacked(2, 1, scale=scale)
    plots.adversarial_images(images, labels, results, tmp_path / "images.png")
    grid = np.reshape(saved[0].axes, (2, 5))
    largest = np.abs(results["model 1"]["perturbation"]).max(axis=(1, 2, 3))
    first, second = (f"×{127.5 / largest[row]:.2g}" for row in range(2))
    rho = r"$\rho$ = "
    assert [[axes.get_xlabel() for axes in row] for row in grid] == [
        ["label 4", f"{rho}0.12, {first}", "0 → 1", f"{rho}0.25, {first}",
         "0 → 2"],
        ["label 5", f"{rho}0.25, {second}", "1 → 2", f"{rho}0.5, {second}",
         "1 → 3"],
    ]  # fmt: skip
    assert "amplified by the factor below" in saved[0].get_supxlabel()
    shown = grid[0, 3].images[0].get_array()
    assert 0.9 < 2 * np.abs(np.asarray(shown) - 0.5).max() <= 1


def test_pictures_name_classes(saved, tmp_path):
    images, labels, results = attacked(1, 3, models=1)
    names = ["cat", "automobile", "dog", "ship", "bird"]
    plots.adversarial_images(
        images, labels, results, tmp_path / "images.png", names
    )
    clean, _, adversarial = saved[0].axes
    assert clean.get_xlabel() == "label bird"
    assert adversarial.get_xlabel() == "cat\n→ automobile"


def test_zero_perturbation_is_drawn_as_no_change(saved, tmp_path):
    path = tmp_path / "images.png"
    images, labels, results = attacked(1, 1, models=1, scale=0.0)
    plots.adversarial_images(images, labels, results, path)
    clean, change, adversarial = (axes.images[0] for axes in saved[0].axes)
    np.testing.assert_array_equal(change.get_array(), np.full((6, 5), 0.5))
    np.testing.assert_array_equal(adversarial.get_array(), clean.get_array())
    assert drawn_in(path)


def fooled(channels=1, rows=2, models=3):
    """One image, and what fools some models of each network."""
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 255, (6, 5, channels))
    return (
        image,
        4,
        {
            f"network {row}": {
                f"model {column}": {
                    "perturbation": rng.normal(0, 20, image.shape),
                    "adversarial": column,
                    "rho": 0.1 * (row + 1),
                }
                for column in range(models)
            }
            for row in range(rows)
        },
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_fooling_images_are_a_row_a_network(saved, tmp_path, channels):
    path = tmp_path / "figure7.png"
    image, label, rows = fooled(channels)
    plots.fooling_images(image, label, rows, path)
    grid = np.reshape(saved[0].axes, (2, 4))
    assert [axes.get_title() for axes in grid[0]] == [
        "clean", "model 0", "model 1", "model 2"
    ]  # fmt: skip
    for axes, (name, found) in zip(grid, rows.items(), strict=True):
        assert axes[0].get_ylabel() == name
        assert axes[0].get_xlabel() == "label 4"
        for place, each in zip(axes[1:], found.values(), strict=True):
            (picture,) = place.images
            np.testing.assert_allclose(
                np.reshape(picture.get_array(), image.shape),
                np.clip((image + each["perturbation"]) / 255, 0, 1),
                rtol=1e-5,
            )
            told = rf"{each['adversarial']}\n$\rho$ = {each['rho']:.2g}"
            assert place.get_xlabel() == told.replace(r"\n", "\n")
    assert drawn_in(path)


def without_a_model(image, label, rows):
    del rows["network 1"]["model 2"]
    return image, label, rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda image, label, rows: (image[..., 0], label, rows),
            "image: expected shape (H, W, 1) or (H, W, 3), none of them 0; "
            "received (6, 5).",
        ),
        (
            lambda image, label, rows: (2 * image + 256, label, rows),
            "image: expected finite numbers in [0, 255]; received ",
        ),
        (
            lambda image, label, rows: (image, label, {}),
            "attacked: expected a dict with at least one entry; received {}.",
        ),
        (
            lambda image, label, rows: (image, label, {"a": {"b": {}}}),
            "attacked['a']['b']: expected the keys ['perturbation', ",
        ),
        (
            without_a_model,
            "attacked['network 1']: expected the models ['model 0', 'model 1', "
            "'model 2']; received ['model 0', 'model 1'].",
        ),
        (
            lambda image, label, rows: (image[:3], label, rows),
            "attacked['network 0']['model 0']['perturbation']: expected the "
            "image's shape (3, 5, 1); received (6, 5, 1).",
        ),
    ],
)
def test_bad_fooling_images_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        plots.fooling_images(*change(*fooled()), tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())


def test_success_rates_are_drawn_in_per_cent(saved, tmp_path):
    given = curves(3)
    plots.success_rate_curves(given, tmp_path / "rates.png")
    (axes,) = saved[0].axes
    assert len(axes.lines) == len(axes.collections) == 3
    for line, band, (name, curve) in zip(
        axes.lines, axes.collections, given.items(), strict=True
    ):
        assert line.get_label() == name
        np.testing.assert_array_equal(line.get_xdata(), curve["eps"])
        np.testing.assert_allclose(
            line.get_ydata(), 100 * curve["success_rate"]
        )
        corners = band.get_paths()[0].vertices
        for end in ("low", "high"):
            for corner in zip(curve["eps"], 100 * curve[end], strict=True):
                assert np.isclose(corners, corner).all(-1).any()
        assert to_hex(band.get_facecolor()[0]) == line.get_color().lower()


@pytest.mark.parametrize(
    ("norm", "label"),
    [
        (2, r"$\epsilon$, $l_{2}$ (pixels of 0 to 255)"),
        (math.inf, r"$\epsilon$, $l_{\infty}$ (pixels of 0 to 255)"),
    ],
)
def test_robust_accuracy_is_drawn_in_per_cent(saved, tmp_path, norm, label):
    given = {
        name: {
            "eps": curve["eps"],
            "accuracy": curve["success_rate"],
            "low": curve["low"],
            "high": curve["high"],
        }
        for name, curve in curves(3).items()
    }
    path = tmp_path / "robust.png"
    plots.robust_accuracy_curves(given, path, norm=norm)
    (axes,) = saved[0].axes
    assert axes.get_xlabel() == label
    assert len(axes.lines) == len(axes.collections) == 3
    for line, curve in zip(axes.lines, given.values(), strict=True):
        np.testing.assert_allclose(line.get_ydata(), 100 * curve["accuracy"])
    assert drawn_in(path)


def test_success_rates_mark_one_eps_ref_or_one_a_model(saved, tmp_path):
    path = tmp_path / "rates.png"
    plots.success_rate_curves(curves(3), path, eps_ref=24.5)
    plots.success_rate_curves(
        curves(3), path, eps_ref={NAMES[2]: 30, NAMES[0]: 22.0}
    )
    common, own = (figure.axes[0].lines[3:] for figure in saved)
    assert [line.get_xdata()[0] for line in common] == [24.5]
    assert [line.get_xdata()[0] for line in own] == [30, 22]
    models = saved[1].axes[0].lines
    assert own[0].get_color() == models[2].get_color()
    assert own[1].get_color() == models[0].get_color()
    for figure in saved:
        assert legend_of(figure)[-1] == r"$\epsilon_{\mathrm{ref}}$"


def test_rounding_of_a_share_is_no_error(tmp_path):
    plots.success_rate_curves(
        changed(
            RATE, success_rate=[0, 1], low=[-1e-16, 1], high=[0, 1 - 1e-16]
        ),
        tmp_path / "rates.png",
    )


def test_trade_off_draws_accuracy_against_rho(saved, tmp_path):
    given = sweep()
    plots.trade_off(
        given,
        tmp_path / "sweep.png",
        reference=(0.19, 0.985),
        note="2 epochs, not 5.",
    )
    (axes,) = saved[0].axes
    assert saved[0].get_supxlabel() == "2 epochs, not 5."
    for line, (name, entry) in zip(axes.lines[:3], given.items(), strict=True):
        assert line.get_label() == name
        np.testing.assert_array_equal(line.get_xdata(), entry["rho"])
        np.testing.assert_allclose(line.get_ydata(), 100 * entry["accuracy"])
    upright, level, star = axes.lines[3:]
    assert set(upright.get_xdata()) == {0.19}
    assert set(level.get_ydata()) == {98.5}
    assert star.get_marker() == "*"
    np.testing.assert_allclose(star.get_xydata(), [[0.19, 98.5]])
    assert upright.get_linestyle() == level.get_linestyle() == "--"
    assert axes.get_xlabel() == r"Test $\hat\rho_{2}$"
    assert axes.get_ylabel() == "Test accuracy (%)"
    assert legend_of(saved[0]) == [*given, "reference"]


MEASURES = {"l2": "Mean $l_2$", "withstood": "AutoAttack (%)"}


def frontiers():
    """Two series of points, and where they come from."""
    points = {
        name: {
            "accuracy": 0.99 - 0.01 * (i + 1) * np.arange(3),
            "l2": 300.0 + 100 * np.arange(3) + 10 * i,
            "withstood": 0.3 + 0.2 * np.arange(3),
            "labels": ["5", "10", "20"],
        }
        for i, name in enumerate(("Deep Defense", "PGD"))
    }
    return points, {"accuracy": 0.991, "l2": 250.0, "withstood": 0.1}


def test_frontier_draws_accuracy_against_each_measure(saved, tmp_path):
    points, star = frontiers()
    plots.frontier(points, MEASURES, tmp_path / "frontier.png", star)
    panels = saved[0].axes
    for axes, (key, title) in zip(panels, MEASURES.items(), strict=True):
        assert axes.get_xlabel() == title
        scale = 100 if key == "withstood" else 1
        for line, entry in zip(axes.lines[:2], points.values(), strict=True):
            np.testing.assert_allclose(line.get_xdata(), scale * entry[key])
            np.testing.assert_allclose(
                line.get_ydata(), 100 * entry["accuracy"]
            )
        np.testing.assert_allclose(
            axes.lines[2].get_xydata(), [[scale * star[key], 99.1]]
        )
    assert [text.get_text() for text in panels[0].texts] == [
        "5",
        "10",
        "20",
    ] * 2
    assert not panels[1].texts
    assert panels[0].get_ylabel() == "Test accuracy (%)"
    assert legend_of(saved[0]) == [*points, "reference"]
    assert saved[0].get_supxlabel() == ""


def test_frontier_leaves_out_what_lost_its_accuracy(saved, tmp_path):
    points, star = frontiers()
    plots.frontier(points, MEASURES, tmp_path / "frontier.png", star, 0.975)
    first, second, _ = saved[0].axes[0].lines
    np.testing.assert_allclose(first.get_ydata(), [99, 98])
    np.testing.assert_allclose(second.get_ydata(), [99])
    assert saved[0].get_supxlabel() == "3 points below 97.5 % are left out."
    assert [text.get_text() for text in saved[0].axes[0].texts] == [
        "5", "10", "5",
    ]  # fmt: skip


@pytest.mark.parametrize(("series", "width"), [(1, 3.3), (3, 7.0)])
def test_trade_off_writes_labels_where_there_is_room(
    saved, tmp_path, series, width
):
    given = sweep(series)
    path = tmp_path / "sweep.png"
    plots.trade_off(given, path, reference=(0.2, 0.99), width=width)
    (axes,) = saved[0].axes
    expected = [
        (text, rho, 100 * accuracy)
        for entry in given.values()
        for text, rho, accuracy in zip(
            entry["labels"], entry["rho"], entry["accuracy"], strict=True
        )
    ]
    notes = [text for text in axes.texts if text.get_text()]
    assert [note.get_text() for note in notes] == [
        text for text, *_ in expected
    ]
    boxes = [Text.get_window_extent(note) for note in notes]
    dots = axes.transData.transform([at for _, *at in expected])
    for box in boxes:
        assert axes.bbox.containsx(box.x0)
        assert axes.bbox.containsx(box.x1)
        assert axes.bbox.containsy(box.y0)
        assert axes.bbox.containsy(box.y1)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert not any(box.contains(*dot) for box in boxes for dot in dots)
    for box, dot in zip(boxes, dots, strict=True):
        centre = (box.min + box.max) / 2
        assert np.linalg.norm(centre - dot) < 0.6 * 200  # inches


def test_trade_off_leaves_out_missing_and_empty_labels(saved, tmp_path):
    given = sweep(2)
    first, second = given.values()
    del first["labels"]
    second["labels"] = ["", "best", *[""] * 7]
    plots.trade_off(given, tmp_path / "sweep.png")
    (axes,) = saved[0].axes
    assert [t.get_text() for t in axes.texts if t.get_text()] == ["best"]


def test_histograms_are_in_per_cent_of_the_class(saved, tmp_path):
    rhos, labels = spread(3)
    names = [f"animal {k}" for k in range(10)]
    plots.rho_histogram(rhos, labels, tmp_path / "rho.png", names)
    panels = saved[0].axes
    assert [axes.get_title() for axes in panels] == names
    for k, axes in enumerate(panels):
        assert len(axes.patches) == len(axes.lines) == 3
        for outline, mean, rho in zip(
            axes.patches, axes.lines, rhos.values(), strict=True
        ):
            values, edges, _ = outline.get_data()
            counts = np.histogram(rho[labels == k], edges)[0]
            np.testing.assert_allclose(values, 100 * counts / 100)
            assert values.sum() == pytest.approx(100)
            assert mean.get_xdata()[0] == pytest.approx(rho[labels == k].mean())
            assert to_hex(outline.get_edgecolor()) == mean.get_color().lower()
        np.testing.assert_array_equal(edges, panels[0].patches[0].get_data()[1])
        assert axes.get_xlim() == panels[0].get_xlim()
        assert axes.get_ylim() == panels[0].get_ylim()
    assert saved[0].get_supylabel() == "Share of the class (%)"
    assert saved[0].get_supxlabel() == (
        r"$\rho_{2}$, the perturbation's norm over the input's. "
        "Vertical lines: means."
    )
    assert legend_of(saved[0]) == list(rhos)


def test_shares_do_not_depend_on_the_size_of_a_class(saved, tmp_path):
    labels = np.array([0] * 3 + [1] * 40)
    plots.rho_histogram(
        {"m": np.where(labels, 0.2, 0.1)}, labels, tmp_path / "rho.png"
    )
    for axes in saved[0].axes:
        assert axes.patches[0].get_data()[0].max() == 100


@pytest.mark.parametrize("classes", [1, 11])
def test_histogram_has_a_panel_a_class(saved, tmp_path, classes):
    plots.rho_histogram(*spread(2, classes, 5), tmp_path / "rho.png")
    panels = saved[0].axes
    assert [axes.get_title() for axes in panels] == [
        f"class {k}" for k in range(classes)
    ]
    lowest = {}  # each column ends with numbers
    for axes in panels:
        lowest[axes.get_subplotspec().colspan.start] = axes
    for axes in lowest.values():
        assert any(t.get_visible() for t in axes.get_xticklabels())


def test_class_without_samples_says_so(saved, tmp_path):
    labels = np.array([0, 2, 2])
    plots.rho_histogram({"m": [0.1, 0.2, 0.3]}, labels, tmp_path / "rho.png")
    panels = saved[0].axes
    assert [[t.get_text() for t in axes.texts] for axes in panels] == [
        [],
        ["no samples"],
        [],
    ]
    assert [len(axes.patches) for axes in panels] == [1, 0, 1]


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_histogram_of_one_value_has_all_of_it(saved, tmp_path, value):
    plots.rho_histogram(
        {"m": np.full(7, value)}, np.zeros(7, int), tmp_path / "rho.png"
    )
    (axes,) = saved[0].axes
    values, edges, _ = axes.patches[0].get_data()
    (full,) = np.flatnonzero(values)
    assert values[full] == 100
    assert edges[full] <= value <= edges[full + 1]
    low, high = axes.get_xlim()
    assert low < value < high


def test_of_many_classes_the_extremes_are_shown(saved, tmp_path):
    order = np.random.default_rng(3).permutation(30)  # class of each rank
    labels = np.repeat(order, 4)
    first = np.repeat(np.arange(30) / 100, 4)
    plots.rho_histogram(
        {"a": first, "b": first + 0.01}, labels, tmp_path / "rho.png"
    )
    assert [axes.get_title() for axes in saved[0].axes] == [
        f"class {k}" for k in (*order[:10], *order[-10:])
    ]
    assert (
        saved[0]
        .get_supxlabel()
        .endswith("\nThe 10 least and the 10 most robust of 30 classes.")
    )


def test_of_many_classes_only_those_with_samples_are_shown(saved, tmp_path):
    plots.rho_histogram(
        {"m": [0.3, 0.1]},
        [5, 99],
        tmp_path / "rho.png",
        [f"name {k}" for k in range(100)],
    )
    titles = [axes.get_title() for axes in saved[0].axes]
    assert titles == ["name 99", "name 5"]
    assert (
        saved[0]
        .get_supxlabel()
        .endswith(
            "\nThose with samples, the least robust first, of 100 classes."
        )
    )


# Each figure with realistic data, to check what holds of all.
DRAW = {
    "convergence": lambda path: plots.convergence_curves(histories(5), path),
    "rates of 5": lambda path: plots.success_rate_curves(
        curves(5), path, eps_ref=dict.fromkeys(NAMES, 20)
    ),
    "trade-off": lambda path: plots.trade_off(
        sweep(), path, reference=(0.2, 0.99)
    ),
    "frontier": lambda path: plots.frontier(
        frontiers()[0], MEASURES, path, frontiers()[1]
    ),
    "many classes": lambda path: plots.rho_histogram(
        *spread(2, 30, 5),
        path,
        [f"great white shark, carcharodon {k}" for k in range(30)],
    ),
    "one image": lambda path: plots.adversarial_images(
        *attacked(1, 1, 1), path
    ),
    "a row a network": lambda path: plots.fooling_images(*fooled(3), path),
    "3 models": lambda path: plots.adversarial_images(*attacked(3, 3, 3), path),
}


@pytest.fixture(scope="module", params=DRAW)
def drawn(request, tmp_path_factory):
    with recorded() as seen:
        DRAW[request.param](tmp_path_factory.mktemp("drawn") / "figure.png")
    return seen[0]


def test_all_of_a_figure_is_within_it(drawn):
    box = drawn.get_tightbbox()
    width, height = drawn.get_size_inches()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= width
    assert box.y1 <= height


def test_legends_are_above_the_axes(drawn):
    for legend in drawn.findobj(Legend):
        box = legend.get_window_extent()
        for axes in drawn.axes:
            assert box.y0 >= axes.bbox.y1


@pytest.mark.parametrize(
    ("ending", "start"),
    [(".png", b"\x89PNG\r\n\x1a\n"), (".pdf", b"%PDF"), (".svg", b"<?xml")],
    ids=["png", "pdf", "svg"],
)
def test_the_ending_says_the_format(tmp_path, ending, start):
    path = tmp_path / f"figure{ending}"
    plots.convergence_curves(HISTORIES, str(path))
    content = path.read_bytes()
    assert content.startswith(start)
    assert b"CreationDate" not in content
    assert b"<dc:date>" not in content


@pytest.mark.parametrize("ending", ["png", "pdf"])
def test_the_same_figure_makes_the_same_file(tmp_path, ending):
    paths = [tmp_path / f"{i}.{ending}" for i in range(2)]
    for path in paths:
        DRAW["trade-off"](path)  # it places labels by trial
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("models", [6, 30])
def test_no_two_series_look_alike(saved, tmp_path, models):
    names = [f"m{i}" for i in range(models)]
    one = {"accuracy": [0.9, 0.95], "rho": [0.1, 0.2]}
    rate = {"eps": [1, 2], "success_rate": [0.1, 0.2]}
    path = tmp_path / "figure.png"
    plots.convergence_curves(dict.fromkeys(names, one), path)
    plots.success_rate_curves(dict.fromkeys(names, rate), path)
    plots.trade_off(dict.fromkeys(names, one), path)
    plots.rho_histogram({name: [0.1, 0.2] for name in names}, [0, 0], path)
    for figure, markers in zip(saved, (True, True, True, False), strict=True):
        for axes in figure.axes:
            colors = [line.get_color() for line in axes.lines]
            lines = [str(line._dash_pattern) for line in axes.lines]
            assert len(set(colors)) == min(models, 7)
            assert len(set(lines)) == 5
            assert len(set(zip(colors, lines, strict=True))) == models
            if markers:
                dots = {line.get_marker() for line in axes.lines}
                assert len(dots) == min(models, 7)
        (legend,) = figure.legends
        assert [line.get_color() for line in legend.get_lines()] == colors


@pytest.mark.parametrize("name", ["m", "a model with a very long name " * 4])
def test_a_legend_of_any_names_fits(saved, tmp_path, name):
    given = {f"{name} {i}": HISTORIES["plain"] for i in range(7)}
    plots.trade_off(given, tmp_path / "sweep.png")
    box = saved[0].legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= saved[0].bbox.width


def changed(given, **values):
    """The first series' entries replaced, those that are None left out."""
    name, entry = next(iter(given.items()))
    entry = {k: v for k, v in (entry | values).items() if v is not None}
    return given | {name: entry}


POINT = {"s": {"accuracy": [0.9, 0.8], "rho": [0.1, 0.2]}}
RATE = {"m": {"eps": [1.0, 2.0], "success_rate": [0.1, 0.2]}}
RHOS = {"m": [0.1, 0.2]}


@pytest.mark.parametrize(
    ("draw", "args", "message"),
    [
        (
            "convergence_curves",
            ({},),
            "histories: expected a dict with at least one entry; received {}.",
        ),
        (
            "convergence_curves",
            (changed(POINT, rho=None),),
            "histories['s']: expected the keys ['accuracy', 'rho']; received "
            "['accuracy'].",
        ),
        (
            "convergence_curves",
            (changed(POINT, accuracy=[0.9, 99.0]),),
            "histories['s']['accuracy']: expected finite numbers in [0, 1]; "
            "received 99.",
        ),
        (
            "convergence_curves",
            (changed(POINT, rho=[0.1]),),
            "histories['s']: expected the same length of all; received "
            "{'accuracy': 2, 'rho': 1}.",
        ),
        (
            "convergence_curves",
            (changed(POINT, epochs=[0, 5, 10]),),
            "histories['s']: expected the same length of all; received "
            "{'accuracy': 2, 'epochs': 3}.",
        ),
        (
            "convergence_curves",
            (changed(POINT, epochs=[0, 0]),),
            "histories['s']['epochs']: expected increasing numbers; received "
            "[0.0, 0.0].",
        ),
        (
            "success_rate_curves",
            ([1, 2],),
            "curves: expected a dict with at least one entry; received [1, 2].",
        ),
        (
            "success_rate_curves",
            (changed(RATE, success_rate=[0.1, math.nan]),),
            "curves['m']['success_rate']: expected finite numbers in [0, 1]; "
            "received nan.",
        ),
        (
            "success_rate_curves",
            (changed(RATE, eps=[2.0, 2.0]),),
            "curves['m']['eps']: expected increasing numbers; received "
            "[2.0, 2.0].",
        ),
        (
            "success_rate_curves",
            (changed(RATE, eps=[-1.0, 2.0]),),
            "curves['m']['eps']: expected finite numbers in [0, inf]; received "
            "-1.",
        ),
        (
            "success_rate_curves",
            (changed(RATE, eps=[]),),
            "curves['m']['eps']: expected at least one number, in one "
            "dimension; received [].",
        ),
        (
            "success_rate_curves",
            (changed(RATE, low=[0.0, 0.0]),),
            "curves['m']: expected 'low' <= 'success_rate' <= 'high', or "
            "neither 'low' nor 'high'; received",
        ),
        (
            "success_rate_curves",
            (changed(RATE, low=[0.1, 0.2], high=[0.1, 0.1]),),
            "curves['m']: expected 'low' <= 'success_rate' <= 'high', or "
            "neither 'low' nor 'high'; received",
        ),
        (
            "robust_accuracy_curves",
            ({"m": {"eps": [1.0]}},),
            "curves['m']: expected the keys ['eps', 'accuracy']; received "
            "['eps'].",
        ),
        (
            "robust_accuracy_curves",
            ({"m": {"eps": [1.0], "accuracy": [0.5], "low": [0.6]}},),
            "curves['m']: expected 'low' <= 'accuracy' <= 'high', or neither",
        ),
        (
            "trade_off",
            (changed(POINT, labels=["one"]),),
            "points['s']: expected the same length of all; received "
            "{'accuracy': 2, 'rho': 2, 'labels': 1}.",
        ),
        (
            "trade_off",
            (changed(POINT, rho=[0.1, math.inf]),),
            "points['s']['rho']: expected finite numbers in [0, inf]; received "
            "inf.",
        ),
        (
            "frontier",
            (changed(frontiers()[0], l2=[1.0]), MEASURES),
            "points['Deep Defense']: expected the same length of all; received "
            "{'accuracy': 3, 'l2': 1, 'labels': 3}.",
        ),
        (
            "frontier",
            (changed(frontiers()[0], withstood=[2.0] * 3), MEASURES),
            "points['Deep Defense']['withstood']: expected finite numbers in "
            "[0, 1]; received 2.",
        ),
        (
            "trade_off",
            (changed(POINT, rho="ab"),),
            "points['s']['rho']: expected at least one number, in one "
            "dimension; received 'ab'.",
        ),
        (
            "rho_histogram",
            ({}, [0, 1]),
            "rhos: expected a dict with at least one entry; received {}.",
        ),
        (
            "rho_histogram",
            ({"m": [0.1, math.nan]}, [0, 1]),
            "rhos['m']: expected finite numbers in [0, inf]; received nan.",
        ),
        (
            "rho_histogram",
            (RHOS, [0, 1, 2]),
            "labels: expected the shape of rhos['m'], (2,); received (3,).",
        ),
        (
            "rho_histogram",
            (RHOS, [0, -1]),
            "labels: expected integers in [0, inf); received [0, -1].",
        ),
        (
            "rho_histogram",
            (RHOS, [0.0, 1.0]),
            "labels: expected integers in [0, inf); received [0.0, 1.0].",
        ),
    ],
)
def test_bad_numbers_are_refused(tmp_path, draw, args, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        getattr(plots, draw)(*args, tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("draw", "args", "options", "message"),
    [
        (
            "success_rate_curves",
            (RATE,),
            {"eps_ref": {"other": 1.0}},
            "eps_ref: expected names out of ['m']; received 'other'.",
        ),
        (
            "success_rate_curves",
            (RATE,),
            {"eps_ref": math.nan},
            "eps_ref: expected finite numbers in [0, inf]; received nan.",
        ),
        (
            "trade_off",
            (POINT,),
            {"reference": (0.2, 99.0)},
            "reference: expected (rho, accuracy), the accuracy in [0, 1]; "
            "received [0.2, 99.0].",
        ),
        (
            "trade_off",
            (POINT,),
            {"reference": [0.2]},
            "reference: expected (rho, accuracy), the accuracy in [0, 1]; "
            "received [0.2].",
        ),
        (
            "trade_off",
            (POINT,),
            {"norm": 0.5},
            "norm: expected a number in [1, inf], the order p of an l_p norm; "
            "received 0.5.",
        ),
        (
            "rho_histogram",
            (RHOS, [0, 2]),
            {"class_names": ["a", "b"]},
            "labels: expected integers in [0, 2); received [0, 2].",
        ),
    ],
)
def test_bad_options_are_refused(tmp_path, draw, args, options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        getattr(plots, draw)(*args, tmp_path / "figure.png", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda images, labels, results: (images[..., :2], labels, results),
            "images: expected shape (N, H, W, 1) or (N, H, W, 3), none of them "
            "0; received (2, 6, 5, 2).",
        ),
        (
            lambda images, labels, results: (images + 255, labels, results),
            "images: expected finite numbers in [0, 255]; received ",
        ),
        (
            lambda images, labels, results: (images, labels[:1], results),
            "labels: expected the same length of all; received "
            "{'images': 2, 'labels': 1}.",
        ),
        (
            lambda images, labels, results: (images, labels, {}),
            "attacked: expected a dict with at least one entry; received {}.",
        ),
        (
            lambda images, labels, results: (
                images,
                labels,
                changed(results, rho=None),
            ),
            "attacked['model 0']: expected the keys ['perturbation', 'clean', "
            "'adversarial', 'rho']; received",
        ),
        (
            lambda images, labels, results: (
                images,
                labels,
                changed(results, perturbation=images[:1]),
            ),
            "attacked['model 0']['perturbation']: expected the images' shape "
            "(2, 6, 5, 3); received (1, 6, 5, 3).",
        ),
        (
            lambda images, labels, results: (
                images,
                labels,
                changed(results, perturbation=images * math.nan),
            ),
            "attacked['model 0']['perturbation']: expected finite numbers in "
            "[-inf, inf]; received nan.",
        ),
        (
            lambda images, labels, results: (
                images,
                labels,
                changed(results, clean=[1]),
            ),
            "attacked['model 0']: expected the same length of all; received ",
        ),
    ],
)
def test_bad_pictures_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        plots.adversarial_images(
            *change(*attacked(2, 3)), tmp_path / "figure.png"
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["figure", "figure.txt"])
def test_other_endings_are_refused(tmp_path, name):
    path = tmp_path / name
    message = (
        "path: expected an ending out of ['.pdf', '.png', '.svg']; received "
        f"{str(path)!r}."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        plots.convergence_curves(HISTORIES, path)
    assert not list(tmp_path.iterdir())


def test_figures_overwrite_and_leave_no_other_file(tmp_path):
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")
    plots.convergence_curves(HISTORIES, path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("missing", ["matplotlib", "adjustText"])
def test_missing_packages_name_the_extra(monkeypatch, missing):
    for name in [*sys.modules]:
        if name.startswith(("dd_keras.plots", missing)):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install 'dd_keras\[apps\]'"):
        importlib.import_module("dd_keras.plots")


def test_programs_picture_typical_images_of_different_classes(monkeypatch):
    """Not the first of a class, nor one that a defence made less robust."""
    monkeypatch.setattr(pictures, "FLAGS", types.SimpleNamespace(norm=2.0))
    labels = np.array([0, 0, 0, 1, 1, 2])

    def report(rho, predictions=labels):
        return types.SimpleNamespace(
            labels=labels,
            predictions=predictions,
            values={"rho2": np.array(rho)},
        )

    reference = report([0.9, 0.2, 0.2, 0.2, 0.01, 0.2])
    defended = report(
        [0.3, 0.3, 0.1, 0.3, 0.3, 0.3], np.array([0, 0, 0, 1, 1, 1])
    )
    found = pictures._choose([reference, defended], [reference, defended])
    assert found == [1, 3]


@pytest.mark.parametrize(
    "names",
    [
        ["Deep Defense", "reference"],
        ["reference", "mine", "deep_defense", "Adv. Train II", "other"],
        ["adv_train_2", "deep_defense", "reference", "one", "two", "three"],
    ],
)
def test_a_method_looks_the_same_in_every_figure(names):
    numbers = dict(zip(names, style.style_numbers(names), strict=True))
    assert len(set(numbers.values())) == len(names)
    known = {name.lower().replace("_", " "): i for name, i in numbers.items()}
    assert known["deep defense"] == 0
    assert known["reference"] == 6
    assert known.get("adv. train ii", 1) == known.get("adv train 2", 1) == 1
    assert style.series_style(6)["color"] == "#000000"


def test_methods_with_titles_have_a_look_of_their_own():
    titles = [method.title for method in METHODS.values()]
    numbers = style.style_numbers(titles)
    assert numbers == style.style_numbers(METHODS)
    assert len(set(numbers)) == len(titles)
    order = np.random.default_rng(0).permutation(len(titles))
    mixed = style.style_numbers([titles[i] for i in order])
    assert mixed == [numbers[i] for i in order]


def test_two_names_of_one_method_in_a_figure_differ():
    assert style.style_numbers(["clean", "Clean"]) == [5, 0]


def test_others_have_a_colour_that_no_method_has():
    numbers = style.style_numbers(["FGSM", "DDN", "pgd", "deep_defense"])
    assert len({style.series_style(i)["color"] for i in numbers}) == 4
