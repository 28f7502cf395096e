"""The fields of RobustBench's model cards, from a report.

RobustBench (Croce et al., NeurIPS 2021) lists models with one JSON each; what
a report cannot know, as the paper's title, is null and left to the author.
"""

import math
import os

import numpy as np

from shared.provenance import write_json

from dd_keras import attacks, evaluation
from dd_keras.evaluation import Metric, RobustnessReport


def fits(metric: Metric) -> bool:
    """Whether a metric is the accuracy under AutoAttack."""
    return isinstance(metric, evaluation.AccuracyUnderAttack) and isinstance(
        metric.attack, attacks.AutoAttack
    )


def card(report: RobustnessReport, model: str, dataset: str) -> dict:
    """A model card, as RobustBench names its fields.

    Args:
        report: with accuracy and AutoAttack.
        model: what was evaluated, as the user named it.
        dataset: its name.

    Returns:
        dict: accuracies in percent as text, as RobustBench has them; `eps` in
        units of the inputs, with what `eps_share` it is of their valid range.
    """
    metric = next(filter(fits, report.metrics))
    attack = metric.attack
    numbers = report.summary()
    width = None
    if attack.bounds is not None:
        width = float(np.max(np.subtract(*attack.bounds[::-1])))
    accuracy = float(np.mean(report.labels == report.predictions))
    robust = numbers[f"{metric.name}_accuracy"] or 0.0
    return {
        "link": None,
        "name": os.path.splitext(os.path.basename(os.path.normpath(model)))[0],
        "authors": None,
        "additional_data": None,
        "number_forward_passes": 1,
        "dataset": dataset,
        "venue": None,
        "architecture": None,
        "norm": "Linf" if attack.norm == math.inf else f"L{attack.norm:g}",
        "eps": attack.eps,
        "eps_share": None if width is None else attack.eps / width,
        "clean_acc": f"{100 * accuracy:.2f}",
        "reported": None,
        "autoattack_acc": f"{100 * robust:.2f}",
        "samples": len(report),
        "attack_version": attack.version,
        "flags": list(report.warnings),
        "unreliable": bool(report.warnings),
        "footnote": None,
    }


def write(
    report: RobustnessReport, model: str, dataset: str, path: str
) -> None:
    """Writes `card` as JSON, atomically."""
    write_json(card(report, model, dataset), path)
