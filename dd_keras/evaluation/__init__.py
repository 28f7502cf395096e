"""Evaluation: from a classifier and a data set to a robustness report."""

from dd_keras.evaluation.board import RobustnessBoard
from dd_keras.evaluation.evaluate import evaluate_robustness
from dd_keras.evaluation.html_report import AttackedImages, compare_to_html
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
    "AttackedImages",
    "BestDistance",
    "Distance",
    "EpsSweep",
    "Metric",
    "RobustnessBoard",
    "RobustnessReport",
    "SmallestEps",
    "compare_to_html",
    "evaluate_robustness",
    "merge_reports",
]
