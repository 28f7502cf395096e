"""Accuracy against robustness of many trainings: table, figure, comparison."""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from dd_keras import plots
from dd_keras.evaluation.statistics import ratio_of_means
from dd_keras.utils import files, tables

# What robustness is measured by, and what it is called.
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
# How much accuracy a point may have lost to be drawn.
_SHOWN = 0.03
# At equal accuracy: no more than so much less.
TOLERANCE = 0.0005

# What experiment "frontier_mnist" trains: by the name of its step, a --series.
# Deep Defense's c goes down to an eighth of the paper's; of the classes, the
# three most probable are considered. eps and d_max are of pixels to 255.
_IMPLICIT = "deep_defense gradient=implicit"
_BOUNDED = f"{_IMPLICIT} bounded=true"
_C = "c=3,5,10,15,25"
OURS = {
    "unrolled": f"Deep Defense=deep_defense candidates=3 {_C}",
    "implicit": f"Deep Defense, implicit={_IMPLICIT} candidates=3 {_C}",
    "bounded": f"Deep Defense, bounded={_BOUNDED} candidates=3 {_C}",
    "ddn": f"Deep Defense by DDN={_BOUNDED} attack=ddn max_iter=10 {_C}",
    "superdeepfool": f"Deep Defense by SuperDeepFool={_BOUNDED} candidates=3 "
    f"attack=superdeepfool max_iter=2 {_C}",
    "lam": f"Deep Defense, lam={_IMPLICIT} candidates=3 c=10 "
    "lam=5,10,30,60,120",
    "min": f"Deep Defense, min={_IMPLICIT} candidates=3 aggregation=min c=5 "
    "lam=15,50,150,500,1500",
    "inverse": f"Deep Defense, inverse={_IMPLICIT} candidates=3 "
    f"shrinkage=inverse {_C}",
    "combined": "Deep Defense + Adv. Train II=combined gradient=implicit "
    "bounded=true candidates=3 c=10 eps=6.375,12.75,25.5,38.25,51",
}
OTHERS = {
    "clean": "clean=clean",
    "adv_train_1": "Adv. Train I=adv_train_1 include_clean=true,false",
    "adv_train_2": "Adv. Train II=adv_train_2 bounded=true "
    "eps=6.375,12.75,25.5,38.25,51",
    "parseval": "Parseval=parseval beta=1e-4,3e-4,1e-3,3e-3,1e-2",
    "pgd_linf": "PGD, l_inf=pgd bounded=true eps=6.375,12.75,25.5,38.25,51",
    "pgd_l2": "PGD, l_2=pgd ball=l2 bounded=true eps=127.5,255,382.5,510,765",
    "trades": "TRADES, l_2=trades ball=l2 bounded=true eps=510 "
    "trades_beta=0.3,1,3,6,10",
    "mma": "MMA=mma bounded=true candidates=3 d_max=255,510,765,1020,1530",
    "input_gradient": "input gradient=input_gradient "
    "gradient_lam=1e3,1e4,1e5,1e6,1e7",
}

Series = Mapping[str, Sequence[Mapping]]


def write(
    series: Series, reference: Mapping | None, output_dir: str
) -> list[str]:
    """Writes table and figure; returns paths, frontier.json the first of them.

    Args:
        series: dict of names to results of points, as apps/frontier.py has
            them.
        reference: the same of the classifier that all start from, or None.
        output_dir: where the files go.
    """
    written = [
        os.path.join(output_dir, name)
        for name in ("frontier.json", "table.md", "frontier.png")
    ]
    files.write_text(table(series, reference) + "\n", written[1])
    points = curves(series)
    if not points:
        return written[:2]
    with files.atomic_write(written[2]) as part:
        draw(points, reference, part)
    return written


def draw(points: dict, reference: Mapping | None, path: str) -> None:
    """Draws what `curves` returned, down to a few points of accuracy lost."""
    star = reference and _values(reference["numbers"])
    best = max(max(entry["accuracy"]) for entry in points.values())
    least = max(0.0, (star["accuracy"] if star else best) - _SHOWN)
    plots.frontier(points, _SYMBOLS, path, star, round(least, 3))


def curves(series: Series) -> dict[str, dict[str, list]]:
    """The points that came to a classifier, as `plots.frontier` takes them."""
    found = {}
    for name, results in series.items():
        done = [result for result in results if result["numbers"]]
        if done:
            columns = [_values(result["numbers"]) for result in done]
            found[name] = {
                key: [column[key] for column in columns] for key in columns[0]
            } | {"labels": [_short(result["label"]) for result in done]}
    return found


def table(
    series: Series, reference: Mapping | None, form: str = "markdown"
) -> str:
    """All points, a row each."""
    header = ["defence", "", "accuracy", *MEASURES.values(), "training"]
    rows = []
    if reference:
        rows.append(["reference", "", *_cells(reference["numbers"]), ""])
    for name, results in series.items():
        for result in results:
            numbers = result["numbers"]
            rows.append(
                [
                    name,
                    result["label"],
                    *(_cells(numbers) if numbers else ["diverged"] + ["-"] * 3),
                    f"{result['training_seconds']:.0f} s",
                ]
            )
    return tables.render(header, rows, form)


def advantage(
    ours: Mapping[str, Mapping],
    others: Mapping[str, Mapping],
    distances: Mapping[str, np.ndarray],
) -> list[dict]:
    """How much farther our boundaries are than others', at equal accuracy.

    Args:
        ours: dict of names of points to their results.
        others: the same of what they are compared with.
        distances: by name of the point, the best known distances of the same
            images, (N,).

    Returns:
        For each of the others a dict: `"other"`, its name; `"accuracy"`;
        `"ours"`, the name of our point with the largest mean distance among
        those that are as accurate (but for `TOLERANCE`), or None if there is
        none; and `"ratio"`, of the mean distances, with a paired interval.
    """
    found = []
    for name, result in others.items():
        accuracy = result["numbers"]["accuracy"][0]
        as_accurate = [
            one
            for one, mine in ours.items()
            if mine["numbers"]["accuracy"][0] >= accuracy - TOLERANCE
        ]
        best = max(
            as_accurate,
            key=lambda one: ours[one]["numbers"]["l2_best"][0],
            default=None,
        )
        ratio = None
        if best is not None:
            ratio = list(ratio_of_means(distances[best], distances[name])[:3])
        found.append(
            {"other": name, "accuracy": accuracy, "ours": best, "ratio": ratio}
        )
    return found


def _values(numbers):
    return {key: numbers[key][0] for key in ("accuracy", *MEASURES)}


def _cells(numbers):
    cells = [f"{100 * numbers['accuracy'][0]:.2f} %"]
    for key in MEASURES:
        value, low, high = numbers[key][:3]
        if key == "l2_best":
            cells.append(f"{value:.1f} ({low:.1f} to {high:.1f})")
        else:
            cells.append(
                f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
            )
    return cells


def _short(label):
    """The value alone: the series' name says of what."""
    return label.partition("=")[2] or label
