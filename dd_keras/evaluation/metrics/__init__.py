"""Metrics: what is measured on each sample, and the numbers computed from it.

base.py defines what a metric is; each other file holds the metrics of its
name; names.py finds a metric by name.
"""

from dd_keras.evaluation.metrics.accuracy import Accuracy, AccuracyUnderAttack
from dd_keras.evaluation.metrics.adaptive import AdaptiveChecks
from dd_keras.evaluation.metrics.base import (
    POLICIES,
    Explanation,
    Metric,
    Samples,
)
from dd_keras.evaluation.metrics.best_distance import BestDistance
from dd_keras.evaluation.metrics.distance import Distance
from dd_keras.evaluation.metrics.fgsm import EpsSweep, SmallestEps
from dd_keras.evaluation.metrics.names import get
from dd_keras.evaluation.metrics.perceptual import PASS
from dd_keras.evaluation.metrics.transfer import AccuracyUnderTransfer

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
    "Explanation",
    "Metric",
    "Samples",
    "SmallestEps",
    "get",
]
