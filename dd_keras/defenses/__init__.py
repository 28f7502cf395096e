"""Defences: from a classifier to one that perturbations do not flip."""

from dd_keras.defenses.deep_defense import DeepDefenseModel
from dd_keras.defenses.split_exponential import SplitExponential

__all__ = ["DeepDefenseModel", "SplitExponential"]
