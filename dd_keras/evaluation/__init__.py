"""Evaluation: from a classifier and a data set to a robustness report."""

from dd_keras.evaluation.evaluate import evaluate_robustness
from dd_keras.evaluation.merge import merge_reports
from dd_keras.evaluation.metrics import (
    PASS,
    POLICIES,
    Accuracy,
    AccuracyUnderAttack,
    AccuracyUnderTransfer,
    AdaptiveChecks,
    BestDistance,
    Distance,
    EpsSweep,
    Metric,
    SmallestEps,
)
from dd_keras.evaluation.report import RobustnessReport

__all__ = [
    "PASS",
    "POLICIES",
    "Accuracy",
    "AccuracyUnderAttack",
    "AccuracyUnderTransfer",
    "AdaptiveChecks",
    "BestDistance",
    "Distance",
    "EpsSweep",
    "Metric",
    "RobustnessReport",
    "SmallestEps",
    "evaluate_robustness",
    "merge_reports",
]
