"""The paper's tables and figures, from what the steps of a `Plan` wrote.

An experiment is a function that takes an `experiments.Plan` whose steps are
done, draws or writes its files, and returns its numbers.
"""

import json
import math
import shutil
import statistics
from collections.abc import Callable
from typing import NamedTuple

import experiments
from experiments import NETWORKS
from training import TITLES as _TITLES

from dd_keras.plots import figures
from dd_keras.utils import files, tables

# Yan, Guo and Zhang (2018), Table 1, as far as we could check it.
PAPER = {
    "mlp": {
        "reference": {"accuracy": 0.9831, "rho2": 0.111},
        "deep_defense": {
            "accuracy": 0.9865,
            "rho2": 0.225,
            "accuracy@1eps_ref": 0.5,
        },
    },
    "lenet": {
        "reference": {"accuracy": 0.9902, "rho2": 0.205},
        "deep_defense": {
            "accuracy": 0.9934,
            "rho2": 0.284,
            "accuracy@1eps_ref": 0.5,
        },
    },
}

TITLES = _TITLES | {"longer": "Deep Defense, two epochs more"}

_TABLE1 = {
    "accuracy": "accuracy",
    "rho2": "rho_2",
    "accuracy@0.2eps_ref": "acc. @ 0.2 eps_ref",
    "accuracy@0.5eps_ref": "acc. @ 0.5 eps_ref",
    "accuracy@1eps_ref": "acc. @ 1.0 eps_ref",
}
_TABLE2 = {
    "l2": "l_2, DeepFool",
    "fgsm_rho": "rho_inf, FGSM (ratio)",
    "fgsm_eps": "eps, FGSM",
    "cw_l2": "l_2, C&W",
    "pgd_accuracy": "acc., PGD",
    "pass": "PASS",
}
_DECIMALS = {
    "rho2": 4, "l2": 1, "fgsm_rho": 4, "fgsm_eps": 2, "cw_l2": 1, "pass": 4,
    "ratio": 2,
}  # fmt: skip


def loaded(path):
    """What a JSON file holds."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def table1(plan):
    """Table 1: accuracy, rho_2, and accuracy under FGSM; and of all seeds."""
    numbers = {}
    for network in plan.networks:
        comparison = _comparison(plan, network)
        numbers[network] = {
            "images": comparison["images"],
            "eps_ref": comparison["eps_ref"],
            "models": _columns(comparison, _TABLE1),
            "paper": {} if plan.smoke else PAPER[network],
            "seeds": _seeds(plan, network),
        }
    return numbers


def table1_text(numbers):
    """Table 1 in Markdown, ours and the paper's side by side."""
    parts = []
    for network, found in numbers.items():
        told = {key for values in found["paper"].values() for key in values}
        header, rows = ["model"], []
        for key, title in _TABLE1.items():
            header += [title, "paper"] if key in told else [title]
        for name, values in found["models"].items():
            paper = found["paper"].get(name, {})
            row = [TITLES[name]]
            for key in _TABLE1:
                row.append(_text(key, values[key]))
                if key in told:
                    row.append(_published(key, paper))
            rows.append(row)
        parts.append(
            f"{NETWORKS[network]}, seed 0, {found['images']:,} images, "
            f"eps_ref = {found['eps_ref']:.2f} of 255:\n\n"
            + tables.render(header, rows, "markdown")
        )
    return "\n\n".join([*parts, seeds_text(numbers)])


def seeds_text(numbers):
    """Reference and Deep Defense over the seeds, in Markdown."""
    header = ["MNIST", "accuracy", "paper", "rho_2", "paper", "times", "paper"]
    rows = []
    for network, found in numbers.items():
        for name, values in found["seeds"].items():
            paper = found["paper"].get(name, {})
            row = [f"{NETWORKS[network]}, {TITLES[name]}"]
            for key in ("accuracy", "rho2"):
                row += [_spread(key, values[key]), _published(key, paper)]
            first = found["paper"].get("reference", {}).get("rho2")
            times = paper["rho2"] / first if "rho2" in paper else None
            row += [_spread("ratio", values["ratio"]), _text("ratio", times)]
            rows.append(row)
    count = len(next(iter(numbers.values()))["seeds"]["reference"]["rho2"])
    return f"Mean and standard deviation of {count} seeds:\n\n" + tables.render(
        header, rows, "markdown"
    )


def table2(plan):
    """Table 2: the other attacks."""
    numbers = {}
    for network in plan.networks:
        comparison = _comparison(plan, network)
        numbers[network] = {
            "images": comparison["images"],
            "few": comparison["few"],
            "models": _columns(comparison, _TABLE2),
        }
    return numbers


def table2_text(numbers):
    """Table 2 in Markdown."""
    return "\n\n".join(
        f"{NETWORKS[network]}, seed 0, {found['images']:,} images, of which "
        f"C&W and PASS take the first {found['few']:,}:\n\n"
        + _table(found["models"], _TABLE2)
        for network, found in numbers.items()
    )


def limits(plan):
    """Accuracy under PGD with restarts, far beyond what training looks at."""
    numbers = {}
    for network in plan.networks:
        reports = {
            name: loaded(plan.result(f"{network}_limits_{name}"))
            for name in experiments.LIMITS
        }
        keys = {"accuracy": "accuracy"} | {
            f"pgd@{eps:g}_accuracy": f"eps {eps:g}"
            for eps in experiments.PGD_EPS
        }
        first = next(iter(reports.values()))
        numbers[network] = {
            "images": first["images"],
            "attacks": first["attacks"],
            "titles": keys,
            "models": {
                name: {key: report["numbers"][key][0] for key in keys}
                for name, report in reports.items()
            },
        }
    return numbers


def limits_text(numbers):
    """The limits in Markdown."""
    return "\n\n".join(
        f"{NETWORKS[network]}, seed 0, the first {found['images']:,} images, "
        "eps of 255:\n\n" + _table(found["models"], found["titles"])
        for network, found in numbers.items()
    )


def tuning(plan):
    """Settings of the other defences, tried on held-out training images."""
    numbers = {}
    for network in plan.networks:
        first = f"{network}_tuning_reference"
        clean = _last(loaded(plan.result(first))["curves"]["clean"])
        trials = {}
        for trial, (defenses, settings) in experiments.TRIALS.items():
            curves = loaded(plan.result(f"{network}_tuning_{trial}"))["curves"]
            for defense in defenses:
                trials.setdefault(defense, []).append(
                    {"settings": _own(defense, settings)}
                    | _last(curves[defense])
                )
        numbers[network] = {
            "clean": clean,
            "trials": trials,
            "best": {
                defense: _best(found, clean)
                for defense, found in trials.items()
            },
        }
    return numbers


def tuning_text(numbers):
    """The trials in Markdown."""
    header = ["trial, on held-out images", "accuracy", "rho_2", ""]
    rows = []
    for network, found in numbers.items():
        title = f"{NETWORKS[network]}, {TITLES['clean']}"
        rows.append([title, *_pair(found["clean"]), ""])
        for defense, trials in found["trials"].items():
            for trial in trials:
                settings = ", ".join(
                    f"{k} {v}" for k, v in trial["settings"].items()
                )
                title = f"{NETWORKS[network]}, {TITLES[defense]}, {settings}"
                best = trial["settings"] == found["best"][defense]
                rows.append([title, *_pair(trial), "chosen" if best else ""])
    return tables.render(header, rows, "markdown")


def figure2(plan):
    """Convergence, as in Figure 2."""
    return _convergence(
        plan,
        "figure2",
        ("clean", "parseval", "adv_train_1", "deep_defense"),
    )


def figure6(plan):
    """Against, and combined with, Adv. Train II, as in Figure 6."""
    return _convergence(
        plan, "figure6", ("deep_defense", "adv_train_2", "combined")
    )


def figure3(plan):
    """Accuracy and rho_2 over lam and c: the sweep has drawn it."""
    return _swept(plan, "3")


def figure4(plan):
    """One layer regularised: the sweep has drawn it."""
    return _swept(plan, "4")


def figure5(plan):
    """Success rate of FGSM against eps."""
    numbers = {}
    for network in plan.networks:
        comparison = _comparison(plan, network)
        curves = {
            TITLES[name]: _success_rate(estimates)
            for name, estimates in comparison["models"].items()
            if name not in ("clean", "longer")  # beside two others
        }
        numbers[network] = curves
        with files.atomic_write(plan.path(f"figure5_{network}.png")) as part:
            figures.success_rate_curves(
                curves, part, eps_ref=comparison["eps_ref"], width=7.0
            )
    return numbers


def figure7(plan):
    """Pictures of adversarial images: the training has drawn them."""
    numbers = {}
    for network in plan.networks:
        step = f"{network}_seed0"
        with files.atomic_write(plan.path(f"figure7_{network}.png")) as part:
            shutil.copyfile(plan.path(step, "adversarial_images.png"), part)
        numbers[network] = loaded(plan.result(step))["pictured"]
    return numbers


class Experiment(NamedTuple):
    """A table or a figure.

    Attributes:
        make: a `Plan` to its numbers, as JSON holds them; draws its figures.
        steps: names of the steps it needs; "*" stands for each network, and
            "%" for each seed.
        text: its numbers to Markdown; None for figures.
    """

    make: Callable
    steps: tuple[str, ...]
    text: Callable | None = None


_TRAINED = ("*_seed0", "*_others")

EXPERIMENTS = {
    "table1_mnist": Experiment(
        table1, ("*_seed%", "*_longer%", "*_comparison"), table1_text
    ),
    "table2_mnist": Experiment(table2, ("*_comparison",), table2_text),
    "figure2": Experiment(figure2, _TRAINED),
    "figure3": Experiment(figure3, ("figure3",)),
    "figure4": Experiment(figure4, ("figure4",)),
    "figure5": Experiment(figure5, ("*_comparison",)),
    "figure6": Experiment(figure6, _TRAINED),
    "figure7": Experiment(figure7, ("*_seed0",)),
    "limits_mnist": Experiment(
        limits,
        tuple(f"*_limits_{name}" for name in experiments.LIMITS),
        limits_text,
    ),
    "tuning_mnist": Experiment(
        tuning,
        tuple(f"*_tuning_{trial}" for trial in experiments.TRIALS),
        tuning_text,
    ),
}


def steps_of(name, plan):
    """Names of the steps that an experiment needs."""
    return list(
        dict.fromkeys(
            pattern.replace("*", network).replace("%", str(seed))
            for pattern in EXPERIMENTS[name].steps
            for network in plan.networks
            for seed in plan.seeds
        )
    )


def _comparison(plan, network):
    return loaded(plan.result(f"{network}_comparison"))


def _columns(comparison, keys):
    """By model: the value of each column, without its interval.

    None where it was not measured.
    """
    return {
        name: {key: estimates.get(key, [None])[0] for key in keys}
        for name, estimates in comparison["models"].items()
    }


def _seeds(plan, network):
    """By model: what each seed gave, a list for each column."""
    found = {}
    for seed in plan.seeds:
        models = loaded(plan.result(f"{network}_seed{seed}"))["models"]
        more = loaded(plan.result(f"{network}_longer{seed}"))["models"]
        models["longer"] = more["deep_defense"]
        for name, values in models.items():
            columns = found.setdefault(
                name, {"accuracy": [], "rho2": [], "ratio": []}
            )
            for key in ("accuracy", "rho2"):
                columns[key].append(values[key])
            columns["ratio"].append(
                values["rho2"] / models["reference"]["rho2"]
            )
    return found


def _convergence(plan, figure, names):
    numbers = {}
    for network in plan.networks:
        curves = {
            **loaded(plan.result(f"{network}_seed0"))["curves"],
            **loaded(plan.result(f"{network}_others"))["curves"],
        }
        shown = {TITLES[name]: curves[name] for name in names}
        with files.atomic_write(plan.path(f"{figure}_{network}.png")) as part:
            figures.convergence_curves(shown, part)
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


def _last(curve):
    """Accuracy and rho_2 after the last epoch."""
    return {"accuracy": curve["accuracy"][-1], "rho2": curve["rho"][-1]}


def _own(defense, settings):
    """Those of a trial's settings that concern a defence."""
    name = {"adv_train_2": "eps", "parseval": "beta"}.get(
        defense, "include_clean"
    )
    return {name: settings.get(name, False)}


def _best(trials, clean):
    """The settings with the largest rho_2 at hardly a lower accuracy."""
    least = clean["accuracy"] - experiments.TOLERANCE
    sound = [trial for trial in trials if trial["accuracy"] >= least]
    if not sound:
        return max(trials, key=lambda trial: trial["accuracy"])["settings"]
    return max(sound, key=lambda trial: trial["rho2"])["settings"]


def _table(models, titles):
    rows = [
        [TITLES[name], *(_text(key, values[key]) for key in titles)]
        for name, values in models.items()
    ]
    return tables.render(["model", *titles.values()], rows, "markdown")


def _pair(values):
    return [_text(key, values[key]) for key in ("accuracy", "rho2")]


def _text(key, value):
    """A number for a table; shares in percent."""
    if value is None or not math.isfinite(value):
        return "-"
    if key in _DECIMALS:
        return f"{value:.{_DECIMALS[key]}f}"
    return f"{100 * value:.2f} %"


def _published(key, paper):
    """A number of the paper's, to its decimals."""
    if key == "rho2" and key in paper:
        return f"{paper[key]:.3f}"
    return _text(key, paper.get(key))


def _spread(key, values):
    """The mean of some numbers, and their standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    mean = statistics.fmean(values)
    if key in _DECIMALS:
        decimals = _DECIMALS[key]
        return f"{mean:.{decimals}f} ± {deviation:.{decimals}f}"
    return f"{100 * mean:.2f} ± {100 * deviation:.2f} %"
