"""Defences: Keras models that train a classifier to be robust."""

from dd_keras.defenses.adversarial_training import (
    AdversarialTrainingModel,
    CombinedModel,
    deepfool_dataset,
)
from dd_keras.defenses.base import DefenseModel
from dd_keras.defenses.batch_norm import MODES as BATCH_NORM_MODES
from dd_keras.defenses.deep_defense import DeepDefenseModel
from dd_keras.defenses.input_gradient import InputGradientModel
from dd_keras.defenses.methods import METHODS, Method
from dd_keras.defenses.mma import MMAModel
from dd_keras.defenses.parseval import (
    ParsevalConstraint,
    add_parseval_constraints,
)
from dd_keras.defenses.regularization_warmup import RegularizationWarmup
from dd_keras.defenses.regularized import RegularizedDefenseModel
from dd_keras.defenses.settings import Settings
from dd_keras.defenses.split_penalty import (
    SplitExponential,
    SplitHinge,
    SplitInverse,
    SplitLinear,
)
from dd_keras.defenses.trades import TRADESModel

__all__ = [
    "BATCH_NORM_MODES",
    "METHODS",
    "AdversarialTrainingModel",
    "CombinedModel",
    "DeepDefenseModel",
    "DefenseModel",
    "InputGradientModel",
    "MMAModel",
    "Method",
    "ParsevalConstraint",
    "RegularizationWarmup",
    "RegularizedDefenseModel",
    "Settings",
    "SplitExponential",
    "SplitHinge",
    "SplitInverse",
    "SplitLinear",
    "TRADESModel",
    "add_parseval_constraints",
    "deepfool_dataset",
]
