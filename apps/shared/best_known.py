"""What the strongest attacks leave of several classifiers, side by side."""

from collections.abc import Mapping

import numpy as np

from shared.evaluation import attacks_of
from shared.provenance import as_rows

from dd_keras.evaluation import RobustnessReport
from dd_keras.evaluation.statistics import ratio_of_means
from dd_keras.utils import tables

# On the same images: DeepFool as in the paper, which gains are compared with.
METRICS = ["accuracy", "l2", "l2_best", "autoattack"]

_COLUMNS = {
    "accuracy": "accuracy",
    "l2": "l_2, DeepFool",
    "gain_l2": "gain",
    "l2_best": "l_2, best known",
    "gain_l2_best": "gain",
    "autoattack_accuracy": "acc., AutoAttack",
}


def numbers(reports: Mapping[str, RobustnessReport]) -> dict:
    """All numbers of the table.

    Args:
        reports: by name of the model, of `METRICS` on the same images; the
            first is what gains are over.

    Returns:
        dict: `images`, `baseline`, `attacks`, `warnings` and `models`, by name
        a dict of `Estimate`s. `gain_l2` and `gain_l2_best` are ratios of mean
        distances, with paired intervals.
    """
    first, *_ = reports
    base = reports[first]
    found = {}
    for name, report in reports.items():
        found[name] = dict(report.estimates)
        for key in ("l2", "l2_best"):
            found[name][f"gain_{key}"] = ratio_of_means(
                report.values[key], base.values[key]
            )
    return {
        "images": len(base),
        "baseline": first,
        "attacks": attacks_of(base),
        "warnings": {name: r.warnings for name, r in reports.items()},
        "costs": {
            name: {key: list(cost) for key, cost in r.costs.items()}
            for name, r in reports.items()
        },
        "models": found,
    }


def as_json(found: dict) -> dict:
    """`numbers` as JSON can hold them."""
    rows = {name: as_rows(e) for name, e in found["models"].items()}
    return {**found, "models": rows}


def table(found: dict, form: str) -> str:
    """The table of `numbers`, see `tables.render`."""
    rows = []
    for name, estimates in found["models"].items():
        cells = []
        for key in _COLUMNS:
            cell = estimates[key].text()
            if key.startswith("gain"):
                cell = f"{estimates[key].value:.3f}"
                if name != found["baseline"]:
                    cell += f" ({estimates[key].interval_text()})"
            cells.append(cell)
        rows.append([name, *cells])
    text = tables.render(["model", *_COLUMNS.values()], rows, form)
    if form == "csv":
        return text
    return text + (
        f"\n\nThe first {found['images']:,} images. Gains: ratios of mean "
        f"distances to those of {found['baseline']!r}, with 95 % intervals. "
        "Best known: the shortest that DeepFool, DDN or FAB finds within the "
        "valid pixels; DeepFool, as in the paper, has no bounds."
    )


def curves(reports: Mapping[str, RobustnessReport]) -> dict:
    """For `plots.robust_accuracy_curves`, all models at the same eps."""
    longest = max(np.max(r.values["l2_best"]) for r in reports.values())
    eps = np.linspace(0, 1.02 * longest, 51)
    return {
        name: report.robust_accuracy(eps) for name, report in reports.items()
    }
