"""Defences: from a classifier to one that perturbations do not flip."""

from dd_keras.defenses.adversarial_training import (
    AdversarialTrainingModel,
    CombinedModel,
    deepfool_dataset,
)
from dd_keras.defenses.base import DefenseModel
from dd_keras.defenses.batch_norm import MODES as BATCH_NORM_MODES
from dd_keras.defenses.deep_defense import DeepDefenseModel
from dd_keras.defenses.methods import METHODS, Method, Settings
from dd_keras.defenses.parseval import ParsevalConstraint, constrain_parseval
from dd_keras.defenses.regularization_warmup import LamRamp
from dd_keras.defenses.split_exponential import SplitExponential

__all__ = [
    "BATCH_NORM_MODES",
    "METHODS",
    "AdversarialTrainingModel",
    "CombinedModel",
    "DeepDefenseModel",
    "DefenseModel",
    "LamRamp",
    "Method",
    "ParsevalConstraint",
    "Settings",
    "SplitExponential",
    "constrain_parseval",
    "deepfool_dataset",
]
