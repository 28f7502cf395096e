"""One report from those of the parts of a data set."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from dd_keras.evaluation import reliability
from dd_keras.evaluation.report import Cost, RobustnessReport


def merge_reports(reports: Iterable[RobustnessReport]) -> RobustnessReport:
    """The report of a whole data set from the reports of all its shards.

    Except for `seconds`, it is identical to the report of a single evaluation.

    Args:
        reports: the reports of `evaluate_robustness(..., shard=(index,
            count))`, each index once, in any order.

    Returns:
        `RobustnessReport`.

    Raises:
        ValueError: if a shard is missing or given twice, if a report is not
            that of a shard, or if settings differ.

    Example:
        >>> parts = [
        ...     dd_keras.evaluate_robustness(
        ...         classifier, x_test, y_test, shard=(index, 2), verbose=0
        ...     )
        ...     for index in (1, 2)
        ... ]
        >>> whole = dd_keras.evaluation.merge_reports(parts)
        >>> len(whole)
        100
    """
    ordered = sorted(reports, key=lambda report: report.shard or (0, 0))
    shards = [report.shard for report in ordered]
    count = len(shards)
    if not count or shards != [(k, count) for k in range(1, count + 1)]:
        raise ValueError(
            "reports: expected each shard of a data set once, (1, n) to (n, "
            f"n); received {shards}."
        )
    first = ordered[0]
    measured = _measured(first)
    for number, report in enumerate(ordered, 1):
        if _measured(report) != measured:
            raise ValueError(
                "reports: expected shards of one evaluation; received shard "
                f"{number} with other metrics, settings or arrays than shard 1."
            )
    merged = RobustnessReport(
        first.metrics,
        first.misclassified,
        {
            name: np.concatenate([r.values[name] for r in ordered])
            for name in first.values
        },
        costs={
            name: Cost(*np.sum([r.costs[name] for r in ordered], 0).tolist())
            for name in first.costs
        },
        seconds={
            name: sum(r.seconds.get(name, 0.0) for r in ordered)
            for name in first.seconds
        },
    )
    random = reliability.RANDOM_OUTPUTS
    warned = [random] if any(random in r.warnings for r in ordered) else []
    warned += reliability.reliability_warnings(merged.metrics, merged.samples())
    return dataclasses.replace(merged, warnings=tuple(warned))


def _measured(report):
    return report.metrics, report.misclassified, list(report.values)
