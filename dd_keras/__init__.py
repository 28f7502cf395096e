"""Deep Defense for Keras: classifiers that small perturbations do not flip."""

from dd_keras import attacks, datasets, evaluation, networks
from dd_keras.defenses import DeepDefenseModel, SplitExponential
from dd_keras.evaluation import RobustnessReport, evaluate_robustness
from dd_keras.logits import logits_model
from dd_keras.optimizers import CoupledSGD

__version__ = "0.1.0"

__all__ = [
    "CoupledSGD",
    "DeepDefenseModel",
    "RobustnessReport",
    "SplitExponential",
    "attacks",
    "datasets",
    "evaluate_robustness",
    "evaluation",
    "logits_model",
    "networks",
]
