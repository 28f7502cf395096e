"""The paper's tables, from what the steps of a `Plan` wrote.

A table is two functions: of a `steps.Plan` whose steps are done to its
numbers, as JSON holds them, and of these to Markdown. The paper's own numbers,
from published.json, stand beside ours. Those of both data sets take the module
that has its commands.
"""

import json
import math
import os
import statistics
import types
from typing import Any

from paper import cifar10, mnist
from paper.steps import Plan
from shared.training import REFERENCE, title_of

from dd_keras.defenses import METHODS
from dd_keras.utils import tables

TITLES = {
    **{name: title_of(name) for name in (REFERENCE, *METHODS)},
    "longer": "Deep Defense, two epochs more",
}

NETWORKS = {**mnist.NETWORKS, **cifar10.NETWORKS}

_TABLE1 = {
    "accuracy": "accuracy",
    "rho2": "rho_2",
    "accuracy@0.2eps_ref": "acc. @ 0.2 eps_ref",
    "accuracy@0.5eps_ref": "acc. @ 0.5 eps_ref",
    "accuracy@1eps_ref": "acc. @ 1.0 eps_ref",
}
# The same by the paper's form of FGSM, in comparisons that have it.
_PAPERS_FGSM = {
    f"paper_accuracy@{share}eps_ref": f"paper's FGSM @ {share}"
    for share in ("0.2", "0.5", "1")
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


def loaded(path: str) -> Any:
    """What a JSON file holds."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def published(part: str = "table1") -> dict:
    """What the paper says: dict of data sets to dicts of networks.

    Args:
        part: "table1", the numbers of each model, or "settings".
    """
    path = os.path.join(os.path.dirname(__file__), "published.json")
    return loaded(path)[part]


def comparison_of(plan: Plan, network: str) -> dict:
    """What apps/compare.py wrote of a network's models."""
    return loaded(plan.result(f"{network}_comparison"))


def table1(plan: Plan, of: types.ModuleType = mnist) -> dict:
    """Table 1: accuracy, rho_2, and accuracy under FGSM; and of all seeds."""
    numbers = {}
    for network in of.networks(plan):
        comparison = comparison_of(plan, network)
        paper = {} if plan.smoke else published()[of.DATASET][network]
        numbers[network] = {
            "images": comparison["images"],
            "eps_ref": comparison["eps_ref"],
            "models": _columns(comparison, _TABLE1 | _papers_fgsm(comparison)),
            "paper": paper,
        }
        if of is mnist:
            numbers[network]["seeds"] = _seeds(plan, network)
    return numbers


def table1_text(numbers: dict) -> str:
    """Table 1 in Markdown, ours and the paper's side by side."""
    parts = [
        f"{NETWORKS[network]}, seed 0, {found['images']:,} images, "
        f"eps_ref = {found['eps_ref']:.2f} of 255:\n\n{_beside_paper(found)}"
        for network, found in numbers.items()
    ]
    if all("seeds" in found for found in numbers.values()):
        parts.append(seeds_text(numbers))
    return "\n\n".join(parts)


def _beside_paper(found):
    """Table 1 of one network, a column of the paper's behind each of ours."""
    header = ["model"]
    for title in _TABLE1.values():
        header += [title, "paper"]
    own = [k for k in _PAPERS_FGSM if k in next(iter(found["models"].values()))]
    header += [_PAPERS_FGSM[key] for key in own]
    rows = []
    for name, values in found["models"].items():
        row, paper = [TITLES[name]], found["paper"].get(name, {})
        for key in _TABLE1:
            row += [_text(key, values[key]), _published(key, paper)]
        rows.append([*row, *(_text(key, values[key]) for key in own)])
    return tables.render(header, rows, "markdown")


def seeds_text(numbers: dict) -> str:
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


def table2(plan: Plan, of: types.ModuleType = mnist) -> dict:
    """Table 2: the other attacks."""
    numbers = {}
    for network in of.networks(plan):
        comparison = comparison_of(plan, network)
        numbers[network] = {
            "images": comparison["images"],
            "few": comparison["few"],
            "models": _columns(comparison, _TABLE2),
        }
    return numbers


def table2_text(numbers: dict) -> str:
    """Table 2 in Markdown."""
    return "\n\n".join(
        f"{NETWORKS[network]}, seed 0, {found['images']:,} images, of which "
        f"C&W and PASS take the first {found['few']:,}:\n\n"
        + _table(found["models"], _TABLE2)
        for network, found in numbers.items()
    )


def limits(plan: Plan) -> dict:
    """Accuracy under PGD with restarts, far beyond what training looks at."""
    numbers = {}
    for network in mnist.networks(plan):
        reports = {
            name: loaded(plan.result(f"{network}_limits_{name}"))
            for name in mnist.LIMITS
        }
        keys = {"accuracy": "accuracy"} | {
            f"pgd@{eps:g}_accuracy": f"eps {eps:g}" for eps in mnist.PGD_EPS
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


def limits_text(numbers: dict) -> str:
    """The limits in Markdown."""
    return "\n\n".join(
        f"{NETWORKS[network]}, seed 0, the first {found['images']:,} images, "
        "eps of 255:\n\n" + _table(found["models"], found["titles"])
        for network, found in numbers.items()
    )


def tuning(plan: Plan) -> dict:
    """Settings of the other defences, tried on validation images."""
    numbers = {}
    for network in mnist.networks(plan):
        first = f"{network}_tuning_reference"
        clean = _last(loaded(plan.result(first))["curves"]["clean"])
        trials = {}
        for trial, (defenses, settings) in mnist.TRIALS.items():
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


def tuning_text(numbers: dict) -> str:
    """The trials in Markdown."""
    header = ["trial, on validation images", "accuracy", "rho_2", ""]
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


def _columns(comparison, keys):
    """By model: the value of each column, without its interval.

    None where it was not measured.
    """
    return {
        name: {key: estimates.get(key, [None])[0] for key in keys}
        for name, estimates in comparison["models"].items()
    }


def _papers_fgsm(comparison):
    """The columns of the paper's form of FGSM, if they were measured."""
    return _PAPERS_FGSM if comparison.get("paper_eps_ref") else {}


def _seeds(plan, network):
    """By model: what each seed gave, a list for each column."""
    found = {}
    for seed in mnist.seeds(plan):
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
    least = clean["accuracy"] - mnist.TOLERANCE
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
