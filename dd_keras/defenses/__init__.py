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
from dd_keras.defenses.parseval import (
    ParsevalConstraint,
    add_parseval_constraints,
)
from dd_keras.defenses.regularization_warmup import RegularizationWarmup
from dd_keras.defenses.split_exponential import SplitExponential

__all__ = [
    "BATCH_NORM_MODES",
    "METHODS",
    "AdversarialTrainingModel",
    "CombinedModel",
    "DeepDefenseModel",
    "DefenseModel",
    "Method",
    "ParsevalConstraint",
    "RegularizationWarmup",
    "Settings",
    "SplitExponential",
    "add_parseval_constraints",
    "deepfool_dataset",
]
