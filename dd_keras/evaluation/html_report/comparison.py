"""Several classifiers side by side, as a page."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dd_keras.evaluation.html_report import content, page
from dd_keras.evaluation.metrics import BestDistance
from dd_keras.evaluation.report import RobustnessReport
from dd_keras.evaluation.statistics import Estimate


class Line(NamedTuple):
    """A number of all models; `best` is the one that is ahead, if one is."""

    name: str
    explanation: str
    estimates: list[Estimate | None]
    best: int | None


class Part(NamedTuple):
    """The numbers that were measured on the same samples."""

    samples: list[int]
    lines: list[Line]
    folded: list[Line]


def compare_to_html(
    reports: Mapping[str, RobustnessReport | Sequence[RobustnessReport]],
    path: str | os.PathLike,
    *,
    title: str = "Robustness of several classifiers",
    class_names: Sequence[str] | None = None,
    unit: str = page.UNIT,
    provenance: Mapping | None = None,
) -> None:
    """Writes the reports of several classifiers side by side, as one page.

    The best number of a line is marked where it is ahead of every other by
    more than the 95 % interval of the difference. That interval is the one of
    independent samples; on the same samples it is rather too wide.

    Args:
        reports: dict from a classifier's name to its report, or to several
            reports, as of all samples and of the first thousand: of each
            classifier the same, in the same order.
        path: file to write, atomically.
        title: of the page.
        class_names: of all classes, in their order; None: their numbers.
        unit: what the inputs are measured in, for axes and sentences.
        provenance: what made the reports, a dict of texts, numbers and dicts.

    Raises:
        ImportError: if Jinja2 or matplotlib is not installed.
        ValueError: if `reports` is empty, its entries differ in length, or
            `class_names` are too few.

    Example:
        >>> before, after = (
        ...     dd_keras.evaluate_robustness(
        ...         model, x_test, y_test, metrics=["accuracy"], verbose=0
        ...     )
        ...     for model in (classifier, keras.models.clone_model(classifier))
        ... )
        >>> dd_keras.evaluation.compare_to_html(
        ...     {"trained": before, "untrained": after}, "comparison.html"
        ... )
        >>> os.path.exists("comparison.html")
        True
    """
    listed = {
        str(name): [given] if isinstance(given, RobustnessReport) else [*given]
        for name, given in reports.items()
    }
    lengths = {len(given) for given in listed.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            "reports: expected at least one classifier, with as many reports "
            "as the others; received "
            f"{ {name: len(given) for name, given in listed.items()} }."
        )
    for given in listed.values():
        for report in given:
            page.check_class_names(report, class_names)
    names = page.Names(class_names)
    page.save(
        path,
        "comparison.html.jinja",
        title=title,
        headline=verdict(listed),
        notes=_notes(listed),
        models=list(listed),
        parts=parts(listed),
        figures=_figures(listed, unit),
        distances=_distances(listed, names.given),
        unit=unit,
        warnings={
            name: [w for report in given for w in report.warnings]
            for name, given in listed.items()
        },
        provenance=list(content.entries(provenance or {})),
    )


def parts(listed: Mapping[str, Sequence[RobustnessReport]]) -> list[Part]:
    """All numbers, a part for each kind of report."""
    found = []
    for alike in zip(*listed.values(), strict=True):
        folded: list[Line] = []
        lines: list[Line] = []
        for group in _explained(alike):
            (folded if len(group) > content.FOLDED else lines).extend(group)
        found.append(Part([len(r) for r in alike], lines, folded))
    return found


def _explained(alike):
    """The lines of each metric that any of the reports has."""
    groups: dict[str, dict[str, content.Explanation]] = {}
    for report in alike:
        for metric, estimates in zip(
            report.metrics, report.estimates_of_each, strict=True
        ):
            texts = metric.explanations()
            group = groups.setdefault(metric.name, {})
            for name in estimates:
                group.setdefault(name, content.explanation(metric, texts, name))
    for group in groups.values():
        lines = []
        for name, told in group.items():
            estimates = [report.estimates.get(name) for report in alike]
            best = best_of(estimates, told.higher_is_better)
            lines.append(Line(name, told.text, estimates, best))
        yield lines


def best_of(
    estimates: Sequence[Estimate | None], higher_is_better: bool | None
) -> int | None:
    """Which number is ahead of all others by more than the interval.

    Args:
        estimates: one of each classifier; None where it has none.
        higher_is_better: as in `metrics.Explanation`.

    Returns:
        Its place; None where none is ahead, or none is better.
    """
    if higher_is_better is None:
        return None
    sign = 1 if higher_is_better else -1
    known = {i: e for i, e in enumerate(estimates) if e is not None}
    if len(known) < 2 or any(math.isnan(e.value) for e in known.values()):
        return None
    best = max(known, key=lambda i: sign * known[i].value)
    others = [e for i, e in known.items() if i != best]
    if all(_ahead(known[best], other, sign) for other in others):
        return best
    return None


def _ahead(one, other, sign):
    """Whether a number is ahead of another by more than the interval."""
    near, far = (one.low, other.high) if sign > 0 else (one.high, other.low)
    error = math.hypot(one.value - near, other.value - far)
    return sign * (one.value - other.value) > error  # not so if that is NaN


def verdict(listed: Mapping[str, Sequence[RobustnessReport]]) -> str:
    """Which classifier is the most robust, in one sentence."""
    first = next(iter(listed.values()))
    name, place, what = _measure(first)
    estimates = {
        model: given[place].estimates.get(name)
        for model, given in listed.items()
    }
    best = best_of(list(estimates.values()), True)
    told = ", ".join(
        f"{model} {_with_interval(e)}" for model, e in estimates.items() if e
    )
    told += f" ({len(first[place]):,} samples, 95 % intervals in brackets)"
    if len(listed) == 1:
        return f"{what}: {told}."
    if best is None:
        return (
            f"No classifier is ahead of all others in {what} by more than the "
            f"interval: {told}."
        )
    return f"{list(estimates)[best]} is ahead in {what}: {told}."


def _notes(listed):
    """What the verdict does not say."""
    first = next(iter(listed.values()))
    name, place, _ = _measure(first)
    notes = []
    metric = content.distance_metric(first[place])
    if name == getattr(metric, "name", None) and not isinstance(
        metric, BestDistance
    ):
        notes.append(
            "An attack is lenient with classifiers that were trained against "
            "it, as Deep Defense is against DeepFool: the metrics rho2_best "
            "and autoattack judge more strictly."
        )
    return notes


def _measure(reports):
    """What robustness is compared by: (number, which report, in words)."""
    sized = [(place, content.strongest(r)) for place, r in enumerate(reports)]
    for only in (True, False):  # AutoAttack's before any other
        for place, metrics in sized:
            for metric in metrics:
                if only and content.kind_of(metric) != "AutoAttack":
                    continue
                return (
                    f"{metric.name}_accuracy",
                    place,
                    f"accuracy under {content.kind_of(metric)} "
                    f"({content.order_of(metric.attack.norm)}, eps "
                    f"{metric.attack.eps:.4g})",
                )
        for place, report in enumerate(reports):
            metric = content.distance_metric(report)
            if only and metric is not None:
                return (
                    metric.name,
                    place,
                    f"{metric.name}, by {content.kind_of(metric)}",
                )
    return "accuracy", 0, "accuracy"


def _with_interval(estimate):
    if estimate.is_proportion:
        return content.percent(estimate)
    return f"{estimate.text()} ({estimate.interval_text()})"


def _figures(listed, unit):
    """Accuracy against eps of all models, one figure an attack."""
    by_attack: dict[tuple, dict] = {}
    for model, given in listed.items():
        for report in given:
            for norm, series in content.curves(report).items():
                for attack, curve in series.items():
                    found = by_attack.setdefault((norm, attack), {})
                    found.setdefault(model, curve)
    return [
        page.curves_figure(
            f"{attack}, {content.order_of(norm)}",
            f"accuracy{i}",
            found,
            norm,
            unit,
        )
        for i, ((norm, attack), found) in enumerate(by_attack.items())
        if any(len(curve["eps"]) > 1 for curve in found.values())
    ]


def _distances(listed, class_names):
    """The distances of all models by class, where samples are the same."""
    first = {name: given[0] for name, given in listed.items()}
    reports = list(first.values())
    metric = content.distance_metric(reports[0])
    if metric is None or any(
        metric.name not in report.values
        or not np.array_equal(report.labels, reports[0].labels)
        for report in reports
    ):
        return None
    return page.histogram(first, class_names, metric)
