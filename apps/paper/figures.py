"""The paper's figures on MNIST, from what the steps of a `Plan` wrote.

Each function takes a `steps.Plan` whose steps are done, draws its files, and
returns their numbers.
"""

import shutil

from paper.steps import Plan
from paper.tables import TITLES, comparison_of, loaded

from dd_keras import plots
from dd_keras.utils import files


def figure2(plan: Plan) -> dict:
    """Convergence, as in Figure 2."""
    return _convergence(
        plan,
        "figure2",
        ("clean", "parseval", "adv_train_1", "deep_defense"),
    )


def figure6(plan: Plan) -> dict:
    """Against, and combined with, Adv. Train II, as in Figure 6."""
    return _convergence(
        plan, "figure6", ("deep_defense", "adv_train_2", "combined")
    )


def figure3(plan: Plan) -> dict:
    """Accuracy and rho_2 over lam and c: the sweep has drawn it."""
    return _swept(plan, "3")


def figure4(plan: Plan) -> dict:
    """One layer regularised: the sweep has drawn it."""
    return _swept(plan, "4")


def figure5(plan: Plan) -> dict:
    """Success rate of FGSM against eps."""
    numbers = {}
    for network in plan.networks:
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


def figure7(plan: Plan) -> dict:
    """Pictures of adversarial images: the training has drawn them."""
    numbers = {}
    for network in plan.networks:
        step = f"{network}_seed0"
        with files.atomic_write(plan.path(f"figure7_{network}.png")) as part:
            shutil.copyfile(plan.path(step, "adversarial_images.png"), part)
        numbers[network] = loaded(plan.result(step))["pictured"]
    return numbers


def _convergence(plan, figure, names):
    numbers = {}
    for network in plan.networks:
        curves = {
            **loaded(plan.result(f"{network}_seed0"))["curves"],
            **loaded(plan.result(f"{network}_others"))["curves"],
        }
        shown = {TITLES[name]: curves[name] for name in names}
        with files.atomic_write(plan.path(f"{figure}_{network}.png")) as part:
            plots.convergence_curves(shown, part)
        numbers[network] = shown
    return numbers


def _swept(plan, number):
    name = f"figure{number}"
    with files.atomic_write(plan.path(f"{name}.png")) as part:
        shutil.copyfile(plan.path(name, f"{name}.png"), part)
    found = loaded(plan.result(name))
    return {
        "reference": found["reference"],
        "runs": {
            run: {"settings": result["settings"], "curve": result["curve"]}
            for run, result in found["runs"].items()
        },
    }


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
