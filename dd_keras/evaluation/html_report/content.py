"""What a page tells of one report: numbers and sentences, no markup."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dd_keras import attacks
from dd_keras.evaluation.metrics import (
    AccuracyUnderAttack,
    BestDistance,
    Distance,
    EpsSweep,
    Explanation,
    Metric,
    SmallestEps,
)
from dd_keras.evaluation.metrics.base import REACHED, order_of
from dd_keras.evaluation.report import RobustnessReport
from dd_keras.evaluation.statistics import Estimate, mean, median, proportion

SHOWN = 20  # fragile samples, and misclassified ones
MOST_CLASSES = 20  # of a matrix of classes; of more, the most frequent pairs
MOST_PAIRS = 15
FOLDED = 8  # more numbers than these of one metric are folded away


class Row(NamedTuple):
    """A line of the table: a number, and what it means."""

    name: str
    estimate: Estimate
    explanation: str


class Group(NamedTuple):
    """The lines of one metric, and what it cost."""

    metric: str
    rows: list[Row]
    cost: str
    folded: bool


class Confusion(NamedTuple):
    """From which class an attack led to which.

    `classes`: (n,), those in `counts`, (n, n), rows being the classes that it
    started from; with many classes both are None. `pairs`: the most frequent,
    as (from, to, count).
    """

    attack: str
    total: int
    classes: np.ndarray | None
    counts: np.ndarray | None
    pairs: list[tuple[int, int, int]]


class ClassRow(NamedTuple):
    """The samples of one class: how many, and how robust."""

    label: int
    samples: int
    accuracy: Estimate
    distance: Estimate | None


def kind_of(metric: Metric) -> str:
    """What runs in a metric, for readers: "DeepFool", "PGD"."""
    if isinstance(metric, BestDistance):
        return "the best of " + ", ".join(metric.all_attacks)
    return (
        "no attack" if metric.attack is None else type(metric.attack).__name__
    )


def norm_of(metric: Metric) -> float:
    """The order of the norm that a metric's attack works in."""
    if isinstance(metric, (EpsSweep, SmallestEps)):
        return math.inf
    return getattr(metric, "norm", None) or metric.attack.norm


def distance_metric(report: RobustnessReport) -> Metric | None:
    """The metric whose distances say most: the closest bounds, l_2 first."""
    kinds = (BestDistance, Distance, SmallestEps)
    known = [m for m in report.metrics if isinstance(m, kinds)]

    def rank(metric):
        kind = [isinstance(metric, k) for k in kinds].index(True)
        return kind, norm_of(metric) != 2

    return min(known, key=rank, default=None)


def strongest(report: RobustnessReport) -> list[AccuracyUnderAttack]:
    """The metrics of the strongest attack of a given size, by size."""
    sized = [m for m in report.metrics if isinstance(m, AccuracyUnderAttack)]
    by_auto = [m for m in sized if isinstance(m.attack, attacks.AutoAttack)]
    return sorted(by_auto or sized, key=lambda m: m.attack.eps)


def percent(estimate: Estimate) -> str:
    """A share with its interval: "88.4 % (86.2 to 90.4 %)"."""
    value, low, high = (100 * v for v in estimate[:3])
    if not math.isfinite(value):
        return "-"
    return f"{value:.1f} % ({low:.1f} to {high:.1f} %)"


def verdict(report: RobustnessReport, unit: str) -> tuple[str, list[str]]:
    """What came of it, in one sentence; and what it does not say, in others.

    Args:
        report: of any metrics.
        unit: of the inputs, as "units of the inputs".
    """
    correct = report.labels == report.predictions
    sentence = (
        f"{percent(proportion(correct))} of {len(report):,} samples are "
        "classified correctly"
    )
    notes = [
        "In brackets: 95 % confidence intervals. They say how far a number "
        "would move with other samples of the same kind, not with a stronger "
        "attack."
    ]
    metric, sized = distance_metric(report), strongest(report)
    counted = "of those " if report.misclassified == "exclude" else ""
    if sized:
        found = [
            f"{percent(report.estimates[f'{m.name}_accuracy'])} at eps "
            f"{m.attack.eps:.4g}"
            for m in sized
            if m.attack.norm == sized[0].attack.norm
        ]
        sentence += (
            f"; under {kind_of(sized[0])}, the strongest attack used, "
            f"{counted}{', '.join(found[:3])} "
            f"({order_of(sized[0].attack.norm)}, in {unit})"
        )
    elif metric is not None:
        length = half_distance(report, metric)
        if math.isfinite(length.value):
            sentence += (
                f"; a perturbation of {order_of(norm_of(metric))} length "
                f"{length.text()} ({length.interval_text()}, in {unit}) "
                "changes the decision on half of them"
            )
    elif len(report.metrics) < 2:
        sentence += "; no attack was run"
    if metric is not None:
        notes.append(_of_distance(report, metric, unit))
    if not any(isinstance(m.attack, attacks.AutoAttack) for m in sized):
        notes.append(
            "AutoAttack, the usual standard, is not among the attacks; a "
            "stronger attack than these may leave less."
        )
    return sentence + ".", notes


def half_distance(report: RobustnessReport, metric: Metric) -> Estimate:
    """The distance within which half of the correct samples are flipped."""
    fooled = report.values[f"{metric.name}_fooled"]
    lengths = np.where(fooled, report.values[metric.distance_name], np.inf)
    return median(lengths[report.labels == report.predictions])


def _of_distance(report, metric, unit):
    """How far the decision boundary is, and how sure that is."""
    relative = report.estimates[metric.name]
    length = half_distance(report, metric)
    bound = (
        "the shortest that several attacks found, sample by sample: a close "
        "upper bound of the distance to the decision boundary"
        if isinstance(metric, BestDistance)
        else f"an upper bound: {kind_of(metric)} finds short perturbations, "
        "not the shortest"
    )
    half = ""
    if math.isfinite(length.value):
        half = (
            f" Half of the correctly classified samples are flipped by at most "
            f"{length.text()} ({length.interval_text()}) {unit}."
        )
    return (
        f"{metric.name}, the size of the perturbation over that of the input "
        f"in {order_of(norm_of(metric))}, is {relative.text()} on average "
        f"({relative.interval_text()}). It is {bound}.{half}"
    )


def table(report: RobustnessReport) -> list[Group]:
    """All numbers of a report, metric by metric, each explained."""
    groups = []
    seen: set[str] = set()
    for metric, estimates in zip(
        report.metrics, report.estimates_of_each, strict=True
    ):
        texts = metric.explanations()
        rows = [
            Row(
                name,
                report.estimates[name],
                explanation(metric, texts, name)[0],
            )
            for name in estimates
            if name not in seen
        ]
        seen.update(row.name for row in rows)
        groups.append(
            Group(metric.name, rows, _cost(report, metric), len(rows) > FOLDED)
        )
    return groups


def explanation(
    metric: Metric, texts: Mapping[str, Explanation], name: str
) -> Explanation:
    """What a number means; of a metric that does not say, its docstring."""
    if name in texts:
        return texts[name]
    first = (type(metric).__doc__ or "").strip().split("\n")[0]
    return Explanation(f"A number of {type(metric).__name__}. {first}".strip())


def _cost(report, metric):
    """The passes that a metric took, and its time, in words."""
    cost = report.costs.get(metric.name)
    if cost is None or not any(cost):
        return ""
    parts = [
        f"{passes / len(report):,.1f} {kind}"
        for kind, passes in (
            ("forward", cost.forward),
            ("backward", cost.backward),
        )
        if passes
    ]
    text = " and ".join(parts) + " passes a sample"
    seconds = report.seconds.get(metric.name)
    return text if seconds is None else f"{text}, {seconds:,.1f} s in all"


def curves(report: RobustnessReport) -> dict[float, dict[str, dict]]:
    """Accuracy against eps: by norm, by attack, what `plots` draws.

    Returns:
        dict from norms to dicts from an attack's name to a dict of arrays
        (E,): `eps`, `accuracy`, `low` and `high`.
    """
    found: dict[float, dict[str, dict]] = {}
    if not report.samples().counted.any():
        return found
    for name, norm, points in _points(report):
        columns = np.array([[e, *estimate[:3]] for e, estimate in points])
        columns = columns[np.argsort(columns[:, 0], kind="stable")]
        keys = ("eps", "accuracy", "low", "high")
        series = dict(zip(keys, columns.T, strict=True))
        found.setdefault(norm, {})[name] = series
    for metric in report.metrics:
        if not metric.distance_name or _swept(report, metric):
            continue
        norm = norm_of(metric)
        name = kind_of(metric)
        if isinstance(metric, BestDistance):
            name = "best known distance"
        if name in found.get(norm, {}) or getattr(metric, "prefix", None):
            name = metric.distance_name
        series = report.robust_accuracy(distance=metric.distance_name)
        if np.all(np.diff(series["eps"]) > 0):  # else nothing was found
            found.setdefault(norm, {})[name] = series
    return dict(sorted(found.items(), key=lambda item: -item[0]))


def _swept(report, metric):
    """Whether a sweep of the report has the curve of these smallest eps."""
    if not isinstance(metric, SmallestEps):
        return False
    sweep = metric.name.removesuffix("_rho")
    return any(m.name == sweep for m in report.metrics)


def _points(report):
    """Accuracies at given eps: (name, norm, list of (eps, Estimate))."""
    by_kind: dict[tuple, list] = {}
    for metric in report.metrics:
        if isinstance(metric, EpsSweep):
            name = "FGSM, the paper's"
            if metric.attack.float32_gradient:
                name = "FGSM, float32's gradient"
            points = [
                (eps, report.estimates[f"{metric.name}_accuracy@{eps:g}"])
                for eps in metric.eps
            ]
            yield name, math.inf, points
        if isinstance(metric, AccuracyUnderAttack):
            key = kind_of(metric), metric.attack.norm
            by_kind.setdefault(key, []).append(metric)
    for (name, norm), alike in by_kind.items():
        points = [
            (m.attack.eps, report.estimates[f"{m.name}_accuracy"])
            for m in alike
        ]
        if len({eps for eps, _ in points}) == len(points):
            yield name, norm, points
            continue
        for metric, point in zip(alike, points, strict=True):
            yield metric.name, norm, [point]


def fragile(report: RobustnessReport) -> np.ndarray:
    """The correct samples nearest to another decision: int, at most 20."""
    metric = distance_metric(report)
    if metric is None:
        return np.zeros(0, int)
    fooled = report.values[f"{metric.name}_fooled"]
    chosen = np.flatnonzero(fooled & (report.labels == report.predictions))
    lengths = report.values[metric.distance_name][chosen]
    return chosen[np.argsort(lengths, kind="stable")][:SHOWN]


def misclassified(report: RobustnessReport) -> np.ndarray:
    """The surest mistakes, furthest from another decision: at most 20.

    Without distances, the first.
    """
    chosen = np.flatnonzero(report.labels != report.predictions)
    metric = distance_metric(report)
    if metric is None:
        return chosen[:SHOWN]
    lengths = report.values[metric.distance_name][chosen]
    return chosen[np.argsort(-lengths, kind="stable")][:SHOWN]


def confusion(report: RobustnessReport) -> Confusion | None:
    """From which class the attack led to which; None if it was not kept."""
    candidates = [distance_metric(report), *strongest(report), *report.metrics]
    for metric in candidates:
        if metric is not None and metric.name + REACHED in report.values:
            break
    else:
        return None
    reached = report.values[metric.name + REACHED]
    moved = report.values[f"{metric.name}_fooled"] & (
        reached != report.predictions
    )
    start, end = report.predictions[moved], reached[moved]
    pairs, number = np.unique(
        np.stack([start, end], axis=1), axis=0, return_counts=True
    )
    order = np.argsort(-number, kind="stable")
    frequent = [
        (int(pairs[i, 0]), int(pairs[i, 1]), int(number[i]))
        for i in order[:MOST_PAIRS]
    ]
    classes = counts = None
    known = np.unique([*report.labels, *report.predictions, *reached])
    if len(known) <= MOST_CLASSES:
        classes = known
        counts = np.zeros((len(known), len(known)), int)
        np.add.at(
            counts, tuple(np.searchsorted(known, c) for c in (start, end)), 1
        )
    return Confusion(
        kind_of(metric), int(moved.sum()), classes, counts, frequent
    )


def by_class(report: RobustnessReport) -> list[ClassRow]:
    """Each class' accuracy and mean distance, the least robust first."""
    metric = distance_metric(report)
    rows = []
    for label in np.unique(report.labels):
        own = report.labels == label
        accuracy = proportion(report.predictions[own] == label)
        distance = None
        if metric is not None:
            distance = mean(report.values[metric.name][own])
        rows.append(ClassRow(int(label), int(own.sum()), accuracy, distance))
    return sorted(rows, key=lambda row: (row.distance or row.accuracy).value)


def entries(values: Mapping, before: str = "") -> Iterable[tuple[str, str]]:
    """What a dict of dicts holds: pairs of a name, as "a / b", and a text."""
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            yield from entries(value, f"{name} / ")
        elif value is not None and value != "":
            yield name, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
