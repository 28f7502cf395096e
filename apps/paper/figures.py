"""The paper's figures, from what the steps of a `Plan` wrote.

Each function takes a `steps.Plan` whose steps are done, draws its files, and
returns their numbers. Those of both data sets take the module that has its
commands.
"""

import shutil
import types

import numpy as np

from paper import cifar10, mnist, sweep_files, sweeps
from paper.steps import Plan
from paper.tables import NETWORKS, TITLES, comparison_of, loaded

from dd_keras import plots
from dd_keras.utils import files

_CONVERGE = ("clean", "parseval", "adv_train_1", "deep_defense")


def figure2(plan: Plan) -> dict:
    """Convergence on MNIST, as in Figure 2."""
    return _convergence(plan, "figure2", mnist, ("seed0", "others"))


def figure8(plan: Plan) -> dict:
    """Convergence on CIFAR-10, as in Figure 8."""
    return _convergence(plan, "figure8", cifar10, _CONVERGE)


def figure3(plan: Plan) -> dict:
    """Accuracy and rho_2 over lam and c."""
    names = [f"sweep_lam{lam}" for lam in mnist.lams(plan)]
    return _trade_off(plan, "figure3", mnist.networks(plan)[-1], names)


def figure4(plan: Plan) -> dict:
    """One layer regularised."""
    names = [f"sweep_layer_{name}" for name in mnist.layers(plan)]
    return _trade_off(plan, "figure4", mnist.networks(plan)[-1], names)


def figure5(plan: Plan, of: types.ModuleType = mnist) -> dict:
    """Success rate of FGSM against eps."""
    numbers = {}
    for network in of.networks(plan):
        comparison = comparison_of(plan, network)
        curves = {
            TITLES[name]: _success_rate(estimates)
            for name, estimates in comparison["models"].items()
            if name not in ("clean", "longer")  # beside two others
        }
        numbers[network] = curves
        with files.atomic_write(plan.path(f"figure5_{network}.png")) as part:
            plots.success_rate_curves(
                curves, part, eps_ref=comparison["eps_ref"], width=7.0
            )
    return numbers


def figure6(plan: Plan) -> dict:
    """Against, and combined with, Adv. Train II, as in Figure 6.

    On the left all points; on the right, of the one of each method that is
    most robust at no lower accuracy than the reference's, FGSM's success.
    """
    names = [
        f"sweep_{name}" for name in (f"lam{sweeps.LAM}", *sweeps.BESIDE_LAM)
    ]
    numbers = {}
    for network in mnist.networks(plan):
        found = _trade_off(plan, f"figure6_{network}", network, names)
        winners = {
            f"{title}, {point['label']}": point
            for title, points in found["series"].items()
            for point in [_winner(points, found["reference"])]
        }
        rates = {
            name: _success_rate(point["numbers"])
            for name, point in {
                "reference": found["reference"],
                **winners,
            }.items()
        }
        numbers[network] = {**found, "winners": list(winners)}
        path = plan.path(f"figure6_{network}_fgsm.png")
        with files.atomic_write(path) as part:
            plots.success_rate_curves(rates, part, width=7.0)
    return numbers


def figure7(plan: Plan) -> dict:
    """One image under four models, as in Figure 7; and four under two."""
    rows, numbers = {}, {}
    for network in mnist.networks(plan):
        step = f"{network}_picture"
        found = loaded(plan.result(step))
        with np.load(plan.path(step, "pictured.npz")) as arrays:
            pictured = dict(arrays)
        image, label = pictured["images"][0], found["labels"][0]
        rows[NETWORKS[network]] = {
            TITLES[name]: {
                "perturbation": pictured[name][0],
                "adversarial": values["adversarial"][0],
                "rho": values["rho"][0],
            }
            for name, values in found["models"].items()
        }
        four = f"{network}_seed0"
        with files.atomic_write(plan.path(f"figure7_{network}.png")) as part:
            shutil.copyfile(plan.path(four, "adversarial_images.png"), part)
        numbers[network] = {
            "test_image": found["images"][0],
            "label": label,
            "models": found["models"],
            "four": loaded(plan.result(four))["pictured"],
        }
    with files.atomic_write(plan.path("figure7.png")) as part:
        plots.fooling_images(image, label, rows, part, found["class_names"])
    return numbers


def _convergence(plan, figure, of, steps):
    """Accuracy and rho_2 over the epochs, of what some steps trained."""
    numbers = {}
    for network in of.networks(plan):
        trained = [
            f"{network}_{step}"
            for step in steps
            if f"{network}_{step}" in plan.steps
        ]
        curves = {}
        for step in trained:
            curves |= loaded(plan.result(step))["curves"]
        shown = {TITLES[n]: curves[n] for n in _CONVERGE if n in curves}
        with files.atomic_write(plan.path(f"{figure}_{network}.png")) as part:
            plots.convergence_curves(shown, part)
        numbers[network] = shown
    return numbers


def _trade_off(plan, figure, network, names):
    """Draws the points of some sweeps; their numbers."""
    sweeps_ = [loaded(plan.result(f"{network}_{name}")) for name in names]
    series = {
        title: points
        for found in sweeps_
        for title, points in found["series"].items()
    }
    reference = sweeps_[0]["reference"]
    sweep_files.draw(series, reference, plan.path(f"{figure}.png"))
    return {
        "reference": sweep_files.kept(reference),
        "series": {
            title: [sweep_files.kept(point) for point in points]
            for title, points in series.items()
        },
    }


def _winner(points, reference):
    """The largest rho_2 at no lower accuracy, or else the most accurate."""

    def value(point, key):
        return point["numbers"][key][0]

    least = reference["numbers"]["accuracy"][0]
    finished = [point for point in points if point["numbers"]]
    sound = [p for p in finished if value(p, "accuracy") >= least]
    if sound:
        return max(sound, key=lambda point: value(point, "rho2"))
    return max(finished, key=lambda point: value(point, "accuracy"))


def _success_rate(estimates):
    """The curve of Figure 5, from accuracies and their intervals."""
    start = "fgsm_accuracy@"
    found = sorted(
        (float(key.removeprefix(start)), estimate)
        for key, estimate in estimates.items()
        if key.startswith(start)
    )
    return {
        "eps": [eps for eps, _ in found],
        "success_rate": [1 - value for _, (value, _, _) in found],
        "low": [1 - high for _, (_, _, high) in found],
        "high": [1 - low for _, (_, low, _) in found],
    }
