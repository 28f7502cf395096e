"""Evaluation: from a classifier and a data set to a report."""

from dd_keras.evaluation.evaluate import RobustnessReport, evaluate_robustness

__all__ = ["RobustnessReport", "evaluate_robustness"]
