"""The files of a sweep over settings: its table and its figure.

Which measures they have follows from the numbers: those of the strongest
attacks where there are any, else rho.
"""

import os
import re
from collections.abc import Mapping, Sequence

from absl import flags

from dd_keras import plots
from dd_keras.utils import files, tables

FLAGS = flags.FLAGS

# What the strongest attacks leave, and what it is called.
MEASURES = {
    "l2_best": "l_2, best known",
    "autoattack_l2_accuracy": "acc., AutoAttack l_2",
    "autoattack_accuracy": "acc., AutoAttack l_inf",
}
_SYMBOLS = {
    "l2_best": "Mean best-known $l_2$ distance",
    "autoattack_l2_accuracy": "AutoAttack, $l_2$ (%)",
    "autoattack_accuracy": r"AutoAttack, $l_\infty$ (%)",
}
# How much accuracy a point may have lost to be drawn beside strong attacks.
_SHOWN = 0.03

Result = Mapping
Series = Mapping[str, Sequence[Result]]


def write(
    series: Series, reference: Result | None, output_dir: str
) -> list[str]:
    """Writes table and figure; returns paths, sweep.json the first of them.

    Args:
        series: dict of names to results of points, as apps/sweep.py has them.
        reference: the same of the classifier that all start from, or None.
        output_dir: where the files go.
    """
    written = [
        os.path.join(output_dir, name)
        for name in ("sweep.json", "table.md", "sweep.png")
    ]
    files.write_text(table(series, reference) + "\n", written[1])
    if not curves(series):
        return written[:2]
    draw(series, reference, written[2])
    return written


def draw(series: Series, reference: Result | None, path: str) -> None:
    """Draws all points that came to a classifier, a curve for each series."""
    points = curves(series)
    star = reference and _values(reference["numbers"])
    with files.atomic_write(path) as part:
        if "l2_best" in next(iter(points.values())):
            best = max(max(entry["accuracy"]) for entry in points.values())
            least = max(0.0, (star["accuracy"] if star else best) - _SHOWN)
            plots.frontier(points, _SYMBOLS, part, star, round(least, 3))
            return
        plots.trade_off(
            points,
            part,
            FLAGS.norm if "norm" in FLAGS else 2,
            (star["rho"], star["accuracy"]) if star else None,
            width=7.0,
        )


def curves(series: Series) -> dict[str, dict[str, list]]:
    """The points that came to a classifier, as the plots take them."""
    found = {}
    for name, results in series.items():
        done = [result for result in results if result["numbers"]]
        if done:
            columns = [_values(result["numbers"]) for result in done]
            found[name] = {
                key: [column[key] for column in columns] for key in columns[0]
            } | {"labels": [_short(result["label"]) for result in done]}
    return found


def kept(result: Result) -> dict:
    """What a reader needs of a point."""
    names = ("label", "numbers", "images", "training_seconds", "settings")
    return {name: result[name] for name in names if name in result}


def table(
    series: Series, reference: Result | None, form: str = "markdown"
) -> str:
    """All points, a row each."""
    rows = []
    if reference:
        rows.append(["reference", "", reference["numbers"], ""])
    for name, results in series.items():
        rows += [
            [
                name,
                result["label"],
                result["numbers"],
                f"{result['training_seconds']:.0f} s",
            ]
            for result in results
        ]
    measured = next((row[2] for row in rows if row[2]), {})
    header = _titles(measured)
    return tables.render(
        ["defence", "", "accuracy", *header.values(), "training"],
        [
            [
                *names,
                *(
                    [_cell(key, numbers[key]) for key in ("accuracy", *header)]
                    if numbers
                    else ["diverged", *["-"] * len(header)]
                ),
                seconds,
            ]
            for *names, numbers, seconds in rows
        ],
        form,
    )


def _values(numbers):
    """Accuracy, and what it stands against, by the names of the plots."""
    if "l2_best" in numbers:
        return {key: numbers[key][0] for key in ("accuracy", *MEASURES)}
    rho, _ = _distances(numbers)
    return {"accuracy": numbers["accuracy"][0], "rho": numbers[rho][0]}


def _titles(numbers):
    """The columns of the table: keys to titles."""
    if "l2_best" in numbers:
        return MEASURES
    return {key: f"{key[:-1]}_{key[-1]}" for key in _distances(numbers)}


def _distances(numbers):
    """The names of rho and distance, as rho2 and l2, whatever the norm."""
    return [key for key in numbers if re.fullmatch("rho.+|l[^_]+", key)]


def _cell(key, estimate):
    value, low, high = estimate[:3]
    if key == "accuracy":
        return f"{100 * value:.2f} %"
    if "accuracy" in key:
        return f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
    digits = ".4f" if key.startswith("rho") else ".1f"
    return f"{value:{digits}} ({low:{digits}} to {high:{digits}})"


def _short(label):
    """The value alone: the series' name says of what."""
    return label.partition("=")[2] or label
